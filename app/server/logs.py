"""How a server writes its log: one line an event, as text or JSON, with what came from clients made harmless.

Only `penstock serve` calls `configure_logging`: in a host's process, logging is the host's. Modules log to children of the logger
`penstock` and name the request, pipeline and node by `extra`; these become fields here.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from penstock.backends.text import encodable

FIELDS = ("request_id", "pipeline", "node")
"""What a record may carry besides its message, in this order."""

# Control characters (line ends, terminal sequences), the line ends of Unicode, what reverses the direction of text, half characters.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: str) -> str:
    """The text on one line, in which nobody can forge another one: `\\n` instead of a line end."""
    return _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in FIELDS if (value := getattr(record, name, None))}


class TextFormatter(logging.Formatter):
    """`2026-11-20T12:00:00.000Z INFO penstock.http message pipeline=digits request_id=…`; a traceback follows, its lines marked by `|`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={escape(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {escape(record.getMessage())}{fields}"
        if record.exc_info:
            # marked, for the exception's text may be a client's and look like a line of ours
            line += "".join(
                f"\n  | {escape(each)}"
                for each in self.formatException(record.exc_info).split("\n")
            )
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, pipeline, node, exception."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, str] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        entry |= {"message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # as text without half characters, which no JSON can carry
        entry = {key: encodable(value) for key, value in entry.items()}
        return orjson.dumps(entry).decode()


def configure_logging(
    level: str = "info", style: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Send the log of this process to `stream` (standard error), uvicorn's in the same form. Calling it again replaces what was set."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    # uvicorn says at "info" what we say ourselves; its access log only speaks where it is switched on
    levels = {
        "penstock": level.upper(),
        "uvicorn.error": "WARNING",
        "uvicorn.access": "INFO",
        "asyncio": "WARNING",
    }
    for name, least in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(least)
