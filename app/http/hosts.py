"""The hosts and origins that the operator allows: `allowed_hosts` and `cors_origins`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.backends.errors import InvalidRequest

from .auth import WriteError, refuse

EXPOSED_HEADERS = (
    "Inference-Header-Content-Length",
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Request-Id",
)
"""The headers of answers that scripts of other origins may read."""

CORS_METHODS = ("GET", "HEAD", "POST", "PUT")
"""The methods that scripts of other origins may use: all that a route has."""


class AllowedHosts:
    """ASGI middleware that answers 400 to requests for other hosts.

    A browser can be made to send requests for any name to this address (DNS rebinding), and then
    lets the page of that name read the answers.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], protocol_error: WriteError) -> None:
        """`hosts`: names in lower case, without ports; `*.example.com` are those below it."""
        self.app = app
        self._names = frozenset(hosts)
        self._endings = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._protocol_error = protocol_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.allows(scope["headers"]):
            await self.app(scope, receive, send)
        else:
            error = InvalidRequest(
                "the Host header is missing or names no host of this server (allowed_hosts)"
            )
            await refuse(scope, send, error, self._protocol_error)

    def allows(self, fields: Iterable[tuple[bytes, bytes]]) -> bool:
        """Return whether a request with these header fields is for an allowed host."""
        if "*" in self._names:
            return True
        values = [value for name, value in fields if name == b"host"]
        if len(values) != 1:
            return False
        host = host_of(values[0].decode("latin-1"))
        return host in self._names or host.endswith(self._endings)


def host_of(value: str) -> str:
    """Return the name of a Host header: lower case, without the port and a dot at the end."""
    value = value.strip().lower()
    name = value.partition("]")[0][1:] if value.startswith("[") else value.partition(":")[0]
    return name.removesuffix(".")
