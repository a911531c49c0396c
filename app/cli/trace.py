"""The trace of `penstock call --trace`: the work of each backend on an item, as indented text.

`ForwardRecorder` subclasses the backends of one pipeline so that every `forward` is recorded.
Nothing else knows of it, so other pipelines pay nothing. Nodes with `executor = "process"` run on a
thread for it, because what happens in a child process can't be seen from here. The item's way
through the graph comes from `pipelines/runs/trace.py`; the records are added to its steps.

`trace_lines` turns steps into text: those of a pipeline here, and those that a server sends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.backends.base import Backend
from penstock.backends.expressions.composite import CompositeBackend
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.backends.text import message_of, repr_of
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.node.queue import Batch
from penstock.pipelines.runs.trace import Step, Trace

from .output import printable

TRACED_VALUE_CHARACTERS = 64
"""The most characters of a value's repr that a trace shows."""
LONGEST_SHOWN_COLLECTION = 4
"""The most elements with which a list, tuple, dict or set is shown; else only its length is."""
USUAL_STATUSES = {("swap", "Run"), ("Run", "Run")}
"""The (filter, status) of default filters in nearly every step. They are not shown."""


@dataclass(slots=True)
class ForwardRecord:
    """One call of `forward`, of a node's whole expression or of one backend in it."""

    backend: str
    items: list[Item]
    before: list[dict[str, str]]
    """For each item: key -> its value, described."""
    after: list[dict[str, str]] = field(default_factory=list)
    """The same after the call."""
    seconds: float = 0.0
    error: str = ""
    members: list[ForwardRecord] = field(default_factory=list)
    """The calls made during this one, by a backend such as Sequential."""

    def index(self, item: Any) -> int | None:
        """Return the position of an item in the batch: of this very dict, not of an equal one."""
        return next((index for index, member in enumerate(self.items) if member is item), None)


