"""A plugin of pytest that measures line coverage: `scripts/test -p tests.line_coverage`.

slipcover takes its probes out of lines that have run: the tests take a fifth more processor time.
With coverage.py, which counts each line each time on Python 3.11, they take half as much again.
slipcover's own plugin for pytest may read the workers' figures before all of them are written.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import slipcover

LEAST_PERCENT = 95.0
"""The run fails if fewer of the lines have run."""

ROOT = Path(__file__).parent.parent
PACKAGES = ("app", "pipelines", "backends")
FOLDER_VARIABLE = "LINE_COVERAGE_FOLDER"
"""Names the folder where the workers write what they measured."""


class Probes(slipcover.Slipcover):  # type: ignore[misc]  # it has no types
    _taking_out = threading.RLock()  # what is collected meanwhile may run lines, too

    def deinstrument_seen(self) -> None:
        """Take out the probes of lines that have run, but not from functions among local variables.

        To look for these would read the locals of all frames, and Python 3.11 then keeps their
        values as long as the frames live. Tests of what is released would fail.
        """
        with self._taking_out, patch.object(sys, "_current_frames", dict):
            super().deinstrument_seen()


class Measuring:
    """Counts the lines that run in this process, from now on."""

    def __init__(self) -> None:
        sources = [str(ROOT / package) for package in PACKAGES]
        matcher = slipcover.FileMatcher(sources=sources)
        self._probes = Probes(source=sources)
        self._imports = slipcover.ImportManager(self._probes, matcher)
        self._imports.__enter__()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write the figures. A worker tells the controller later that it has finished."""
        self._imports.__exit__()
        file = Path(os.environ[FOLDER_VARIABLE]) / f"{os.getpid()}.json"
        file.write_text(json.dumps(self._probes.get_coverage()))


class Reporting:
    """Adds up what all processes measured, and prints it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-coverage-")
        os.environ[FOLDER_VARIABLE] = self._folder.name
        self._lines: list[str] = []

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        yield
        total: dict[str, Any] | None = None
        for file in Path(self._folder.name).iterdir():
            figures = json.loads(file.read_text())
            if total is None:
                total = figures
            else:
                slipcover.merge_coverage(total, figures)
        self._folder.cleanup()
        if total is None:
            return
        summary = total["summary"]
        percent = summary["percent_covered"]
        for name, figures in sorted(total["files"].items()):
            if missing := figures["missing_lines"]:
                covered = figures["summary"]["percent_covered"]
                self._lines.append(f"{name}: {covered:.0f} %, not {', '.join(map(str, missing))}")
        self._lines.append(f"coverage: {percent:.1f} % of lines, expected {LEAST_PERCENT:g} %")
        if percent < LEAST_PERCENT and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._lines:
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reporting())
    if measuring is not None:
        config.pluginmanager.register(measuring)


measuring = None
if FOLDER_VARIABLE in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    measuring = Measuring()
