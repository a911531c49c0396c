"""What happened to one request in its graph: what each filter said, what ran, when and in which batch, and the same of its parts.

Made only for requests that ask for it; others pay one comparison a node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from penstock.backends.item import Item
from penstock.backends.text import encodable

from ..node.queue import Batch

Step: TypeAlias = dict[str, Any]

MAX_PARTS = 8
"""Parts of one node that are traced; of the others only the number is told."""

REASONS = {
    ("swap", "Break"): "it has no result",
    ("or", "Run"): "it has no result",
    ("or", "Skip"): "it has a result",
}
"""Why a filter of Penstock's own, which looks at the item, said what it said."""


class Trace:
    """The steps of one run, in order. A step is a dict, ready to be written as JSON:

    `node`; `filter` and `status` (which filter it is, and what it said), with the `reason` where that is known, but for the first;
    `keys` of the item as the node found it; then, if it ran, `queue_ms`, `run_ms`, `batch` (rows), and `left` (the keys it left), or
    `error`. A step that should have run and has none of these was dropped, with its request, while it queued or ran.

    `parts` (a list of lists of steps): where it sent parts of the item, or called other nodes; `more_parts`: how many of these are not
    listed. `yields` and `more_yields`: the same, of what each value went through that it yielded.
    """

    __slots__ = ("_into", "_note", "_steps", "steps")

    def __init__(self, note: Callable[[Step, Batch, Any], None] | None = None) -> None:
        """`note`: may add to the step of each node that ran, parts' too; is given the outcome."""
        self.steps: list[Step] = []
        self._into = self.steps
        self._steps: dict[str, Step] = {}
        self._note = note

    def came(
        self, node: str, item: Item, filter_name: str | None = None, status: str | None = None
    ) -> None:
        step: Step = {"node": node}
        if filter_name is not None:
            step |= {"filter": filter_name, "status": status}
            reason = REASONS.get((filter_name, status or ""))
            if status == "Break" and "error" in item:
                reason = f"it has an error: {item['error']}"
            if reason is not None:
                step["reason"] = encodable(reason)
        step["keys"] = _keys(item)
        self._into.append(step)
        self._steps[node] = (
            step  # the last one of this name: a stream, or a loop, passes a node again
        )

    def skipped(self, node: str, by: str) -> None:
        """The node is inside a chain or a sub-graph that was skipped at another one."""
        self._into.append({"node": node, "status": f"skipped with {by}"})

    def ran(self, node: str, queued: float, batch: Batch, outcome: Any) -> None:
        """`outcome`: the item, what it fails with, or None: it yielded all that it left."""
        step = self._steps[node]
        step |= {
            "queue_ms": round((batch.started - queued) * 1000, 3),
            "run_ms": round((batch.ended - batch.started) * 1000, 3),
            "batch": batch.size,
        }
        if isinstance(outcome, dict):
            step["left"] = _keys(outcome)
            if "error" in outcome:
                step["error"] = encodable(str(outcome["error"]))
        elif outcome is not None:
            step["error"] = encodable(f"{type(outcome).__name__}: {outcome}")
        if self._note is not None:
            self._note(step, batch, outcome)

    def part(self, node: str) -> Trace | None:
        """The trace of one more part of the item at this node; None where there are enough."""
        steps = self._one_more(node, "parts")
        if steps is None:
            return None
        trace = Trace(self._note)
        trace.steps = trace._into = steps
        return trace

    def yielded(self, node: str) -> None:
        """What comes from here on happens to one more value that this node yielded."""
        steps = self._one_more(node, "yields")
        self._into = [] if steps is None else steps

    def _one_more(self, node: str, kind: str) -> list[Step] | None:
        step = self._steps[node]
        lists: list[list[Step]] = step.setdefault(kind, [])
        if len(lists) >= MAX_PARTS:
            step[f"more_{kind}"] = step.get(f"more_{kind}", 0) + 1
            return None
        lists.append([])
        return lists[-1]


def _keys(item: Item) -> list[str]:
    return sorted(encodable(str(key)) for key in item)
