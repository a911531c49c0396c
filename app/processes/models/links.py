"""`FrontLinks`: the links of the model process to all fronts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection

import uvicorn
from uvicorn.server import ServerState

from ...server.connections import Connections
from ..messages import PRESSURE
from .link import ModelLink
from .shared import Shared


def _no_table() -> bytes:
    return b""


class FrontLinks:
    """All links. Before the first one, `open` is called, in the event loop that serves.

    `table`: makes the table of front nodes, which every front gets. `on_linked`: called with the
    number of a front once it is linked.
    """

    def __init__(self, connections: Connections) -> None:
        self.table: Callable[[], bytes] = _no_table
        self.loaded = False
        """The model process has loaded its pipelines."""
        self.on_linked: Callable[[int], None] = lambda number: None
        self._connections = connections
        self._shared: Shared
        self._open: set[ModelLink] = set()
        self._linked: dict[int, ModelLink] = {}

    def __repr__(self) -> str:
        return f"<FrontLinks {sorted(self._linked)}>"

    @property
    def numbers(self) -> Collection[int]:
        """The fronts that are linked."""
        return self._linked.keys()

    def open(self, config: uvicorn.Config, state: ServerState) -> None:
        """Take the configuration and the state of uvicorn's server, which has loaded its app."""
        self._shared = Shared(config, state, self._connections)

    def add(self, number: int, descriptor: int) -> None:
        """Begin a link to front `number`, on a SEQPACKET socket that this owns from now on."""
        end = socket.socket(fileno=descriptor)
        self._open.add(ModelLink(self._shared, number, end, self._on_linked, self._on_ended))

    def send_table(self) -> None:
        """Tell all fronts that pipelines have changed."""
        table = self.table()
        for link in self._linked.values():
            link.send_table(table, self.loaded)

    def send_pressure(self, name: str, on: bool) -> None:
        for link in self._linked.values():
            link.send((PRESSURE, name, on))

    async def query(self, payload: bytes, seconds: float) -> list[tuple[int, bytes]]:
        """Ask every front about itself. Return the answers of those that answered in time, by
        their numbers.
        """
        asked = {number: link.query(payload) for number, link in self._linked.items()}
        if not asked:
            return []
        await asyncio.wait(asked.values(), timeout=seconds)
        answers: list[tuple[int, bytes]] = []
        for number, answered in asked.items():
            content = answered.result() if answered.done() else None
            answered.cancel()
            if content is not None:
                answers.append((number, content))
        return answers

    def close(self) -> None:
        """End all links."""
        for link in tuple(self._open):
            link.close()

    def _on_linked(self, link: ModelLink) -> None:
        self._linked[link.number] = link
        link.send_table(self.table(), self.loaded)
        self.on_linked(link.number)

    def _on_ended(self, link: ModelLink) -> None:
        self._open.discard(link)
        if self._linked.get(link.number) is link:
            del self._linked[link.number]
