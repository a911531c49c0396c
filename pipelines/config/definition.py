"""What a checked pipeline file says: the dataclasses from which a pipeline is run. `config.py` makes them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from penstock.backends.base import UNBOUNDED
from penstock.backends.expressions.spec import Spec

DEFAULT_MAX = 8
"""Batch bound of a node that sets no `max` and whose backend has no bound of its own."""


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """One of the instance groups of a node (`&`; normally there is one)."""

    spec: Spec
    instances: int = 1
    min: int | None = None
    max: int | None = None
    """The node's own `max`; None: the backend's, or `DEFAULT_MAX` where the backend has no bound."""

    def bound(self, backend_max: int) -> int:
        """The batch bound of an instance whose backend says `backend_max`."""
        if self.max is not None:
            return min(self.max, backend_max)
        return DEFAULT_MAX if backend_max == UNBOUNDED else backend_max


@dataclass(frozen=True, slots=True)
class NodeConfig:
    name: str
    groups: tuple[GroupConfig, ...]
    next: tuple[str, ...] = ()
    batching_timeout: float = 0.0
    """Milliseconds, as in the file."""
    priority_levels: int = 0
    default_priority: int = 0
    """0 where `priority_levels` is 0; else 1 (highest) to `priority_levels`, the middle one unless the file says."""
    retry: bool = True
    """Run the items of a failed batch one by one."""
    stuck_after: float = 60.0
    """Seconds after which a running forward makes the node not ready."""
    executor: str = "thread"
    """Where its backends run: `thread`, or `process` (a child process for each instance)."""
    devices: tuple[str, ...] = ()
    """Where its instances run, in turn (`cuda:0`, `cpu`); empty: the engines choose."""
    filter: str | None = None
    """The name of the filter in front of it; None: `Run` where there is a `map`, else `swap`."""
    map: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """For each source node, the keys to take of it and the names they get here: (("det", (("result", "boxes"),)),)."""
    shares: str | None = None
    """The node whose executors and queue it uses (logical nodes, `borrow_from`); None: it has its own. With it, `groups` is empty."""


@dataclass(frozen=True, slots=True)
class Port:
    """A declared input or output: an item's key and how it travels."""

    name: str
    kind: str = "json"
    """image, bytes, text, integer, number, boolean, tensor, json"""
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    labels: str | None = None
    description: str = ""


DEFAULT_INPUTS = (Port("data", "image"),)
NODE_INPUTS = (Port("data", "tensor"),)
"""Of an exposed node that declares none."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """A node that may be called alone."""

    node: str
    inputs: tuple[Port, ...] = NODE_INPUTS
    outputs: tuple[Port, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    name: str
    nodes: dict[str, NodeConfig]
    """In topological order: each after all of its predecessors."""
    directory: Path = field(default_factory=Path)
    source: str = ""
    """The file, for messages."""
    version: str = "1"
    description: str = ""
    inputs: tuple[Port, ...] = DEFAULT_INPUTS
    outputs: tuple[Port, ...] = ()
    max_requests: int = 1024
    """Bound on requests inside."""
    timeout: float = 30.0
    """Deadline of a request that asks for none, and the longest one may ask for; seconds."""
    entry: str | None = None
    """The node where requests come in that name none; None: the one root that no `jump` leads to (several: requests must name one)."""
    loop: bool = False
    """An item that leaves with `restart` enters again at the node that it names."""
    max_rounds: int = 10_000
    """How often an item may pass the graph in a `loop`."""
    exposed: tuple[Exposed, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is allowed and may not be what was meant; `penstock check` prints it."""

    @property
    def declares_inputs(self) -> bool:
        """Whether the file does."""
        return self.inputs is not DEFAULT_INPUTS and self.inputs is not NODE_INPUTS

    @property
    def names(self) -> tuple[str, ...]:
        """Its own, and those of its exposed nodes."""
        return (self.name, *(f"{self.name}.{exposed.node}" for exposed in self.exposed))

    def alone(self, exposed: Exposed) -> PipelineConfig:
        """What callers see of an exposed node: a pipeline of that one node."""
        node = self.nodes[self.nodes[exposed.node].shares or exposed.node]
        return replace(
            self,
            name=f"{self.name}.{exposed.node}",
            nodes={exposed.node: replace(node, name=exposed.node, next=(), filter=None, map=())},
            description=exposed.description,
            inputs=exposed.inputs,
            outputs=exposed.outputs,
            entry=None,
            loop=False,
            exposed=(),
            warnings=(),
        )
