"""Translates between gRPC's calls and the rest of the server.

Metadata become the headers of a scope, so that keys, restrictions and admin tokens are checked by
the code that checks them for HTTP. An error becomes a status code and a text.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc

from ..http.auth import check_key
from ..http.errors import code_of, status_of
from ..http.restriction import GRPC_PREFIX
from ..settings import Settings
from ..v2.call import ProtocolCall, ProtocolError, message_of, shortened
from ..v2.routes import Guard
from .proxies import TrustedProxies

MAX_DETAIL_BYTES = 4096
"""The longest text of an error as it travels: clients take trailing metadata of 8 KiB."""

ENCODED_BYTES = 3
"""The bytes of one that is percent-encoded, as all beyond printable ASCII are."""

STATUS_BY_CODE = {
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "cancelled": grpc.StatusCode.CANCELLED,
    "unknown": grpc.StatusCode.UNKNOWN,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Statuses by our codes, where the status that HTTP has is not the one that gRPC's users expect."""

STATUS_BY_HTTP = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.UNAVAILABLE,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Statuses by those of the protocol over HTTP, which are Triton's."""


def scope_of(context: Any, proxies: TrustedProxies) -> dict[str, Any]:
    """Return the scope of a call: its metadata as `headers`, and its `client`."""
    headers = [_header(*field) for field in context.invocation_metadata() or ()]
    client = _client(context.peer())
    if proxies and client is not None:
        forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        host = proxies.client(client[0], forwarded.decode("latin-1"))
        if host != client[0]:
            client = host, 0
    return {"type": "grpc", "headers": headers, "client": client}


def _header(key: str, value: str | bytes) -> tuple[bytes, bytes]:
    name = key.removeprefix(GRPC_PREFIX)
    return name.encode(), value if isinstance(value, bytes) else value.encode()


@lru_cache(256)
def _client(peer: str) -> tuple[str, int] | None:
    """Return address and port of a peer such as `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    kind, _, place = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return None
    host, _, port = unquote(place).rpartition(":")
    return host.strip("[]").removeprefix("::ffff:"), int(port)


def check_call(
    scope: dict[str, Any], group: str, settings: Settings, guard: Guard, *, is_open: bool = False
) -> None:
    """Raise `Unauthorized` or `Forbidden` unless the call may use the APIs of a group.

    `is_open`: it needs no API key, because load balancers have none.
    """
    if not is_open:
        check_key(scope, settings)
    guard(group, scope)


def status_code_of(error: BaseException) -> Any:
    """Return the `grpc.StatusCode` of an error."""
    if isinstance(error, ProtocolError):
        status = error.protocol_status
    elif (code := STATUS_BY_CODE.get(code_of(error))) is not None:
        return code
    else:
        status = status_of(error).protocol
    internal = grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL
    return STATUS_BY_HTTP.get(status, internal)


def detail_of(error: BaseException) -> str:
    """Return the text of an error, short enough for the trailing metadata."""
    text = shortened(message_of(error), MAX_DETAIL_BYTES)
    size = len(text.encode())
    if size == len(text) and text.isprintable() and "%" not in text:
        return text
    return shortened(text, MAX_DETAIL_BYTES // (4 * ENCODED_BYTES))  # of UTF-8's 4 bytes each


class RpcCall(ProtocolCall):
    """A call by gRPC of one of the protocol's ordinary routes. `arguments`: its JSON, as a dict."""

    __slots__ = ("_arguments",)

    def __init__(
        self,
        scope: dict[str, Any],
        names: dict[str, str],
        arguments: dict[str, Any],
        settings: Settings,
    ) -> None:
        super().__init__(scope, _nothing, names, settings)
        self._arguments = arguments

    async def json(self) -> dict[str, Any]:
        return self._arguments


async def _nothing() -> Any:
    raise RuntimeError("a call by gRPC has no body")
