"""The log of a server: one line an event, as text or JSON, which a client's text can't break.

Only `penstock serve` calls `configure_logging`; in a host's process, logging is the host's. Modules
log to children of the logger `penstock`, and name the request, pipeline and node by `extra`. These
become fields here.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from penstock.backends.text import encodable

RECORD_FIELDS = ("request_id", "pipeline", "node")
"""The fields of a record besides its message, in the order in which they are written."""

# Control characters (line ends, terminal sequences), Unicode's line ends, characters that reverse
# the direction of text, lone surrogates.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escape(text: str) -> str:
    """Return `text` on one line, with `\\n` for a line end, so that it can't forge another line."""
    return _HARMFUL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _fields(record: logging.LogRecord) -> dict[str, str]:
    return {name: str(value) for name in RECORD_FIELDS if (value := getattr(record, name, None))}


class TextFormatter(logging.Formatter):
    """`2026-11-20T12:00:00.000Z INFO penstock.http message pipeline=digits request_id=…`

    A traceback follows on lines of its own, each marked by `|`.
    """

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, record.name, escape(record.getMessage())]
        parts += [f"{name}={escape(value)}" for name, value in _fields(record).items()]
        line = " ".join(parts)
        if record.exc_info:
            # Marked, because the text of the exception may be a client's and look like a log line.
            traceback = self.formatException(record.exc_info)
            line += "".join(f"\n  | {escape(text)}" for text in traceback.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line.

    Its keys: time, level, logger, message, request_id, pipeline, node, exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        line |= {"message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps({key: encodable(value) for key, value in line.items()}).decode()


def configure_logging(
    level: str = "info", style: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Send the log of this process, uvicorn's included, to `stream` (default: standard error).

    A second call replaces what the first one set.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    levels = {
        "penstock": level.upper(),
        "uvicorn.error": "WARNING",  # at INFO it says what we say ourselves
        "uvicorn.access": "INFO",  # it logs only if the access log is on
        "asyncio": "WARNING",
    }
    for name, lowest in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(lowest)
