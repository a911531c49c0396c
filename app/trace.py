"""What happens to one item on its way through a pipeline: for `penstock call --trace`.

The backends of a traced pipeline are subclasses made for it, whose `forward` notes what it did. Nothing else knows of tracing, so
pipelines that are not traced pay nothing for it. Nodes of `executor = "process"` run on a thread for it: what happens in a child is out of
sight.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.backends.base import Backend
from penstock.backends.item import Item
from penstock.backends.spec import Spec
from penstock.pipelines.definition import PipelineConfig
from penstock.pipelines.run import Stage


@dataclass(slots=True)
class Step:
    """One `forward`. `depth` 0 is a node's whole expression, 1 its members, and so on. `before` and `after`: key -> what is there."""

    node: str
    depth: int
    backend: str
    before: dict[str, str]
    after: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    def line(self, width: int) -> str:
        name = f"{'  ' * (self.depth - 1)}{self.backend}".ljust(width) + f"{_ms(self.seconds):>10}  " if self.depth else "out: "
        return f"{name}{_keys(self.after)}{f' raised {self.error}' if self.error else ''}"


class Trace:
    """`config` is the pipeline to run; `steps` grow while `active` (the warm-up of backends is nobody's request)."""

    def __init__(self, config: PipelineConfig) -> None:
        self.active = False
        self.steps: list[Step] = []
        nodes = {
            name: replace(
                node, executor="thread", groups=tuple(replace(group, spec=self._watched(group.spec, name, 0)) for group in node.groups)
            )
            for name, node in config.nodes.items()
        }
        self._moved = {name for name, node in config.nodes.items() if node.executor != "thread"}
        self.config = replace(config, nodes=nodes)

    def _watched(self, spec: Spec, node: str, depth: int) -> Spec:
        cls = spec.cls

        def forward(backend: Backend, batch: list[Item]) -> None:
            if not self.active or not batch:
                cls.forward(backend, batch)
                return
            step = Step(node, depth, spec.name, described(batch[0]))
            self.steps.append(step)  # before its members' steps
            item = batch[0]  # the backend may do with the list what it likes
            begun = time.perf_counter()
            try:
                cls.forward(backend, batch)
            except Exception as error:
                step.error = f"{type(error).__name__}: {error}"
                raise
            finally:
                step.seconds = time.perf_counter() - begun
                step.after = described(item)

        watched = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__})
        return replace(spec, cls=watched, children=tuple(self._watched(child, node, depth + 1) for child in spec.children))

    def lines(self, stages: Sequence[Stage]) -> Iterator[str]:
        """The trace as text. `stages`: the request's timings, as far as it came."""
        times = {stage.node: stage for stage in stages}
        for node in dict.fromkeys(step.node for step in self.steps):
            steps = [step for step in self.steps if step.node == node]
            stage = times.get(node)
            timing = f": queue {_ms(stage.queue)}, run {_ms(stage.run)}, batch {stage.batch_size}" if stage is not None else ""
            yield f"{node}{timing}{', on a thread for the trace' if node in self._moved else ''}"
            yield f"    in: {_keys(steps[0].before)}"
            width = max(2 * step.depth + len(step.backend) for step in steps)
            for step in sorted(steps, key=lambda each: each.depth == 0):  # the whole expression comes after its members
                yield f"    {step.line(width)}"


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


def _keys(item: dict[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in item.items())


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms"
