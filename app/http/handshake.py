"""WebSocket handshakes and closes: how a socket is accepted or refused, and what its codes mean."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Message

from penstock.backends.errors import InvalidRequest

from ..settings import Settings, split
from .errors import Forbidden, code_of, detail_of, status_of

PROTOCOL = "penstock"
"""The subprotocol that the server chooses, if a client offers it."""

BEARER_PREFIX = "penstock.bearer."
"""A subprotocol that starts so carries the key, in base64url: browsers can set no header."""

CLOSE_CODES = {
    400: 1007,
    401: 1008,
    403: 1008,
    404: 1008,
    413: 1009,
    415: 1003,
    422: 1007,
    429: 1013,
    503: 1013,
}
"""Status of an error -> close code (RFC 6455, 7.4.1). Any other status is 1011, a failure."""

MAX_REASON_BYTES = 123


class FellSilent(InvalidRequest):
    """Raised if nothing of a streamed input arrives for too long."""


def accept_message(scope: Any) -> Message:
    """Make the ASGI message that accepts a socket."""
    chosen = {"subprotocol": PROTOCOL} if PROTOCOL in scope.get("subprotocols", ()) else {}
    return {"type": "websocket.accept", **chosen}


def close_message(error: BaseException) -> Message:
    """Make the ASGI message that closes a socket because of an error: `code: detail`."""
    code = CLOSE_CODES.get(status_of(error).http, 1011)
    if isinstance(error, FellSilent):
        code = 1008
    reason = f"{code_of(error)}: {detail_of(error)}".encode("utf-8", "replace")
    if len(reason) > MAX_REASON_BYTES:
        reason = reason[: MAX_REASON_BYTES - len("…".encode())]
        return _close(code, reason.decode("utf-8", "ignore") + "…")
    return _close(code, reason.decode())


def _close(code: int, reason: str) -> Message:
    return {"type": "websocket.close", "code": code, "reason": reason}


def key_offered(scope: Any) -> bytes | None:
    """Return the key that a client offers as a subprotocol; None if it offers none, or several."""
    offered: Sequence[str] = scope.get("subprotocols", ())
    texts = [name[len(BEARER_PREFIX) :] for name in offered if name.startswith(BEARER_PREFIX)]
    if len(texts) != 1:
        return None
    try:
        return base64.b64decode(texts[0] + "=" * (-len(texts[0]) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None


def check_origin(scope: Any, settings: Settings) -> None:
    """Raise `Forbidden` for a page of another origin that `cors_origins` does not name.

    A browser lets any page open a socket to any server, and sends no CORS request before.
    """
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if not origins:
        return  # not a browser
    allowed = split(settings.cors_origins)
    if len(origins) == 1 and ("*" in allowed or origins[0] in allowed):
        return
    try:
        host = urlsplit(origins[0]).netloc.lower()
    except ValueError:
        host = ""
    if len(origins) != 1 or not host or [host] != [given.lower() for given in hosts]:
        raise Forbidden("pages of this origin may not use the server (cors_origins)")
