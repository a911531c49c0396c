"""The access log: a line for each request, once it has ended.

The server makes an `Access` for a request if the log is on, and puts it into the ASGI scope as
`penstock.access`. The handlers of predict and infer requests note in it what ran.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from .exchange import Exchange

logger = logging.getLogger("penstock.access")

MAX_PATH_CHARACTERS = 1024
"""The most characters of a path and its query that a line shows."""

MAX_CLIENT_CHARACTERS = 64
"""The most characters of a client's address, which a proxy may have sent."""

_PATH_CHARACTERS = "%/:@!$&()*+,;=~-._?"
"""Characters of a path that can't be taken for the end of it, or steer a terminal."""


class Call(Protocol):
    """A predict or infer request."""

    def pipeline_name(self) -> str | None: ...


class Access:
    """One request, as its line in the access log shows it."""

    __slots__ = ("_call", "_client", "_method", "_path", "_runs", "_started", "_version")

    def __init__(
        self, client: tuple[str, int] | None, method: str, path: bytes, query: bytes, version: str
    ) -> None:
        """`path` and `query`: as the client wrote them."""
        self._client = client
        self._method = method
        self._path = path + b"?" + query if query else path
        self._version = version
        self._started = time.perf_counter()
        self._call: Call | None = None
        self._runs: Callable[[], Sequence[Any]] = tuple

    def follow(self, call: Call, runs: Callable[[], Sequence[Any]]) -> None:
        """Take the pipeline and the times from here when the line is written."""
        self._call = call
        self._runs = runs

    def log(
        self,
        status: int,
        size: int,
        request_id: str | None,
        client: tuple[str, int] | None = None,
    ) -> None:
        """Write the line. `size`: bytes of the answer's body. `client`: if a proxy told it."""
        host, port = client or self._client or ("", 0)
        address = f"{host[:MAX_CLIENT_CHARACTERS]}:{port}" if host else ""
        path = quote(self._path[: MAX_PATH_CHARACTERS + 1], _PATH_CHARACTERS)
        if len(path) > MAX_PATH_CHARACTERS:
            path = f"{path[:MAX_PATH_CHARACTERS]}…"
        fields: dict[str, Any] = {
            "client": address,
            "method": self._method,
            "path": path,
            "status": status,
            "bytes": size,
            "ms": _milliseconds(time.perf_counter() - self._started),
        }
        spent = [run.spent() for run in self._runs() if hasattr(run, "spent")]
        if spent:  # of several images, the slowest
            queued, ran = max(spent, key=sum)
            fields["queue_ms"] = _milliseconds(queued)
            fields["run_ms"] = _milliseconds(ran)
        pipeline = None if self._call is None else self._call.pipeline_name()
        self._call, self._runs = None, tuple  # they may hold the request, which holds this
        logger.info(
            '%s - "%s %s HTTP/%s" %d',
            address,
            self._method,
            path,
            self._version,
            status,
            extra={"request_id": request_id, "pipeline": pipeline, "access": fields},
        )


def follow(scope: Any, call: Call, exchange: Exchange) -> None:
    """Let the access log, if it is on, take pipeline and times from the request of a scope."""
    access: Access | None = scope.get("penstock.access")
    if access is not None:
        access.follow(call, lambda: exchange.runs)


def _milliseconds(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 3)
