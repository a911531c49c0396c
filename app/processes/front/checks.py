"""`Checks`: what the app's middleware does to a request before it is answered, done in a front."""

from __future__ import annotations

import contextlib
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ...http.hosts import AllowedHosts
from ...server.head import RequestHead
from ...settings import Settings, split
from ...v2.call import error_answer


class Checks:
    """The checks of `allowed_hosts`, `cors_origins` and `trusted_proxies`.

    A request that fails one takes a tunnel: the model process answers it, by the same middleware.
    """

    def __init__(self, settings: Settings) -> None:
        hosts = split(settings.allowed_hosts)
        self._hosts = AllowedHosts(_ended, hosts, error_answer) if hosts else None
        self._crosses = not split(settings.cors_origins)  # else each answer gets more headers
        proxies: list[str] | str = split(settings.trusted_proxies)
        self._proxies: Any = None
        if proxies:
            proxies = "*" if "*" in proxies else proxies
            ended: Any = _ended  # uvicorn has types of its own for the same
            self._proxies = ProxyHeadersMiddleware(ended, proxies)

    def passes(self, head: RequestHead) -> bool:
        """Return whether a request with this head may cross."""
        return self._crosses and (self._hosts is None or self._hosts.allows(head.fields))

    def forwarded_for(self, head: RequestHead, address: str | None) -> tuple[str, int] | None:
        """Return the client for which a trusted proxy has sent a request, as uvicorn finds it.

        `address`: that of the other end of the connection. None: no proxy names a client.
        """
        if self._proxies is None:
            return None
        sender = None if address is None else (address, 0)
        scope: Scope = {"type": "http", "scheme": "", "client": sender, "headers": head.fields}
        with contextlib.suppress(StopIteration):  # it waits for nothing
            self._proxies(scope, None, None).send(None)
        client: tuple[str, int] | None = scope["client"]
        return None if client is sender else client


async def _ended(scope: Scope, receive: Receive, send: Send) -> None: ...
