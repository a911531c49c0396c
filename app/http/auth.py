"""Authentication: a bearer API key, and an admin token for requests that change the server.

Every request except health and the files of the pages needs the API key, if one is set.
`Authenticate` is plain ASGI middleware, so it guards the hot routes too. It is installed only if an
API key is set. No middleware of ours guards the routes of `create_router`: they call `check_key` as
a dependency.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.backends.errors import PenstockError

from ..settings import Settings
from .errors import Forbidden, Unauthorized, problem
from .handshake import accept_message, close_message, key_offered
from .paths import is_protocol, path_of
from .request_id import request_id_of

OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key, because load balancers have none.

They are whole paths: a client could climb out of a prefix with `..`.
"""

WriteError = Callable[[Exception], tuple[int, Sequence[tuple[bytes, bytes]], bytes]]
"""Writes an error as status, headers and body, without Content-Length and X-Request-Id."""


class Authenticate:
    """ASGI middleware that answers 401 to requests without the API key or the admin token."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        protocol_error: WriteError,
        is_public: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        """`protocol_error` writes the 401 below /v2, where clients expect the protocol's form.

        `is_public`: whether a request needs no key, besides those to `OPEN_PATHS`.
        """
        self.app = app
        self._settings = settings
        self._protocol_error = protocol_error
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        try:
            check_key(scope, self._settings)
        except Unauthorized as error:
            if not self._is_public(scope):
                await refuse(scope, send, error, self._protocol_error)
                return
        await self.app(scope, receive, send)


async def refuse(
    scope: Scope, send: Send, error: PenstockError, protocol_error: WriteError
) -> None:
    """Answer a request, whose body was not read, with an error."""
    if scope["type"] == "websocket":  # browsers tell a page no status of a handshake
        await send(accept_message(scope))
        await send(close_message(error))
        return
    request_id = request_id_of(scope)
    if is_protocol(scope):
        status, more, body = protocol_error(error)
        headers = [*more, (b"content-length", b"%d" % len(body))]
    else:
        status, headers, body = problem(error, request_id)
    headers.append((b"x-request-id", request_id.encode()))
    # `close` keeps the server, and any proxy, from taking the rest of an upload for the beginning
    # of the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def check_key(scope: Any, settings: Settings) -> None:
    """Raise `Unauthorized` unless the request carries the API key or the admin token.

    If no API key is set, every request passes. `client_of` tells its key afterwards.
    """
    if settings.api_key is None:
        return
    token = _bearer(scope)
    if token is None:
        raise Unauthorized("expected the header Authorization: Bearer <API key>")
    if _equal(token, settings.api_key):
        scope.setdefault("penstock.client", "api_key")
    elif _equal(token, settings.admin_token):
        scope.setdefault("penstock.client", "admin_token")
    else:
        raise Unauthorized("the API key is wrong")


def client_of(scope: Any) -> str | None:
    """Return whose share of the server a request takes under overload.

    That is its key, by the name of the setting, if `check_key` has found one; a host that knows its
    clients better puts their names there. Else it is its address: one that a trusted proxy
    forwards, if the server has put that into the scope. None if neither is known, as on a Unix
    socket: such requests are of one client.
    """
    key: str | None = scope.get("penstock.client")
    if key is not None:
        return key
    address = scope.get("client")
    return None if address is None else address[0]


def check_admin(scope: Any, settings: Settings) -> None:
    """Raise `Forbidden` or `Unauthorized` unless the request may load and unload pipelines.

    `Forbidden`: the operator has not allowed it, or the request carries the API key.
    `Unauthorized`: it carries neither that nor the admin token.
    """
    if settings.admin_token is None or not settings.allow_model_control:
        raise Forbidden(
            "loading and unloading are off; PENSTOCK_ADMIN_TOKEN and "
            "PENSTOCK_ALLOW_MODEL_CONTROL=true turn them on"
        )
    check_admin_token(scope, settings)


def check_trace(scope: Any, settings: Settings) -> None:
    """Raise `Forbidden` or `Unauthorized`, as `check_admin` does, unless the request may be traced.

    A trace names nodes and keys, and says why a backend raised.
    """
    if settings.admin_token is None or not settings.allow_trace:
        raise Forbidden(
            "traces are off; PENSTOCK_ADMIN_TOKEN and PENSTOCK_ALLOW_TRACE=true turn them on"
        )
    check_admin_token(scope, settings)


def check_admin_token(scope: Any, settings: Settings) -> None:
    """Raise `Forbidden` for the API key, `Unauthorized` for anything except the admin token."""
    token = _bearer(scope)
    if token is not None and _equal(token, settings.admin_token):
        return
    if token is not None and _equal(token, settings.api_key):
        raise Forbidden("the API key is not enough for this: it needs the admin token")
    if token is not None:
        raise Unauthorized("the admin token is wrong")
    raise Unauthorized("expected the header Authorization: Bearer <admin token>")


def _bearer(scope: Any) -> bytes | None:
    """Return the token of the Authorization header, or that of a browser's WebSocket.

    None if the header is missing, or comes more than once: a proxy may have checked another one
    than we would.
    """
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values and scope.get("type") == "websocket":
        return key_offered(scope)
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def _equal(token: bytes, secret: SecretStr | None) -> bool:
    """Compare in constant time: the time must not show at which byte the two differ."""
    return secret is not None and hmac.compare_digest(token, secret.get_secret_value().encode())
