"""The number of parts of a request that come to a node: an estimate for admission."""

from __future__ import annotations

RECENT_ITEMS = 128
"""Items over which the number of parts is averaged. A few may have most of the parts."""


class Inflow:
    """The parts that composites send to one node, averaged over requests.

    A request passes the composites of one graph one after another, so their parts add up. It
    passes only one graph that leads here, so over several graphs the parts are averaged.
    """

    __slots__ = ("_senders",)

    def __init__(self) -> None:
        # For each composite: the root of its graph, its items so far, and the parts of an item.
        self._senders: dict[object, tuple[str, int, float]] = {}

    def observe(self, composite: object, root: str, parts: int) -> float:
        """Count an item that `composite` splits into `parts` parts. Return the parts per request.

        `root` names the root of the graph that the composite is in.
        """
        _, items, mean = self._senders.get(composite, (root, 0, 0.0))
        items += 1
        mean += (parts - mean) / min(items, RECENT_ITEMS)
        self._senders[composite] = root, items, mean
        # A filter may skip a composite: the one that got the most items got all requests.
        requests: dict[str, int] = {}
        for graph, count, _ in self._senders.values():
            requests[graph] = max(requests.get(graph, 0), count)
        sent = sum(count * average for _, count, average in self._senders.values())
        return sent / sum(requests.values())
