"""Which requests a connection answers itself: `DirectRoutes`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from ..http.predict import HotRoutes, route_of
from ..http.predict_call import (
    PredictHead,
)
from ..v2.infer.infer_call import InferHead
from ..v2.routes import ProtocolApp
from .direct_infer import DirectInfer
from .direct_predict import DirectPredict
from .head import RequestHead

_route_of_path = lru_cache(256)(route_of)


DIRECT_METHODS = frozenset({b"POST", b"PUT"})

MOST_BODY_BYTES = 1 << 18
"""The largest body of a predict request that is taken here."""


class DirectRoutes:
    """The routes of an app whose requests a connection may answer itself."""

    predict_type = DirectPredict
    infer_type = DirectInfer
    most_body = MOST_BODY_BYTES

    def __init__(self, hot: HotRoutes, root_path: str = "") -> None:
        rules = hot.predict.rules
        # The fetch of an image by URL is a task, and which request needs one only its body says.
        self._rules = rules
        self._fetches = rules.fetch is not None
        self._protocol = cast("ProtocolApp", hot.protocol)
        self._root_path = root_path

    def call_of(
        self, head: RequestHead, text: bytes, client: str | None
    ) -> DirectPredict | DirectInfer | None:
        """Make the call of a request. None if the app has to answer it.

        `text`: the bytes of the head. `client`: the address that it comes from.
        """
        route = head.direct
        if route is None:
            route = head.direct = self._route_of(head)
        if type(route) is PredictHead:
            pipeline = self._rules.pipelines.pipelines.get(route.name)
            if pipeline is not None and pipeline.stream_input is not None:
                return None
            return self.predict_type(self._rules, route, 0.0, client)
        if type(route) is InferHead:
            return self.infer_type(self._protocol, route, client)
        return None

    def _route_of(self, head: RequestHead) -> PredictHead | InferHead | str:
        """Return what a head asks for; "" if the app has to answer it."""
        path = plain_path(head, self._root_path)
        if path is None:
            return ""
        if (route := _route_of_path(path)) is not None:
            asked = PredictHead(*route, head.fields, head.query)
            unusual = (
                asked.many
                or asked.encoding is not None
                or asked.asks_for_events
                or head.length > self.most_body
            )
            return "" if unusual or self._fetches else asked
        if head.method == b"POST" and path.startswith("/v2/models/"):
            names = self._protocol.names_of_infer(path)
            if names is not None:
                infer = InferHead(names, head.fields)
                return infer if infer.encoding is None else ""
        return ""


def plain_path(head: RequestHead, root: str) -> str | None:
    """Return the path, below the root path, of a request that may need no app; None: it does."""
    if not (head.plain and head.length and head.method in DIRECT_METHODS):
        return None
    path = head.path.decode("ascii")
    if root:
        path = without_root(path, root)
    return None if "%" in path else path


def without_root(path: str, root: str) -> str:
    """Return a path without the root path, with which some proxies send it."""
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def routes_of(app: Any, root_path: str = "") -> DirectRoutes | None:
    """Return the routes of an app that a connection may answer itself: those that nothing of it
    stands before. None for an app that is not ours.
    """
    find = getattr(app, "hot_routes", None)
    hot = cast("HotRoutes | None", find()) if find is not None else None
    if hot is None or not isinstance(hot.protocol, ProtocolApp):  # it shadows another server
        return None
    return DirectRoutes(hot, root_path)
