"""`FrontRoutes`: which requests cross to the model process over the link. Others take a tunnel."""

from __future__ import annotations

import re
from typing import Any

from penstock.backends.errors import PenstockError
from penstock.backends.memory import Reservation, budget

from ...http.auth import check_key, client_of
from ...http.predict import route_of
from ...http.predict_call import PredictHead
from ...http.restriction import restriction_of
from ...server.direct_routes import MOST_BODY_BYTES, plain_path
from ...server.head import RequestHead
from ...settings import Settings
from .call import CrossingCall
from .checks import Checks
from .link import Links
from .nodes import FrontNodes, FrontPipeline
from .passing import PassingCall

MOST_CROSSING_BYTES = 16 << 20
"""The largest body that crosses whole. A larger one takes a tunnel, through which it flows: no
process holds it twice.
"""

UNCOUNTED_BYTES = 8192
"""So much of a body is not counted in `max_memory`: small requests spare the time. Connections do
the same.
"""

_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
_JSON_LENGTH = b"inference-header-content-length"

WHOLE = "whole"
"""An infer request, which crosses as it is."""


class FrontRoutes:
    """The routes of the requests that cross: those that `DirectRoutes` takes, and that pass the
    checks of the app's middleware.
    """

    def __init__(self, settings: Settings, links: Links, nodes: FrontNodes | None = None) -> None:
        """`nodes`: the front nodes; None: all nodes run in the model process."""
        self._links = links
        self._nodes = nodes
        self._settings = settings
        self._max_body = settings.max_body
        self._has_key = settings.api_key is not None
        self._restriction = restriction_of(settings.restricted_api) or None
        self._root_path = settings.root_path
        self._fetches = settings.allow_url
        self._checks = Checks(settings)

    def call_of(self, head: RequestHead, text: bytes, client: str | None) -> CrossingCall | None:
        """Make the call of a request. None if it has to take a tunnel."""
        route = head.direct
        if route is None:
            route = head.direct = self._route_of(head)
        if not route:
            return None
        forwarded = self._checks.forwarded_for(head, client)
        if forwarded is not None:
            client = forwarded[0]
        front = None
        if type(route) is PredictHead:
            front = None if self._nodes is None else self._nodes.find(route)
            if front is not None:
                front, client = self._checked(front, head, client)
            if front is None and head.length > MOST_BODY_BYTES:
                return None
        memory = None
        if head.length > UNCOUNTED_BYTES:
            memory = Reservation(budget)
            try:
                memory.resize(head.length, "a body")
            except PenstockError:  # a tunnel passes it on in pieces
                return None
        alignment = _alignment_of(head) if route is WHOLE else 0
        call = (
            CrossingCall(self._links, head, text, memory, alignment)
            if front is None
            else PassingCall(self._links, head, text, memory, front=front, share=client)
        )
        call.forwarded = forwarded
        return call

    def _checked(
        self, front: FrontPipeline, head: RequestHead, client: str | None
    ) -> tuple[FrontPipeline | None, str | None]:
        """Return the front nodes that a request may have run here, and whose share of them it
        takes. None: the model process says what is wrong with it.
        """
        if head.length > self._max_body:
            return None, client
        if self._has_key or self._restriction is not None:
            scope: dict[str, Any] = {"headers": head.fields, "client": client and (client, 0)}
            try:
                check_key(scope, self._settings)
                if self._restriction is not None:
                    self._restriction.check("inference", scope)
            except PenstockError:
                return None, client
            client = client_of(scope)
        return front, client

    def _route_of(self, head: RequestHead) -> PredictHead | str:
        path = plain_path(head, self._root_path)
        if path is None or head.length > MOST_CROSSING_BYTES or not self._checks.passes(head):
            return ""
        if (route := route_of(path)) is not None:
            asked = PredictHead(*route, head.fields, head.query)
            unusual = asked.many or asked.encoding is not None or asked.asks_for_events
            return "" if unusual or self._fetches else asked
        if head.method == b"POST" and _INFER.fullmatch(path):
            encoded = any(name == b"content-encoding" for name, _ in head.fields)
            return "" if encoded else WHOLE
        return ""


def _alignment_of(head: RequestHead) -> int:
    """Return where the tensors begin in the body of an infer request."""
    given = next((value for name, value in head.fields if name == _JSON_LENGTH), b"")
    return min(int(given), head.length) if given.isdigit() and len(given) < 10 else 0
