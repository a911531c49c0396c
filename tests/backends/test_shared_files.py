"""Files in memory that processes share."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.shared_files import Files, SharedFiles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process executors need Linux")


def file_of(text: str) -> Files:
    files = Files()
    os.pwrite(files.add(os.memfd_create("test")), text.encode(), 0)
    return files


def content(files: Files) -> str:
    return os.pread(files.descriptors[0], 100, 0).decode()


def never() -> Any:
    pytest.fail("the files are there")


CHILD = """
import pickle, sys
from tests_of_files import content, file_of
files = pickle.loads(bytes.fromhex(sys.argv[1]))
print(content(files.files("key", lambda: file_of("of the child"))), flush=True)
sys.stdin.read()
"""


class Child:
    """A process that asks for a key, and lives until `end`."""

    def __init__(self, files: SharedFiles, folder: Path) -> None:
        (folder / "tests_of_files.py").write_text(Path(__file__).read_text())
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, pickle.dumps(files).hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        )
        assert self._process.stdout is not None
        self.found = self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.communicate(timeout=20)


def test_a_child_finds_what_the_server_has(tmp_path: Path) -> None:
    files = SharedFiles()
    assert content(files.files("key", lambda: file_of("of the server"))) == "of the server"
    child = Child(files, tmp_path)
    child.end()
    assert child.found == "of the server"


def test_what_a_child_made_outlives_it(tmp_path: Path) -> None:
    files = SharedFiles()
    child = Child(files, tmp_path)
    try:
        beside = pickle.loads(pickle.dumps(files))  # as another child has it
        assert content(beside.files("key", never)) == child.found == "of the child"
        files.keep()
    finally:
        child.end()
    assert content(files.files("key", never)) == "of the child"
    later = pickle.loads(pickle.dumps(files))
    assert content(later.files("key", never)) == "of the child"


def test_a_child_that_ended_before_anyone_kept_its_files(tmp_path: Path) -> None:
    files = SharedFiles()
    Child(files, tmp_path).end()
    files.keep()
    assert content(files.files("key", lambda: file_of("new"))) == "new"


def test_files_that_can_not_be_made() -> None:
    files = SharedFiles()

    def fail() -> Files:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            files.files("key", fail)
    assert content(files.files("key", lambda: file_of("made"))) == "made"


def test_files_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    files = SharedFiles()
    files.files("key", lambda: file_of("text"))
    files.keep()
    pickle.dumps(pickle.loads(pickle.dumps(files)))  # as in a child that asks for nothing
    assert len(os.listdir("/proc/self/fd")) == before + 2  # noqa: PTH208
    files.close()
    files.keep()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
