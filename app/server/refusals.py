"""The answers to what reaches no app: malformed heads, heads beyond a limit, too many connections.

Each is a problem, as all our errors are (app/http/errors.py).
"""

from __future__ import annotations

from penstock.backends.errors import InvalidRequest, NotReady, PenstockError, TooLarge

from ..http.errors import problem
from .asgi import STATUS_LINES


class HeadTooLarge(TooLarge):
    """Raised for a head with more bytes or fields than the settings allow."""

    status = 431


class HeadTooLate(InvalidRequest):
    """Raised for a head that is not complete within `head_timeout`."""

    status = 408


class UnsupportedVersion(InvalidRequest):
    """Raised for a request that is not of HTTP/1.1 or 1.0."""

    status = 505


class TooManyConnections(NotReady):
    """Raised for a connection above `max_connections`."""


def refusal(error: PenstockError, default_head: bytes = b"") -> bytes:
    """Return the whole answer for `error`. The connection closes after it."""
    status, headers, body = problem(error)
    lines = [STATUS_LINES[status], default_head]
    for name, value in [*headers, (b"connection", b"close")]:
        lines += [name, b": ", value, b"\r\n"]
    return b"".join([*lines, b"\r\n", body])
