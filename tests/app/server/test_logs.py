"""The log of a server: one line an event, whatever text a client sends."""

from __future__ import annotations

import io
import logging
from typing import Any

import orjson
import pytest

from penstock.app.server.logs import configure_logging

EVIL = "a\nINFO forged\r\x1b[31m\u2028b\u202ec\x00d\x85e\ud800"


@pytest.fixture
def log() -> Any:
    """A function that configures logging with a style and returns the stream."""
    names = ("penstock", "uvicorn.error", "uvicorn.access", "asyncio")
    before = {
        name: (list(logger.handlers), logger.propagate, logger.level)
        for name in names
        if (logger := logging.getLogger(name))
    }

    def configure(style: Any, level: Any = "info") -> Any:
        stream = io.StringIO()
        configure_logging(level, style, stream)
        return stream

    yield configure
    for name, (handlers, propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


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
