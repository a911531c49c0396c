"""The trace of one request in its graph.

It has what each filter returned, what ran, when and in which batch, and the same of the request's
parts. It is made only for requests that ask for it; others pay one comparison per node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from penstock.backends.item import Item
from penstock.backends.text import encodable, message_of

from ..node.queue import Batch

Step: TypeAlias = dict[str, Any]

MAX_TRACED_PARTS = 8
"""The most parts of one node that are traced. The others are only counted."""

FILTER_REASONS = {
    ("swap", "Break"): "it has no result",
    ("or", "Run"): "it has no result",
    ("or", "Skip"): "it has a result",
}
"""For built-in filters that look at the item: why they returned this status."""


class Trace:
    """The steps of one run, in order. Each step is a dict that can be written as JSON.

    A step has `node`, and the `keys` of the item that came to the node. Except at the first node it
    has `filter` (its name), `status` (what the filter returned) and, if it is known, the `reason`.
    If the node ran, it has `queue_ms`, `run_ms`, `batch` (rows), and `left` (the keys that the item
    left with) or `error`. If these are missing, the step was dropped with its request while it
    queued or ran.

    `parts` is a list of lists of steps, one list for each part that the node sent to other nodes;
    `more_parts` counts the parts that are not listed. `yields` and `more_yields` are the same for
    the values that the node yielded.
    """

    __slots__ = ("_into", "_note", "_steps", "steps")

    def __init__(self, note: Callable[[Step, Batch, Any], None] | None = None) -> None:
        """`note` may add to the step of each node that ran, also in parts. It gets the outcome."""
        self.steps: list[Step] = []
        self._into = self.steps
        self._steps: dict[str, Step] = {}
        self._note = note

    def came(
        self, node: str, item: Item, filter_name: str | None = None, status: str | None = None
    ) -> None:
        """Add the step of a node that the item came to."""
        step: Step = {"node": node}
        if filter_name is not None:
            step |= {"filter": filter_name, "status": status}
            reason = FILTER_REASONS.get((filter_name, status or ""))
            if status == "Break" and "error" in item:
                reason = f"it has an error: {message_of(item['error'])}"
            if reason is not None:
                step["reason"] = encodable(reason)
        step["keys"] = _keys(item)
        self._into.append(step)
        # The last step of this name: streams and loops pass a node several times.
        self._steps[node] = step

    def skipped(self, node: str, by: str) -> None:
        """Add the step of a node in a chain or a sub-graph that was skipped at the node `by`."""
        self._into.append({"node": node, "status": f"skipped with {by}"})

    def ran(self, node: str, queued: float, batch: Batch, outcome: Any) -> None:
        """Complete the step of a node that ran.

        `outcome`: the item, or the error that it fails with, or None for a node that yields.
        """
        step = self._steps[node]
        step |= {
            "queue_ms": round((batch.started - queued) * 1000, 3),
            "run_ms": round((batch.ended - batch.started) * 1000, 3),
            "batch": batch.size,
        }
        if isinstance(outcome, dict):
            step["left"] = _keys(outcome)
            if "error" in outcome:
                step["error"] = encodable(message_of(outcome["error"]))
        elif outcome is not None:
            step["error"] = encodable(f"{type(outcome).__name__}: {message_of(outcome)}")
        if self._note is not None:
            self._note(step, batch, outcome)

    def part(self, node: str) -> Trace | None:
        """Return the trace of one more part of the item at this node, or None if it has enough."""
        steps = self._one_more(node, "parts")
        if steps is None:
            return None
        trace = Trace(self._note)
        trace.steps = trace._into = steps
        return trace

    def yielded(self, node: str) -> None:
        """Add the steps that follow to one more value that this node yielded."""
        steps = self._one_more(node, "yields")
        self._into = [] if steps is None else steps

    def _one_more(self, node: str, kind: str) -> list[Step] | None:
        step = self._steps[node]
        lists: list[list[Step]] = step.setdefault(kind, [])
        if len(lists) >= MAX_TRACED_PARTS:
            step[f"more_{kind}"] = step.get(f"more_{kind}", 0) + 1
            return None
        lists.append([])
        return lists[-1]


def _keys(item: Item) -> list[str]:
    return sorted(encodable(message_of(key)) for key in item)
