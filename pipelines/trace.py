"""What happened to one request in its graph: what each filter said, what ran, when and in which batch, and the same of its parts.

Made only for requests that ask for it; others pay one comparison a node.
"""

from __future__ import annotations

from typing import Any

from penstock.backends.item import Item

from .queue import Batch

MAX_PARTS = 8
"""Parts of one node that are traced; of the others only the number is told."""


class Trace:
    """The steps of one run, in order. A step is a dict, ready to be written as JSON:

    `node`; `filter` and `status` (which filter it is, and what it said), but for the first; `keys` of the item as the node found it;
    then, if it ran, `queue_ms`, `run_ms`, `batch` (rows), and `left` (the keys it left), or `error`; `parts` (a list of lists of
    steps) where it sent parts of the item, or called other nodes; `more_parts`: how many of these are not listed.
    """

    __slots__ = ("_steps", "steps")

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self._steps: dict[str, dict[str, Any]] = {}

    def came(self, node: str, item: Item, filter_name: str | None = None, status: str | None = None) -> None:
        step: dict[str, Any] = {"node": node}
        if filter_name is not None:
            step |= {"filter": filter_name, "status": status}
        step["keys"] = sorted(map(str, item))
        self.steps.append(step)
        self._steps[node] = step  # the last one of this name: a stream, or a loop, passes a node again

    def skipped(self, node: str, by: str) -> None:
        """The node is inside a chain or a sub-graph that was skipped at another one."""
        self.steps.append({"node": node, "status": f"skipped with {by}"})

    def ran(self, node: str, queued: float, batch: Batch, outcome: Any) -> None:
        step = self._steps[node]
        step |= {
            "queue_ms": round((batch.started - queued) * 1000, 3),
            "run_ms": round((batch.ended - batch.started) * 1000, 3),
            "batch": batch.size,
        }
        if isinstance(outcome, dict):
            step["left"] = sorted(map(str, outcome))
            if "error" in outcome:
                step["error"] = str(outcome["error"])
        elif outcome is not None:
            step["error"] = f"{type(outcome).__name__}: {outcome}"

    def part(self, node: str) -> Trace | None:
        """The trace of one more part of the item at this node; None where there are enough."""
        step = self._steps[node]
        parts = step.setdefault("parts", [])
        if len(parts) >= MAX_PARTS:
            step["more_parts"] = step.get("more_parts", 0) + 1
            return None
        trace = Trace()
        parts.append(trace.steps)
        return trace
