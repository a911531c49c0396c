"""The part of a pipeline's work that other processes of the server do, as far as this one knows.

A pipeline may have nodes that also run in other processes. Their counters are added to those of its
own nodes; what is only true of a moment, such as a queue's depth, is asked for here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .pipeline import Pipeline


class NodeGauges(NamedTuple):
    """The state of a node at a moment: rows that queue, bytes of results that later nodes
    have not finished, executors that are up and busy, for how long the busy ones have run together.

    `instances` describes each executor as `/status` does.
    """

    queued: int = 0
    ahead_bytes: int = 0
    executors: int = 0
    busy: int = 0
    running_seconds: float = 0.0
    instances: Sequence[Mapping[str, Any]] = ()


NOTHING = NodeGauges()


class MemoryUse(NamedTuple):
    """Bytes that requests hold, and may hold; how many were refused for want of room."""

    used: int = 0
    limit: int = 0
    refused: int = 0


class OtherProcesses:
    """The other processes of a server that has none: this one does everything."""

    @property
    def not_ready(self) -> str:
        """Why the server is not ready because of them; "" if that is no reason."""
        return ""

    async def refresh(self) -> None:
        """Ask them what they have done, so that the counters of pipelines are whole."""

    def in_flight(self, pipeline: Pipeline) -> int:
        """Return how many requests of a pipeline are there, and not yet in this process."""
        return 0

    def gauges(self, pipeline: Pipeline, node: str) -> NodeGauges:
        """Return what a node of a pipeline holds and does in all of them together."""
        return NOTHING

    def memory(self) -> MemoryUse:
        """Return what requests hold in the memory of all of them together."""
        return MemoryUse()

    def described(self) -> list[dict[str, Any]]:
        """Describe all processes of the server, this one too; none if there is only this one."""
        return []
