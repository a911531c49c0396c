"""The log's writer: bounded, ordered, and no one waits for the reader of the log."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from penstock.backends.log_writer import LogWriter, QueuedHandler, QueuedStream


class Gate(io.StringIO):
    """A stream in memory whose writes wait until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.opened.wait(30)
        return super().write(text)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def notice(dropped: int) -> str:
    return f"({dropped} dropped)\n"


def test_lines_keep_their_order() -> None:
    stream = io.StringIO()
    writer = LogWriter(stream, 1 << 20)
    for number in range(2000):
        writer.write(f"{number}\n")
    writer.flush(30)
    assert stream.getvalue().split() == [str(number) for number in range(2000)]
    assert writer.dropped == 0


def test_lines_wait_while_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stream = io.StringIO()
    writer = LogWriter(stream, 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        writer.write("first\n")
    writer.write("second\n")
    writer.flush(30)
    assert stream.getvalue() == "first\nsecond\n"


def test_what_does_not_fit_is_dropped_and_counted(gate: Gate) -> None:
    writer = LogWriter(gate, 100, notice)
    writer.write("x" * 49 + "\n")
    assert gate.entered.wait(30)  # it is being written, and counts all the while
    for number in range(10):
        writer.write(f"{number:024}\n")
    assert writer.dropped == 8
    gate.opened.set()
    writer.flush(30)
    lines = gate.getvalue().splitlines()
    assert lines[0] == "x" * 49 and "(8 dropped)" in lines
    assert [int(line) for line in lines if line.startswith("0")] == [0, 1]
    writer.write("later\n")
    writer.flush(30)
    assert gate.getvalue().endswith("later\n") and gate.getvalue().count("dropped") == 1


def test_the_end_waits_for_a_stated_time(gate: Gate) -> None:
    writer = LogWriter(gate, 100)
    writer.write("x\n")
    assert gate.entered.wait(30)
    writer.flush(0.01)
    writer.close()
    writer.write("y\n")
    assert writer.dropped == 1
    gate.opened.set()


def test_a_reader_that_has_gone_ends_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        writer = LogWriter(stream, 100)
        writer.write("x\ny\n")
        writer.flush(30)
        assert writer.dropped == 2
        writer.write("z\n")
        writer.flush(30)
        assert writer.dropped == 3
        writer.close()


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream:
        writer = LogWriter(stream, 1 << 20)
        text = "x" * 200_000 + "\n"  # more than a pipe holds
        writer.write(text)
        read = b""
        while len(read) < len(text):
            read += os.read(reading, 1 << 16)
        assert read.decode() == text and writer.dropped == 0
        writer.flush(30)
        writer.close()
    os.close(reading)


def test_a_record_that_logs_while_it_is_logged_does_not_stop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    handler = QueuedHandler(stream)
    logger = logging.Logger("a")
    logger.addHandler(handler)

    class Loud:
        def __str__(self) -> str:
            logger.warning("within")
            return "loud"

    class Broken:
        def __str__(self) -> str:
            raise ValueError

    logger.warning("%s", Loud())
    logger.warning("%s", Broken())
    handler.flush()
    assert stream.getvalue() == "within\nloud\n"
    assert "ValueError" in capsys.readouterr().err
    handler.close()


def test_what_others_write_to_standard_error_is_queued(gate: Gate) -> None:
    writer = LogWriter(gate, 1000)
    stream: Any = QueuedStream(gate, writer)
    assert isinstance(stream, TextIO | io.TextIOBase) and stream.writable()
    print("a", 1, file=stream)  # returns, although the stream can't be written to
    gate.opened.set()
    writer.flush(30)
    assert gate.getvalue() == "a 1\n"


def test_the_last_lines_of_a_process_are_written_and_a_forked_one_writes_its_own() -> None:
    program = """
import logging, os, sys
from penstock.backends.log_writer import QueuedHandler
handler = QueuedHandler(sys.stderr)
logging.basicConfig(handlers=[handler], format="%(message)s")
logging.warning("first")
handler.flush()
if os.fork() == 0:
    logging.warning("of the child")
    os._exit(0)
os.wait()
logging.warning("last")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60, check=True
    )
    assert ran.stderr.splitlines() == ["first", "of the child", "last"]
