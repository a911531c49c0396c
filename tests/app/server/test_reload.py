"""`penstock serve --reload`: a changed file is served, and no connection is refused meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from penstock.app.server.reload import watched_folders

PIPELINE = '[a]\nbackend = "Python[own.py:answer]"\n[pipeline.inputs]\ndata = { kind = "bytes" }\n'
HEADERS = {"content-type": "application/octet-stream", "connection": "close"}


def write(folder: Path, answer: str) -> None:
    """Replace the code as editors do."""
    (folder / "new").write_text(f"def answer(data):\n    return {answer}\n")
    (folder / "new").replace(folder / "own.py")


@pytest.mark.timeout(240)
def test_a_server_serves_what_has_changed(
    spawn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("watchfiles")
    monkeypatch.chdir(tmp_path)  # it is watched
    write(tmp_path, "1")
    (tmp_path / "own.toml").write_text(PIPELINE)
    server = spawn("serve", tmp_path / "own.toml", "--reload", "--port", 0)
    with server.listening() as client:
        server.wait_for("ready after")

        def answer() -> Any:
            got = client.post("/predict/own", content=b"x", headers=HEADERS, timeout=120)
            return got.json().get("result")

        assert answer() == 1
        write(tmp_path, "(")  # does not compile
        server.wait_for("own.py changed: the server restarts")
        server.wait_for("the server has ended: it starts again when a file changes")
        write(tmp_path, "2")
        while (got := answer()) != 2:
            assert got is None  # it loads
    server.process.send_signal(signal.SIGINT)
    assert server.end(60) == 0
    assert "Traceback" not in "".join(line for line in server.lines if "  | " not in line)


def test_what_reload_cant_use_is_told(spawn: Any, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('[a]\nbackend = "Identity"\n')
    hidden = tmp_path / "hidden" / "watchfiles"
    hidden.mkdir(parents=True)
    code = "import sys; sys.modules['watchfiles'] = None"
    (tmp_path / "hidden" / "sitecustomize.py").write_text(code)
    path = os.pathsep.join([str(hidden.parent), os.environ.get("PYTHONPATH", "")])
    server = spawn("serve", tmp_path / "own.toml", "--reload", "--port", 0, PYTHONPATH=path)
    assert server.end() == 1
    assert "--reload needs watchfiles: pip install 'penstock-serve[reload]'" in server.lines[-1]


def test_folders_inside_others_are_not_watched_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "work" / "pipelines"
    inner.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert watched_folders(inner / "a.toml", [inner, tmp_path / "more"]) == [
        tmp_path / "more",
        tmp_path / "work",
    ]
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    assert watched_folders(inner / "a.toml", []) == [inner]
