"""Make the answers of the routes below /requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from heapq import merge
from typing import Any

from penstock.backends.errors import InvalidRequest, NotFound

from .around import Surroundings
from .explain import Explanation
from .record import Record
from .ring import History
from .words import time_text

DEFAULT_LIMIT = 50
MAX_LIMIT = 500

KINDS = ("slow", "failed", "recent")


class UnknownRequest(NotFound):
    """Raised if no request is remembered by an id."""

    code = "unknown_request"


class HistoryOff(NotFound):
    """Raised if no requests are remembered."""

    code = "history_off"


def list_requests(
    history: History | None, pipeline: str | None, kind: str | None, limit: str | None
) -> dict[str, Any]:
    """Describe the requests that are asked for. Raises `HistoryOff`, `InvalidRequest`.

    Takes some ms for a full history.
    """
    history = _on(history)
    if kind is not None and kind not in KINDS:
        raise InvalidRequest(f"kind is {kind[:100]!r}: expected {', '.join(KINDS)}")
    most = DEFAULT_LIMIT if limit is None else _limit(limit)
    chosen: list[Record] = []
    for record in _of_kind(history, kind):
        if len(chosen) == most:
            break
        if pipeline is None or record.pipeline == pipeline:
            chosen.append(record)
    around = Surroundings(history, chosen)
    return {
        "requests": [Explanation(record, around).head() for record in chosen],
        "remembered": len(history),
        "request_history": history.size,
    }


def explain_request(history: History | None, request_id: str) -> dict[str, Any]:
    """Explain a request. Raises `HistoryOff`, `UnknownRequest`. Takes some ms for a full history.

    The id may be that of one item of a request, as the log has it: `photo/3`. Of several requests
    with one id it is the newest.
    """
    history = _on(history)
    record = history.find(request_id)
    whole, _, item = request_id.rpartition("/")
    if record is None and item.isdecimal():
        record = history.find(whole)
    if record is None:
        raise UnknownRequest(_unknown(history, request_id))
    return Explanation(record, Surroundings(history, [record])).story()


def _on(history: History | None) -> History:
    if history is None:
        raise HistoryOff(
            "no requests are remembered: the operator has turned that off (request_history = 0)"
        )
    return history


def _limit(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= MAX_LIMIT:
        return int(text)
    raise InvalidRequest(f"limit is {text[:100]!r}: expected a number from 1 to {MAX_LIMIT}")


def _of_kind(history: History, kind: str | None) -> Iterator[Record]:
    if kind == "recent":
        return history.recent()
    if kind == "slow":
        return history.slow()
    if kind == "failed":
        return history.failed()
    return _slow_and_failed(history)


def _slow_and_failed(history: History) -> Iterator[Record]:
    last: Record | None = None
    for record in merge(history.slow(), history.failed(), key=_ended, reverse=True):
        if record is not last:  # it was both
            yield record
        last = record


def _ended(record: Record) -> float:
    return record.ended


def _unknown(history: History, request_id: str) -> str:
    """Make the error text for an unknown id. It says how far back the history reaches."""
    text = f"no request {request_id[:200]!r} is remembered"
    oldest: Record | None = None
    for record in history.recent():
        oldest = record
    if oldest is None:
        return f"{text}: there was none yet"
    ago = time_text(max(0.0, time.monotonic() - oldest.ended) * 1000)
    return (
        f"{text}: {len(history)} of the last {history.size} are (request_history), the oldest from "
        f"{ago} ago"
    )
