"""`FrontTunnels`: takes the requests that do not cross over the link."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from penstock.backends.errors import NotReady

from ...server.asgi import STATUS_LINES
from ...server.calls import Lender
from ...server.connections import Connections
from ...server.head import RequestHead
from .answers import not_ready
from .link import Links
from .tunnel import Tunnel

LIVE_PATHS = (b"/health/live", b"/v2/health/live")
LIVE_BODY = b'{"live":true}'
LIVE_LINES = (
    b"content-length: %d\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    % (len(LIVE_BODY))
)


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
        link = self._links.current
        if link is None:
            is_live = head.path in LIVE_PATHS and head.method in (b"GET", b"HEAD")
            lender.refuse(self._live(head) if is_live else self.not_ready(head))
            return
        refusal = partial(self.not_ready, head)
        tunnel = Tunnel(self.connections, lender, data, refusal, self.tls)
        try:
            tunnel.open(link)
        except OSError:
            self.connections.count_lack()
            lender.refuse(self.not_ready(head, NotReady("the server is out of file descriptors")))

    def not_ready(self, head: RequestHead, error: NotReady | None = None) -> bytes:
        """Return the whole answer to a request that no model process can take."""
        _, start, body = not_ready(head, self.default_head(), error or self._links.refusal)
        return b"%bconnection: close\r\n\r\n%b" % (start, b"" if head.method == b"HEAD" else body)

    def _live(self, head: RequestHead) -> bytes:
        """Return the answer to a request for liveness while there is no model process."""
        body = b"" if head.method == b"HEAD" else LIVE_BODY
        return b"%b%b%b%b" % (STATUS_LINES[200], self.default_head(), LIVE_LINES, body)
