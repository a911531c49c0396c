"""Measured figures, each with its target, and the table of all of them."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "performance.md"
HTTP, PROFILE = "HTTP no-op", "profile"
"""The parts that have tables of their own, besides the one of all figures."""

WEB_PAGE = "page"
"""The part whose figures are in a table like that of all figures, but in a section of its own."""

FIGURES = "scripts/bench"
"""The generated section of the page with all figures: comments with `: begin` and `: end` are
around each section.
"""

WEB_PAGE_FIGURES = "scripts/bench page"
"""The generated section with the figures of WEB_PAGE."""

SECTIONS = {
    HTTP: ("scripts/bench http", "the other columns are requests/s"),
    PROFILE: ("scripts/bench profile", "the server's processor time per request, in µs"),
}
"""Part -> the generated section with its table, and what the figures in it are."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value, and the target that it should meet."""

    part: str
    what: str
    value: float
    """NaN if it could not be measured; then `note` has the reason."""
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
    column: str = ""
    """Its column in the part's own table, where `what` is its row. Empty: it is not in that one."""

    @property
    def holds(self) -> bool | None:
        """True if the target is met; None without a target or a value."""
        if math.isnan(self.value):
            return None
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most

    def to_dict(self) -> dict[str, Any]:
        fields = {
            name: getattr(self, name)
            for name in ("part", "what", "unit", "least", "most", "aim", "runs", "note", "column")
        }
        value = None if math.isnan(self.value) else self.value
        return {**fields, "value": value, "holds": self.holds}

    @property
    def cell(self) -> str:
        """The value alone, in three digits or whole."""
        if math.isnan(self.value):
            return "not measured"
        return _short(self.value)

    @property
    def row(self) -> str:
        """The figure as a row of `table`."""
        target = "" if self.least is None else f"≥ {self.least:g}"
        if self.most is not None:
            target = f"≤ {self.most:g}"
        aim = "" if self.aim is None else f"{self.aim:g}"
        value = self.cell
        if len(self.runs) > 1:
            value += f" ({_short(min(self.runs))} – {_short(max(self.runs))})"
        holds = {True: "yes", False: "**no**", None: ""}[self.holds]
        cells = (
            self.part,
            self.what,
            f"{value} {self.unit}".rstrip(),
            target,
            aim,
            holds,
            self.note,
        )
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
        "packages": dict(
            _versions(
                "uvicorn",
                "uvloop",
                "httptools",
                "fastapi",
                "onnxruntime",
                "opencv-python-headless",
            )
        ),
    }


def _versions(*packages: str) -> Iterator[tuple[str, str]]:
    """Yield each package that is installed, with its version."""
    for package in packages:
        with suppress(PackageNotFoundError):
            yield package, version(package)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(figures: Sequence[Figure], environment: dict[str, Any], quick: bool) -> str:
    """Write figures as a Markdown table, below a line on how and where they were measured.

    Those with a column are left out. Return an empty text if there are no others.
    """
    figures = [figure for figure in figures if not figure.column]
    if not figures:
        return ""
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items())
    origin = (
        f"{_origin(environment, quick)}; "
        f"{environment['processors']} processors ({environment['processor']}), "
        f"load before {environment['load'][0]}; Python {environment['python']}, {packages}."
    )
    lines = [
        *textwrap.wrap(origin, 120, break_long_words=False, break_on_hyphens=False),
        "",
        "| part | what | figure: median (lowest – highest run) | target | aim | holds | note |",
        "|---|---|---|---|---|---|---|",
        *[figure.row for figure in figures],
    ]
    return "\n".join(lines)


def table_of_part(
    figures: Sequence[Figure], part: str, environment: dict[str, Any], quick: bool
) -> str:
    """Write the figures of a part that have a column as a Markdown table.

    Return an empty text if there are none.
    """
    cells = {
        (figure.what, figure.column): figure.cell
        for figure in figures
        if figure.part == part and figure.column
    }
    if not cells:
        return ""
    columns = list(dict.fromkeys(column for _, column in cells))
    _, meaning = SECTIONS[part]
    lines = [
        f"{_origin(environment, quick)}; {meaning}.",
        "",
        f"| | {' | '.join(columns)} |",
        f"|{'---|' * (len(columns) + 1)}",
    ]
    for what in dict.fromkeys(what for what, _ in cells):
        row = [cells.get((what, column), "") for column in columns]
        lines.append(f"| {what} | {' | '.join(row)} |")
    return "\n".join(lines)


def _origin(environment: dict[str, Any], quick: bool) -> str:
    command = (
        "`scripts/bench --quick`: short runs, for orientation only" if quick else "`scripts/bench`"
    )
    return f"{command}, {environment['when']}, commit {environment['commit']}"


def replace_section(page: str, section: str, text: str) -> str:
    """Return the page with other text in one of its generated sections.

    Raises SystemExit if the page has no such section.
    """
    begin, end = (f"<!-- {section}: {edge} -->" for edge in ("begin", "end"))
    if begin not in page or end not in page:
        raise SystemExit(f"{PAGE} lacks the line {begin} or {end}")
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"


def write_page(sections: Mapping[str, str]) -> None:
    """Replace generated sections of docs/explanation/performance.md by texts that aren't empty.

    Raises SystemExit if the page lacks one.
    """
    page = PAGE.read_text()
    for section, text in sections.items():
        if text:
            page = replace_section(page, section, text)
    PAGE.write_text(page)
