"""Who may do what: a bearer API key for everything but health, and an admin token for what changes the server.

`Authenticate` is plain ASGI, so that the hot routes stand behind it like all others. It is installed only where a key is set. The same
`check_key` is a dependency of `create_router`'s routes, which no middleware of ours protects.
"""

from __future__ import annotations

import hmac
from typing import Any

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from ..settings import Settings
from ..v2.call import error_answer
from .errors import Forbidden, Unauthorized, problem
from .paths import is_protocol, path_of
from .request_id import request_id_of

OPEN = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: load balancers have none. Written out, for a prefix could be climbed out of."""


class Authenticate:
    """ASGI middleware: 401 for requests without the API key or the admin token."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or path_of(scope) in OPEN:
            await self.app(scope, receive, send)
            return
        try:
            check_key(scope, self._settings)
        except Unauthorized as error:
            await _refuse(scope, send, error)
            return
        await self.app(scope, receive, send)


def check_key(scope: Any, settings: Settings) -> None:
    """Raises `Unauthorized` unless the request carries the API key, or the admin token, or neither is asked for."""
    if settings.api_key is None:
        return
    token = _bearer(scope)
    if token is None:
        raise Unauthorized("expected the header Authorization: Bearer <API key>")
    if not (_equal(token, settings.api_key) or _equal(token, settings.admin_token)):
        raise Unauthorized("the API key is wrong")


def check_admin(scope: Any, settings: Settings) -> None:
    """Raises `Forbidden` where the operator has not allowed changes, or for the API key; `Unauthorized` without the admin token."""
    if settings.admin_token is None or not settings.allow_model_control:
        raise Forbidden(
            "loading and unloading are off; PENSTOCK_ADMIN_TOKEN and PENSTOCK_ALLOW_MODEL_CONTROL=true turn them on"
        )
    check_admin_token(scope, settings)


def check_trace(scope: Any, settings: Settings) -> None:
    """Raises what `check_admin` raises, for a request that wants its trace: it names nodes and keys, and tells why a backend raised."""
    if settings.admin_token is None or not settings.allow_trace:
        raise Forbidden(
            "traces are off; PENSTOCK_ADMIN_TOKEN and PENSTOCK_ALLOW_TRACE=true turn them on"
        )
    check_admin_token(scope, settings)


def check_admin_token(scope: Any, settings: Settings) -> None:
    """Raises `Forbidden` for the API key, `Unauthorized` for anything else that is not the admin token."""
    token = _bearer(scope)
    if token is not None and _equal(token, settings.admin_token):
        return
    if token is not None and _equal(token, settings.api_key):
        raise Forbidden("the API key is not enough for this: it needs the admin token")
    raise Unauthorized("expected the header Authorization: Bearer <admin token>")


def _bearer(scope: Any) -> bytes | None:
    """The token of the Authorization header; None if there is none, or several (which one would a proxy have checked?)."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        return None
    scheme, _, token = found[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def _equal(token: bytes, secret: SecretStr | None) -> bool:
    """In a time that tells nothing about where they differ."""
    return secret is not None and hmac.compare_digest(token, secret.get_secret_value().encode())


async def _refuse(scope: Scope, send: Send, error: Unauthorized) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)})
        return
    request_id = request_id_of(scope)
    if is_protocol(scope):
        status, found, body = error_answer(error)
        headers = [*found, (b"content-length", b"%d" % len(body))]
    else:
        status, headers, body = problem(error, request_id)
    headers.append((b"x-request-id", request_id.encode()))
    # The body was not read. Saying so keeps an upload's rest from being taken for the next request's beginning, by proxies too.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
