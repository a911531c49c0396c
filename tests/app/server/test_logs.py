"""The log of a server: one line an event, whatever text a client sends."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from penstock.app.server.logs import (
    LINES_A_SECOND,
    MOST_KINDS,
    JsonFormatter,
    RateLimit,
    TextFormatter,
    configure_logging,
)
from penstock.backends.base import Context
from penstock.backends.sequences.sequence import StepMessage
from penstock.backends.sequences.stateful import SequenceStates

from ...ports import free_port
from ..logging_state import logging_restored

EVIL = "a\nINFO forged\r\x1b[31m\u2028b\u202ec\x00d\x85e\ud800"


@pytest.fixture
def log() -> Any:
    """A function that configures logging with a style and returns the stream."""
    handler: Any = None

    class Stream(io.StringIO):
        def getvalue(self) -> str:
            handler.flush()
            return super().getvalue()

    def configure(style: Any, level: Any = "info") -> Any:
        nonlocal handler
        stream = Stream()
        handler = configure_logging(level, style, stream).handler
        return stream

    with logging_restored():
        yield configure


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_text_forges_a_line(log: Any, style: Any) -> None:
    stream = log(style)
    logging.getLogger("penstock.test").info(
        "said %s", EVIL, extra={"request_id": EVIL, "node": "n"}
    )
    (line,) = stream.getvalue().split("\n")[:-1]
    assert len(line.splitlines()) == 1 or style == "json"
    assert "\x1b" not in line and "\x00" not in line and "\r" not in line


def test_text_lines(log: Any) -> None:
    stream = log("text")
    logging.getLogger("penstock.test").warning(
        "x=%d", 3, extra={"request_id": "r1", "pipeline": "p", "node": "n"}
    )
    time, rest = stream.getvalue().split(" ", 1)
    assert (
        time.endswith("Z") and rest == "WARNING penstock.test x=3 request_id=r1 pipeline=p node=n\n"
    )


def test_lines_name_the_process_if_there_are_several() -> None:
    record = logging.LogRecord("penstock.test", logging.INFO, "", 0, "said", (), None)
    assert TextFormatter("front 1").format(record).endswith(" penstock.test [front 1] said")
    assert orjson.loads(JsonFormatter("front 1").format(record))["process"] == "front 1"
    assert "process" not in orjson.loads(JsonFormatter().format(record))


def test_a_traceback_is_marked_and_can_not_look_like_a_line(log: Any) -> None:
    stream = log("text")
    try:
        raise ValueError("x\n2026-11-20T12:00:00.000Z INFO penstock all is well\x1b[0m")
    except ValueError:
        logging.getLogger("penstock.test").exception("failed")
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("ERROR penstock.test failed")
    assert (
        len(others) > 3
        and all(line.startswith("  | ") for line in others)
        and "\x1b" not in stream.getvalue()
    )


@pytest.mark.usefixtures("log")
def test_warnings_of_other_loggers_are_lines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "lastResort", None)
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    log = configure_logging(stream=stream)
    log.take_standard_error()
    for name in ("someone", "grpc._server"):
        logging.getLogger(name).warning("said %s", EVIL)
        logging.getLogger(name).info("left out")
    log.handler.flush()
    one, other = stream.getvalue().splitlines()
    assert " WARNING someone said a\\nINFO forged" in one
    assert " WARNING grpc._server said a\\nINFO forged" in other


def test_json_lines(log: Any) -> None:
    stream = log("json")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("penstock.test").exception(
            "failed %s", EVIL, extra={"request_id": "r1", "pipeline": "p"}
        )
    entry = orjson.loads(stream.getvalue())
    assert (
        entry["level"] == "error"
        and entry["logger"] == "penstock.test"
        and entry["request_id"] == "r1"
        and entry["pipeline"] == "p"
    )
    assert (
        entry["message"].startswith("failed a\nINFO forged")
        and "ValueError: why" in entry["exception"]
        and "node" not in entry
    )


def test_levels(log: Any) -> None:
    stream = log("text", "error")
    logging.getLogger("penstock.test").warning("not this")
    logging.getLogger("uvicorn.error").info("nor this")
    logging.getLogger("penstock.test").error("this")
    assert stream.getvalue().count("\n") == 1


def test_lines_that_clients_cause_are_limited(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = log("text")
    for limit in logging.getLogger("penstock.http").filters:
        monkeypatch.setattr(limit, "_clock", lambda: 100.0)  # all within one second
    for number in range(1000):
        logging.getLogger("penstock.http").warning("request %d is malformed", number)
    assert stream.getvalue().count("\n") == LINES_A_SECOND
    logging.getLogger("penstock.http").warning("another kind")
    for number in range(100):
        logging.getLogger("penstock.repository").warning("pipeline %d has a warning", number)
    assert stream.getvalue().count("\n") == LINES_A_SECOND + 1 + 100


def test_sequences_whose_end_fails_are_limited(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = log("text")
    for limit in logging.getLogger("penstock.http").filters:
        monkeypatch.setattr(limit, "_clock", lambda: 100.0)
    states = SequenceStates(Context())
    for serial in range(100):
        states.begin(StepMessage(serial, "x", True, True, None)).on_end = lambda reason: 1 / 0
        states.end(serial, "end")
    assert stream.getvalue().count("on_end of sequence 'x' failed") == LINES_A_SECOND


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("a", logging.WARNING, "file", 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_the_rate_of_each_kind_is_limited_and_what_is_left_out_is_counted() -> None:
    now = 100.0
    limit = RateLimit(2, clock=lambda: now)
    assert [limit.filter(record("bad %s", i)) for i in range(5)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert limit.filter(record("bad %s", 1, node="n")) and limit.filter(record("worse %s", 1))
    now = 100.999
    assert not limit.filter(record("bad %s", 5))
    now = 101.0
    told, untold = record("bad %s", 6), record("bad %s", 7)
    assert limit.filter(told) and limit.filter(untold) and not limit.filter(record("bad %s", 8))
    assert told.getMessage() == "bad 6 (4 more lines of this kind were left out)"
    assert untold.getMessage() == "bad 7"
    assert limit.dropped == 5


def test_what_is_left_out_is_told_soon_though_no_further_line_comes(log: Any) -> None:
    stream = log("text")
    later: list[Any] = []
    limit = RateLimit(2, clock=lambda: 100.0, later=later.append)
    logger = logging.getLogger("penstock.test")
    logger.addFilter(limit)
    try:
        for number in range(5):
            logger.warning("bad %d", number, extra={"node": "n"})
        assert len(later) == 1 and "left out" not in stream.getvalue()
        later.pop()()
        (line,) = stream.getvalue().splitlines()[2:]
        assert line.endswith(" WARNING penstock.test 3 lines were left out: bad %d node=n")
        logger.warning("bad")  # nothing was left out since
        limit.tell()
        assert stream.getvalue().count("left out") == 1 and not later
    finally:
        logger.removeFilter(limit)


def test_each_failed_request_has_its_line(log: Any) -> None:
    stream = log("text")
    limit = RateLimit(2, 100, clock=lambda: 100.0, later=lambda tell: None)
    logger = logging.getLogger("penstock.test")
    logger.addFilter(limit)
    try:
        for number in range(110):
            try:
                raise ValueError("why")
            except ValueError:
                logger.exception("request failed", extra={"request_id": f"r{number}."})
    finally:
        logger.removeFilter(limit)
    text = stream.getvalue()
    assert all(f"request_id=r{number}." in text for number in range(100))
    assert text.count("ValueError: why") == 2 and limit.dropped == 10


def test_the_kinds_that_are_remembered_are_limited() -> None:
    limit = RateLimit(1, clock=lambda: 0.0)
    for number in range(3 * MOST_KINDS):
        assert limit.filter(record(f"{number}"))
    assert len(limit._seconds) <= MOST_KINDS


def test_an_unread_log_stops_no_request(digit: bytes, digits: Path) -> None:
    """The server's standard error is a full pipe, and each request logs a line."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, b"." * 4096):
            pass
    os.set_blocking(writing, True)
    port = free_port()
    command = [sys.executable, "-m", "penstock", "serve", str(digits), "--port", str(port)]
    options = ["--access-log", "--max-log-buffer", "4096", "--drain-timeout", "1"]
    server = subprocess.Popen([*command, *options], stderr=writing)
    os.close(writing)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            until_ready(client, server)
            for _ in range(200):
                assert client.post("/predict/digits", content=digit).status_code == 200
            metrics = client.get("/metrics").text
            dropped = re.search(
                r'^penstock_log_dropped_total\{reason="full"\} (\S+)$', metrics, re.MULTILINE
            )
            assert dropped and float(dropped[1]) > 100
            read_until(reading, b"lines of the log were dropped")
            assert client.post("/predict/digits", content=digit).status_code == 200
            read_until(reading, b'"POST /predict/digits HTTP/1.1" 200')
            # Now it is read no more, and the server ends all the same.
            for _ in range(1000):
                assert client.get("/health/live").status_code == 200
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
        os.close(reading)