class ForwardRecorder:
    """A copy of a pipeline's configuration whose backends record their calls of `forward`.

    Run `config` in place of the original. Calls are recorded while `active` is true: set it once
    the pipeline is ready, because the warm-up of backends belongs to no request.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.active = False
        self._records: dict[str, list[ForwardRecord]] = {name: [] for name in config.nodes}
        self._local = threading.local()  # `.record`: of the `forward` that this thread is in
        self._moved = {name for name, node in config.nodes.items() if node.executor == "process"}
        nodes = {
            name: replace(
                node,
                executor="thread" if name in self._moved else node.executor,
                instance_groups=tuple(
                    replace(group, spec=self._recording(group.spec, name))
                    for group in node.instance_groups
                ),
            )
            for name, node in config.nodes.items()
        }
        self.config = replace(config, nodes=nodes)

    def trace(self) -> Trace:
        """Return the trace for one request.

        The steps of nodes that ran also have `in` and `out` (key -> value, described), and
        `members`: a list of dicts with `backend`, `depth`, `ms`, `out` and perhaps `error`.
        """
        return Trace(self._add_to_step)

    def _recording(self, spec: Spec, node: str) -> Spec:
        """Return the expression with a recording subclass in the place of each backend class."""
        if issubclass(spec.cls, CompositeBackend):
            return spec  # has no `forward`: other nodes do its work
        cls = spec.cls

        def forward(backend: Backend, batch: list[Item]) -> None:
            if not self.active or not batch:
                cls.forward(backend, batch)
                return
            items = batch.copy()  # the backend may change the list
            record = ForwardRecord(spec.name, items, [describe_item(item) for item in items])
            outer: ForwardRecord | None = getattr(self._local, "record", None)
            (self._records[node] if outer is None else outer.members).append(record)
            self._local.record = record
            started = time.perf_counter()
            try:
                cls.forward(backend, batch)
            except BaseException as error:
                record.error = f"{type(error).__name__}: {message_of(error)}"
                raise
            finally:
                record.seconds = time.perf_counter() - started
                record.after = [describe_item(item) for item in items]
                self._local.record = outer

        recording = type(
            cls.__name__,
            (cls,),
            {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__},
        )
        children = tuple(self._recording(child, node) for child in spec.children)
        return replace(spec, cls=recording, children=children)

    def _add_to_step(self, step: Step, batch: Batch, outcome: Any) -> None:
        """Add the latest record of this very item to its step; after a failure, the failed call."""
        if batch.node in self._moved:
            step["note"] = "on a thread for the trace"
        failed = isinstance(outcome, BaseException)
        for record in reversed(self._records.get(batch.node, ())):
            index = (0 if record.error else None) if failed else record.index(outcome)
            if index is not None:
                step |= {"in": record.before[index], "out": record.after[index]}
                if record.error:
                    step["error"] = record.error
                if members := list(_members(record, record.items[index], 1)):
                    step["members"] = members
                return


def _members(record: ForwardRecord, item: Item, depth: int) -> Iterator[Step]:
    """Yield the steps of the backends in an expression for one item, outer before inner."""
    for member in record.members:
        index = member.index(item)
        if index is None and any(record.index(other) is not None for other in member.items):
            continue  # this call was for other items of the batch
        # If the outer backend passed copies on, the item itself is in no inner call.
        yield {
            "backend": member.backend,
            "depth": depth,
            "ms": round(member.seconds * 1000, 3),
            "out": member.after[index or 0],
            **({"error": member.error} if member.error else {}),
        }
        yield from _members(member, member.items[index or 0], depth + 1)


def describe_item(item: Item) -> dict[str, str]:
    """Describe the value of each key in a few words."""
    return {message_of(key): describe(value) for key, value in item.items()}


def describe(value: Any) -> str:
    """Describe an array by dtype and shape, bytes by their number, and other values by their repr.

    Long collections are described by their length, and long texts are cut.
    """
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype"):
        return f"{value.dtype} {'×'.join(map(str, shape)) or 'scalar'}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    if isinstance(value, (list, tuple, dict, set)) and len(value) > LONGEST_SHOWN_COLLECTION:
        return f"{type(value).__name__} of {len(value)}"
    text = repr_of(value)
    if len(text) <= TRACED_VALUE_CHARACTERS:
        return text
    return f"{text[: TRACED_VALUE_CHARACTERS - 1]}…"


# as text


def trace_lines(steps: Iterable[Step]) -> Iterator[str]:
    """Yield a line for each node; indented below it its input, members, parts and output."""
    for line in _lines(steps):
        yield printable(line)


def _lines(steps: Iterable[Step]) -> Iterator[str]:
    for step in steps:
        facts = _facts(step)
        yield f"{step['node']}{': ' if facts else ''}{facts}"
        below = [_values("in", step.get("in", step.get("keys")))] if _should_run(step) else []
        members = step.get("members", ())
        width = max((2 * member["depth"] + len(member["backend"]) for member in members), default=0)
        below += [_member_line(member, width) for member in members]
        below += _nested("part", step.get("parts", ()), step.get("more_parts", 0))
        below += _nested("yield", step.get("yields", ()), step.get("more_yields", 0))
        if "out" in step or "left" in step or "error" in step:
            below.append(f"{_values('out', step.get('out', step.get('left')))}{_failure(step)}")
        for line in below:
            yield f"    {line}"


def _facts(step: Step) -> str:
    """Say what the filter decided, how long the item was queued and ran, and in which batch."""
    facts = []
    if "filter" in step and (step["filter"], step["status"]) not in USUAL_STATUSES:
        facts.append(
            f"{step['filter']} says {step['status']}"
            + (f" ({step['reason']})" if "reason" in step else "")
        )
    elif "filter" not in step and "status" in step:
        facts.append(step["status"])
    if "run_ms" in step:
        facts.append(
            f"queue {step['queue_ms']:.3f} ms, run {step['run_ms']:.3f} ms, batch {step['batch']}"
        )
    elif _should_run(step):
        facts.append("dropped before it finished")
    if "note" in step:
        facts.append(step["note"])
    return ", ".join(facts)


def _should_run(step: Step) -> bool:
    return "status" not in step or step["status"] == "Run"


def _member_line(member: Step, width: int) -> str:
    name = f"{'  ' * (member['depth'] - 1)}{member['backend']}".ljust(width)
    milliseconds = f"{member['ms']:.3f} ms"
    return f"{name}{milliseconds:>10}  {_listed(member['out'])}{_failure(member)}"


def _failure(step: Step) -> str:
    if "error" not in step:
        return ""
    if "out" in step and "left" in step:
        return ""  # a soft failure: `out` shows the item's `error` already
    return f" ({step['error']})" if "left" in step else f" raised {step['error']}"


def _nested(kind: str, runs: Sequence[Iterable[Step]], more: int) -> Iterator[str]:
    for number, steps in enumerate(runs, 1):
        yield f"{kind} {number} of {len(runs) + more}"
        for line in _lines(steps):
            yield f"    {line}"
    if more:
        yield f"… and {more} more"


def _values(name: str, values: Mapping[str, str] | Iterable[str] | None) -> str:
    return f"{name}: {_listed(values or ())}".rstrip()


def _listed(values: Mapping[str, str] | Iterable[str]) -> str:
    """List keys with their values, or keys alone if only these are known."""
    if isinstance(values, Mapping):
        return ", ".join(f"{key}: {value}" for key, value in values.items())
    return ", ".join(values)
