"""`FrontConnections`: the connections of a front. Another process answers all of their requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...server.calls import Routes
from ...server.connections import Connections, Tracked
from ...settings import Settings
from .tunnel import Tunnel


class FrontConnections(Connections):
    """The connections of a front. `on_change` is called soon after one has come or gone."""

    def __init__(self, settings: Settings, routes: Routes, on_change: Callable[[], None]) -> None:
        super().__init__(settings)
        self._routes = routes
        self._on_change = on_change
        self._changed = False

    def direct_routes(self, app: object, root_path: str = "") -> Routes | None:
        return self._routes

    def retire(self) -> None:
        super().retire()
        for connection in tuple(self.open):
            if isinstance(connection, Tunnel):
                connection.shutdown()

    def add(self, connection: Tracked, loop: asyncio.AbstractEventLoop) -> None:
        super().add(connection, loop)
        self._tell_soon()

    def remove(self, connection: Tracked) -> None:
        super().remove(connection)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._changed:
            self._changed = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._changed = False
        self._on_change()
