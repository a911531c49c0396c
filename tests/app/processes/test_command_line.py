"""What the command line refuses of several processes. Whole servers are in test_whole.py."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.app.cli.main import command_line
from penstock.app.processes import count

from ...ports import free_port


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve", "x.toml", "--processes", "2", "--reload"], "do not go together"),
        (
            ["shadow", "x.toml", "--from", "http://127.0.0.1:1", "--processes", "2"],
            "a shadow is one process",
        ),
        (["serve", "x.toml", "--process", "models"], "is for processes that the server starts"),
        (["reload", "--port", str(free_port())], "no server of several processes is found by port"),
        (["reload", "--uds", "/nowhere"], "is found by /nowhere"),
        (["reload", "--control-socket", "/nowhere"], "is found by /nowhere"),
    ],
)
def test_refusals(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("penstock.app.processes.entry.CONTROL_DESCRIPTOR", 987)
    answer = CliRunner().invoke(command_line, arguments)
    assert answer.exit_code and expected in answer.output


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count, "is_supported", lambda: False)
    answer = CliRunner().invoke(command_line, ["serve", "x.toml", "--processes", "2"])
    assert answer.exit_code == 2 and "needs Linux" in answer.output


def test_one_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> int:
        raise AssertionError("a parent was started")

    monkeypatch.setattr("penstock.app.processes.parent.serve.serve_processes", never)
    monkeypatch.setattr("penstock.app.processes.count.processors", lambda: 1)
    for arguments in ([], ["--processes", "1"], ["--processes", "auto"]):
        answer = CliRunner().invoke(command_line, ["serve", "gone.toml", *arguments])
        assert answer.exit_code == 1 and "there is no such file" in answer.output
