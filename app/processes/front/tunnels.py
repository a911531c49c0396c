"""`FrontTunnels`: takes the requests that do not cross over the link."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from penstock.backends.errors import NotReady

from ...server.calls import Lender
from ...server.connections import Connections
from ...server.head import RequestHead
from .answers import live, not_ready
from .link import FrontLink, Links
from .tunnel import Tunnel

LIVE_PATHS = (b"/health/live", b"/v2/health/live")


class FrontTunnels:
    """The tunnels of a front. `tls`: clients' connections are encrypted."""

    def __init__(
        self, connections: Connections, links: Links, default_head: Callable[[], bytes], tls: bool
    ) -> None:
        self.connections = connections
        self.default_head = default_head
        self.tls = tls
        self._links = links

    def take(self, lender: Lender, head: RequestHead, data: bytes) -> None:
        """Take a connection, of which `data` has been received from `head` on."""
        link = self._links.for_request()
        if link is None:
            is_live = head.path in LIVE_PATHS and head.method in (b"GET", b"HEAD")
            if is_live:
                lender.refuse(*live(self.default_head()))
            else:
                self._refuse(lender, head)
            return
        refuse = partial(self._refuse, lender, head, link=link)
        tunnel = Tunnel(self.connections, lender, data, refuse, self.tls)
        try:
            tunnel.open(link)
        except OSError:
            self.connections.count_lack()
            self._refuse(lender, head, NotReady("the server is out of file descriptors"))

    def _refuse(
        self,
        lender: Lender,
        head: RequestHead,
        error: NotReady | None = None,
        link: FrontLink | None = None,
    ) -> None:
        """Answer a request that no model process can take. `link`: over which one has not."""
        if link is not None and link is self._links.current:
            error = NotReady("the model process could not take the connection")
        lender.refuse(*not_ready(head, self.default_head(), error or self._links.reason))
