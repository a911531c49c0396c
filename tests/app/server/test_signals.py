"""What `penstock serve` does on SIGHUP, on SIGUSR1, and on SIGTERM while a thread hangs."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

PIPELINE = """
[pipeline]
name = "{name}"

[node]
backend = "Python[{name}.py:Answer]"
stuck_after = 0.5
"""

ANSWER = """
import os

import penstock


class Answer(penstock.Backend):
    def forward(self, batch):
        for item in batch:
            if item["data"] == b"hang":
                open(os.environ["GATE"]).close()  # a FIFO that no one opens
            item["result"] = "{answer}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "gate")
    folder = tmp_path / "pipelines"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.toml").write_text(PIPELINE.format(name=name))
        (folder / f"{name}.py").write_text(ANSWER.format(answer="old"))
    return folder


def start(spawn: Any, folder: Path, *options: object) -> Any:
    return spawn("serve", folder, "--port", 0, *options, GATE=str(folder.parent / "gate"))


def ask(client: Any, name: str) -> str:
    result: str = client.post(f"/predict/{name}", content=b"x").json()["result"]
    return result


def test_hup_loads_what_has_changed(spawn: Any, folder: Path) -> None:
    server = start(spawn, folder)
    with server.listening() as client:
        server.wait_for("ready after")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("no pipeline is loaded again: their files have not changed")
        (folder / "one.py").write_text(ANSWER.format(answer="new"))
        assert (ask(client, "one"), ask(client, "two")) == ("old", "old")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(r"pipeline one is loaded again: \S+one\.py changed")
        server.wait_for("pipeline one is replaced")
        assert (ask(client, "one"), ask(client, "two")) == ("new", "old")
        assert not any("pipeline two is replaced" in line for line in server.lines)
        server.process.terminate()
        assert server.end() == 0


EARLY = """
import os
import signal
import sys


class Finder:
    'Sends the signals while the command line is imported.'

    def find_spec(self, name, path, target=None):
        if name == "penstock.app.cli.main":
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)


sys.meta_path.insert(0, Finder())
"""


def test_signals_wait_until_the_server_handles_them(spawn: Any, folder: Path) -> None:
    (folder.parent / "sitecustomize.py").write_text(EARLY)  # Python imports it first
    path = os.pathsep.join([str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = spawn("serve", folder, "--port", 0, PYTHONPATH=path)
    with server.listening() as client:
        server.wait_for("report: the server is")
        server.wait_for("ready after")
        server.wait_for("no pipeline is loaded again: their files have not changed")
        assert ask(client, "one") == "old"
        server.process.terminate()
        assert server.end() == 0


def test_hup_sees_new_labels(spawn: Any, digits: Path, digit: bytes, tmp_path: Path) -> None:
    shutil.copytree(digits.parent, tmp_path / "digits")
    server = spawn("serve", tmp_path / "digits" / digits.name, "--port", 0)
    with server.listening() as client:
        server.wait_for("ready after")
        labels = tmp_path / "digits" / "labels.txt"
        labels.write_text(labels.read_text().replace("three", "drei"))
        assert client.put("/predict/digits", content=digit).json()["label"] == "three"
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("pipeline digits is replaced")
        assert client.put("/predict/digits", content=digit).json()["label"] == "drei"
        server.process.terminate()
        assert server.end() == 0


def test_hup_leaves_what_can_not_be_loaded(spawn: Any, folder: Path) -> None:
    server = start(spawn, folder)
    with server.listening() as client:
        server.wait_for("ready after")
        (folder / "one.py").write_text("class Answer(Nothing): pass\n")
        (folder / "two.py").write_text(ANSWER.format(answer="new"))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(
            "pipeline one can't be loaded again, and the running one goes on: .*Nothing"
        )
        server.wait_for("pipeline two is replaced")
        assert (ask(client, "one"), ask(client, "two")) == ("old", "new")
        assert client.get("/health/ready").status_code == 200
        server.process.terminate()
        assert server.end() == 0


def test_usr1_writes_a_report(spawn: Any, folder: Path) -> None:
    server = start(spawn, folder)
    with server.listening() as client, ThreadPoolExecutor() as threads:
        server.wait_for("ready after")
        hanging = threads.submit(client.post, "/predict/one", content=b"hang")
        assert hanging.result().status_code == 504
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for("report: the server is node 'node': a forward has run")
        server.wait_for(r"memory of requests: \d+ of \d+ bytes")
        server.wait_for(r"connections: 1 of \d+")
        server.wait_for("pipeline one: not ready")
        server.wait_for("node node: 0 rows queue")
        server.wait_for(r"executor one/node#0 runs 1 rows since \S+ s \(stuck\); its stack")
        server.wait_for(r'open\(os.environ\["GATE"\]\).close')
        server.wait_for("pipeline two: ready")
        server.wait_for("executor two/node#0 is idle")
        assert ask(client, "two") == "old"
        server.process.terminate()
        assert server.end() == 0


def test_a_thread_that_hangs_does_not_hold_the_shutdown(spawn: Any, folder: Path) -> None:
    server = start(spawn, folder, "--drain-timeout", 1000)
    with server.listening() as client:
        server.wait_for("ready after")
        assert client.post("/predict/one", content=b"hang").status_code == 504
        server.process.terminate()
        assert server.end(timeout=30) == 0
    assert any("is left running" in line for line in server.lines)


def test_two_hangs_of_a_child_end_nothing(spawn: Any, folder: Path) -> None:
    file = folder / "one.toml"
    file.write_text(file.read_text() + 'executor = "process"\n')
    server = start(spawn, folder, "--drain-timeout", 1000)
    with server.listening() as client:
        server.wait_for("ready after")
        for _ in range(2):
            assert client.post("/predict/one", content=b"hang").status_code == 504
        assert (ask(client, "one"), ask(client, "two")) == ("old", "old")
        assert client.get("/health/ready").status_code == 200
        server.process.terminate()
        assert server.end(timeout=30) == 0


@pytest.mark.parametrize(("where", "code"), [("import", -signal.SIGINT), ("init", 0)])
def test_ctrl_c_while_it_starts_prints_no_traceback(
    spawn: Any, tmp_path: Path, where: str, code: int
) -> None:
    """Before its server handles signals the process ends at once, after that it drains."""
    (tmp_path / "own.py").write_text(
        f"""
import signal
from penstock.backends.base import Backend

if {where == "import"}:
    signal.raise_signal(signal.SIGINT)

class Own(Backend):
    def init(self, params, context):
        signal.pthread_kill(__import__("threading").main_thread().ident, signal.SIGINT)

    def forward(self, batch):
        pass
"""
    )
    (tmp_path / "own.toml").write_text('[a]\nbackend = "Python[own.py:Own]"\n')
    server = spawn("serve", tmp_path / "own.toml", "--port", 0)
    assert server.end() == code
    assert "Traceback" not in "".join(server.lines)