def test_every_answer_of_500_is_in_the_log(spawn: Any, tmp_path: Path) -> None:
    """By its request id: where a backend raised, and where its executor died."""
    (tmp_path / "ops.py").write_text(
        "import penstock\n"
        "def boom(data): raise RuntimeError('boom')\n"
        "def die(data): raise SystemExit('die')\n"
    )
    backends = {
        "boom": '[a]\nbackend = "Python[ops.py:boom]"\nmax = 4\n',
        "die": '[a]\nbackend = "Python[ops.py:die]"\n',
    }
    for name, text in backends.items():
        (tmp_path / f"{name}.toml").write_text(text)
    server = spawn("serve", tmp_path, "--port", "0")
    counts = {"boom": 100, "die": 3}
    ids = []
    with server.listening() as client:
        server.wait_for("ready after")
        for name, count in counts.items():
            for number in range(count):
                request_id = f"{name}-{number}-"
                ids.append(request_id)
                headers = {"X-Request-Id": request_id}
                answer = client.post(f"/predict/{name}", content=b"x", headers=headers)
                assert answer.status_code == 500, answer.text
    server.process.terminate()
    assert server.end() == 0
    log = "".join(server.lines)
    assert [request_id for request_id in ids if request_id not in log] == []


def test_an_exception_of_an_app_names_its_request(log: Any, running: Any) -> None:
    stream = log("text")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            raise ValueError("why")

    with running(app, http="penstock") as client:
        answer = client.get("/", headers={"X-Request-Id": "r1"})
    assert answer.status_code == 500 and answer.headers["x-request-id"] == "r1"
    assert "request_id=r1" in stream.getvalue()


def until_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with contextlib.suppress(httpx.ConnectError):
            if client.get("/health/ready").status_code == 200:
                return
    raise AssertionError("the server ended")


def read_until(reading: int, wanted: bytes) -> None:
    log = b""
    while wanted not in log:
        more = os.read(reading, 1 << 16)
        assert more, "the log ended"
        log = log[-len(wanted) :] + more
