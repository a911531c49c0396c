"""The metrics of a server's connections, which only `penstock serve` has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .connections import Connections


class ConnectionCollector(Collector):
    """Collects from the connections of one process."""

    def __init__(self, connections: Connections, *, tunnels: bool = False) -> None:
        """`tunnels`: other processes count the open ones, whose bytes they pass on."""
        self._connections = connections
        self._tunnels = tunnels

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        open_now = GaugeMetricFamily("penstock_connections", "Connections that are open.")
        open_now.add_metric((), 0 if self._tunnels else len(self._connections.open))
        yield open_now
        closed = CounterMetricFamily(
            "penstock_connections_closed",
            "Connections that the server ended before their client did, or refused.",
            labels=["reason"],
        )
        for reason, count in self._connections.closed.items():
            closed.add_metric([reason], count)
        yield closed
