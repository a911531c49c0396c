"""Measured figures, each with its target, and the table of all of them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "performance.md"
BEGIN, END = "<!-- scripts/bench: begin -->", "<!-- scripts/bench: end -->"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, and the target that it should meet."""

    part: str
    what: str
    value: float
    unit: str = ""
    least: float | None = None
    """The target, if the value should be at least this."""
    most: float | None = None
    """The target, if the value should be at most this. Without a target it is for orientation."""
    aim: float | None = None
    """A value beyond the target that would be good."""
    runs: tuple[float, ...] = ()
    """The runs of which `value` is the median. They show how noisy it is."""
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """True if the target is met; None without a target."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most

    def to_dict(self) -> dict[str, Any]:
        fields = {
            name: getattr(self, name)
            for name in ("part", "what", "value", "unit", "least", "most", "aim", "runs", "note")
        }
        return {**fields, "holds": self.holds}

    @property
    def row(self) -> str:
        """The figure as a row of `table`."""
        target = "" if self.least is None else f"≥ {self.least:g}"
        if self.most is not None:
            target = f"≤ {self.most:g}"
        aim = "" if self.aim is None else f"{self.aim:g}"
        value = _short(self.value)
        if len(self.runs) > 1:
            value += f" ({_short(min(self.runs))} – {_short(max(self.runs))})"
        holds = {True: "yes", False: "**no**", None: ""}[self.holds]
        cells = (self.part, self.what, f"{value} {self.unit}", target, aim, holds, self.note)
        return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def of_runs(part: str, what: str, runs: Sequence[float], unit: str = "", **more: Any) -> Figure:
    """Return the figure of several runs: their median."""
    return Figure(part, what, median(runs), unit, runs=tuple(runs), **more)


def say(text: str) -> None:
    """Report progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Describe this machine, its software and the time."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in _lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        "",
    )
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit,
        "processor": processor or platform.processor() or platform.machine(),
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "packages": {
            name: version(name)
            for name in (
                "uvicorn",
                "uvloop",
                "httptools",
                "fastapi",
                "onnxruntime",
                "opencv-python-headless",
            )
        },
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(figures: Sequence[Figure], environment: dict[str, Any], quick: bool) -> str:
    """Write figures as a Markdown table, below a line on how and where they were measured."""
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    kind = (
        "`scripts/bench --quick`: short runs, for orientation only" if quick else "`scripts/bench`"
    )
    lines = [
        f"{kind}, {environment['when']}, commit {environment['commit']}; "
        f"{environment['processors']} processors ({environment['processor']}), "
        f"load before {environment['load'][0]}; Python {environment['python']}, {packages}.",
        "",
        "| part | what | figure: median (lowest – highest run) | target | aim | holds | note |",
        "|---|---|---|---|---|---|---|",
        *[figure.row for figure in figures],
    ]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """Replace the generated section of docs/explanation/performance.md.

    Raises SystemExit if the page has no such section.
    """
    page = PAGE.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{PAGE} lacks the line {BEGIN} or {END}")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
