"""`Shared`: what all links of the model process have in common."""

from __future__ import annotations

import logging
from itertools import count

import uvicorn
from uvicorn.server import ServerState

from penstock.backends.memory import budget

from ...http.access import logger as access_logger
from ...server.connections import Connections
from ...server.direct_routes import DirectRoutes, routes_of
from .. import arena
from .calls import CrossedRoutes
from .tunnels import Tunnels


class Shared:
    """`config` and `state` are those of uvicorn's server.

    `routes`: None if something of the app sees all requests: then all take tunnels. `logs`: fronts
    write an access log. `queries`: the numbers of the next queries.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, connections: Connections
    ) -> None:
        self.connections = connections
        self.routes: DirectRoutes | None = routes_of(
            config.loaded_app, config.root_path, CrossedRoutes
        )
        self.logs = config.access_log and access_logger.isEnabledFor(logging.INFO)
        self.arena_bytes = min(budget.limit, arena.MOST_BYTES)
        self.tunnels = Tunnels(config, state, connections)
        self.queries = count()
        self._state = state

    def default_head(self) -> bytes:
        """Return the headers of every answer, as lines."""
        return self.connections.default_head(self._state.default_headers)
