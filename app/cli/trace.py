"""What the backends of a pipeline make of an item, member by member: for `penstock call --trace`.

The backends of a watched pipeline are subclasses made for it, whose `forward` notes what it did. Nothing else knows of it, so
pipelines that are not watched pay nothing. Nodes of `executor = "process"` run on a thread for it: what happens in a child is out of
sight. Which way an item took through the graph is `pipelines/runs/trace.py`'s to say; what is noted here goes into its steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.backends.base import Backend
from penstock.backends.expressions.composite import Composite
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.node.queue import Batch
from penstock.pipelines.runs.trace import Step, Trace


@dataclass(slots=True)
class Call:
    """One `forward`: of a node's whole expression, or of a member. `before` and `after` are of each item, key -> what is there."""

    backend: str
    items: list[Item]
    before: list[dict[str, str]]
    after: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    members: list[Call] = field(default_factory=list)

    def index(self, item: Any) -> int | None:
        """Where the item is in the batch: that very dict."""
        return next((index for index, each in enumerate(self.items) if each is item), None)


class Watched:
    """`config` is the pipeline to run; calls are noted while `active` (the warm-up of backends is nobody's request)."""

    def __init__(self, config: PipelineConfig) -> None:
        self.active = False
        self._calls: dict[str, list[Call]] = {name: [] for name in config.nodes}
        self._inside = threading.local()  # `.call`: the one that this thread is in
        self._moved = {name for name, node in config.nodes.items() if node.executor != "thread"}
        nodes = {
            name: replace(
                node,
                executor="thread",
                groups=tuple(
                    replace(group, spec=self._watched(group.spec, name)) for group in node.groups
                ),
            )
            for name, node in config.nodes.items()
        }
        self.config = replace(config, nodes=nodes)

    def trace(self) -> Trace:
        """For one request. Its steps have `in` and `out`, key -> what is there, and `members`: these, `backend`, `depth` and `ms`."""
        return Trace(self._note)

    def _watched(self, spec: Spec, node: str) -> Spec:
        if issubclass(spec.cls, Composite):
            return spec  # has no `forward`: other nodes do the work
        cls = spec.cls

        def forward(backend: Backend, batch: list[Item]) -> None:
            if not self.active or not batch:
                cls.forward(backend, batch)
                return
            items = batch.copy()  # the backend may do with the list what it likes
            call = Call(spec.name, items, [described(item) for item in items])
            outer: Call | None = getattr(self._inside, "call", None)
            (self._calls[node] if outer is None else outer.members).append(call)
            self._inside.call = call
            begun = time.perf_counter()
            try:
                cls.forward(backend, batch)
            except Exception as error:
                call.error = f"{type(error).__name__}: {error}"
                raise
            finally:
                call.seconds = time.perf_counter() - begun
                call.after = [described(item) for item in items]
                self._inside.call = outer

        watched = type(
            cls.__name__,
            (cls,),
            {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__},
        )
        return replace(
            spec, cls=watched, children=tuple(self._watched(child, node) for child in spec.children)
        )

    def _note(self, step: Step, batch: Batch, outcome: Any) -> None:
        """Add to the step of an item that has run what was done with this very item; of one that failed, what raised."""
        if batch.node in self._moved:
            step["note"] = "on a thread for the trace"
        failed = isinstance(outcome, BaseException)
        for call in reversed(self._calls.get(batch.node, ())):
            index = (0 if call.error else None) if failed else call.index(outcome)
            if index is not None:
                step |= {"in": call.before[index], "out": call.after[index]}
                if call.error:
                    step["error"] = call.error
                if members := list(_members(call, call.items[index], 1)):
                    step["members"] = members
                return


def _members(call: Call, item: Item, depth: int) -> Iterator[Step]:
    """What the members of an expression did with one item of the batch, outer before inner."""
    for member in call.members:
        index = member.index(item)
        if index is None and any(call.index(each) is not None for each in member.items):
            continue  # others of the batch
        yield {
            "backend": member.backend,
            "depth": depth,
            "ms": round(member.seconds * 1000, 3),
            "out": member.after[index or 0],  # of a copy, where the outer backend made some
            **({"error": member.error} if member.error else {}),
        }
        yield from _members(member, member.items[index or 0], depth + 1)


def described(item: Item) -> dict[str, str]:
    """Each key's value in a few words: arrays by dtype and shape, bytes by their number, the rest by itself where it is short."""
    return {str(key): describe(value) for key, value in item.items()}


def describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype"):
        return f"{value.dtype} {'×'.join(map(str, shape)) or 'scalar'}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    if isinstance(value, (list, tuple, dict, set)) and len(value) > 4:
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:63]}…"
