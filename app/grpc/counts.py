"""How many calls there are and were, and their metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

OK = grpc.StatusCode.OK
CANCELLED = grpc.StatusCode.CANCELLED

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED = "01"


class CallCounts(Collector):
    """Counts the calls of `GRPCInferenceService`, by RPC and status."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.ended: dict[tuple[str, Any], int] = {}
        self.port = 0

    def begin(self) -> None:
        self.in_flight += 1

    def end(self, method: str, code: Any) -> None:
        """Count the end of a call with this `grpc.StatusCode`."""
        self.in_flight -= 1
        key = method, code
        self.ended[key] = self.ended.get(key, 0) + 1

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily(
            "penstock_grpc_calls_in_flight", "Calls by gRPC that have not ended."
        )
        in_flight.add_metric((), self.in_flight)
        yield in_flight
        ended = CounterMetricFamily(
            "penstock_grpc_calls", "Calls by gRPC that have ended.", labels=["method", "code"]
        )
        for (method, code), count in self.ended.items():
            ended.add_metric([method, code.name], count)
        yield ended
        connections = connections_at(self.port)
        if connections is not None:
            known = GaugeMetricFamily("penstock_grpc_connections", "Connections by gRPC.")
            known.add_metric((), connections)
            yield known


def connections_at(port: int) -> int | None:
    """Count the connections that are open at a port, as Linux lists them: gRPC does not tell.

    None on other systems.
    """
    if not _TABLES[0].exists():
        return None
    count = 0
    for table in _TABLES:
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split(maxsplit=4)
                count += state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port
    return count
