"""`Shared`: what all links of the model process have in common."""

from __future__ import annotations

import logging
from itertools import count
from typing import cast

import uvicorn
from uvicorn.server import ServerState

from penstock.backends.memory import budget

from ...http.access import logger as access_logger
from ...http.predict import HotRoutes
from ...server.connections import Connections
from .. import arena
from .calls import CrossedRoutes
from .tunnels import Tunnels


class Shared:
    """`config` and `state` are those of uvicorn's server.

    `routes`: those of crossed requests, which the fronts have checked. `logs`: fronts write an
    access log. `queries`: the numbers of the next queries.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, connections: Connections
    ) -> None:
        self.connections = connections
        hot = cast("HotRoutes", config.app.hot_routes_behind_checks())  # type: ignore[union-attr]
        self.routes = CrossedRoutes(hot, config.root_path)
        self.logs = config.access_log and access_logger.isEnabledFor(logging.INFO)
        self.arena_bytes = min(budget.limit, arena.MOST_BYTES)
        self.tunnels = Tunnels(config, state, connections)
        self.queries = count()
        self._state = state

    def default_head(self) -> bytes:
        """Return the headers of every answer, as lines."""
        return self.connections.default_head(self._state.default_headers)
