"""The checked configuration of a pipeline, as dataclasses.

`load.py` makes them; the rest of Penstock runs pipelines from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock.backends.base import UNBOUNDED
from penstock.backends.expressions.composite import Logic
from penstock.backends.expressions.spec import Spec
from penstock.backends.sequences.definition import SequenceConfig

from .decoding import Decoding
from .json_schema import JsonSchema
from .versions import DEFAULT_VERSION, VersionPolicy

DEFAULT_MAX = 8
"""Batch bound, in rows, of a node that sets no `max` and whose backend has no bound of its own."""


@dataclass(frozen=True, slots=True)
class InstanceGroupConfig:
    """One instance group of a node. A node has several if a value contains `&`, otherwise one."""

    spec: Spec
    instances: int = 1
    min: int | None = None
    max: int | None = None
    """The `max` that the node sets. None: the backend's bound, or `DEFAULT_MAX` if it has none."""

    def bound(self, backend_max: int) -> int:
        """Return the batch bound, in rows, of an instance whose backend reports `backend_max`."""
        if self.max is not None:
            return min(self.max, backend_max)
        return DEFAULT_MAX if backend_max == UNBOUNDED else backend_max


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Bounds the requests of one priority level that wait at a node, and their time."""

    max_queue_size: int | None = None
    """The largest number of requests that may wait. None: no bound."""
    timeout: float | None = None
    """Seconds after which a request that waits is late. None: never."""
    delays: bool = False
    """A late request goes behind the others of its level. False: it fails."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node of a pipeline."""

    name: str
    instance_groups: tuple[InstanceGroupConfig, ...]
    next: tuple[str, ...] = ()
    batching_timeout: float = 0.0
    """Milliseconds, as in the file."""
    priority_levels: int = 0
    default_priority: int = 0
    """From 1 (highest) to `priority_levels`; 0 if `priority_levels` is 0. A file that does not set
    it gets the middle level."""
    combine: bool = True
    """False: each batch is one request."""
    queue_policies: tuple[QueuePolicy, ...] = ()
    """The policy of each priority level, the highest first. Empty: there are none."""
    retry: bool = True
    """Run the items of a failed batch one by one."""
    stuck_after: float = 60.0
    """Seconds after which a running forward makes the node not ready."""
    executor: str = "thread"
    """`thread`; `loop`: the one instance runs on the event loop; `process`: the backends of each
    instance run in a child process of its own; `auto`: a measurement at load decides between `loop`
    and `thread`."""
    devices: tuple[str, ...] = ()
    """Devices that the instances take in turn (`cuda:0`, `cpu`). Empty: the engines choose."""
    front: bool = False
    """It may run in every front process, before the requests cross to the model process."""
    filter: str | None = None
    """The filter before the node. None: `Run` if the node has a `map`, otherwise `swap`."""
    map: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """For each source node, the keys to take and what they are called here:
    (("det", (("result", "boxes"),)),)."""
    shares: str | None = None
    """The node whose executors and queue this one uses (logical nodes, `borrow_from`);
    `instance_groups` is empty then. None: the node has its own."""
    sequence: SequenceConfig | None = None
    """How it keeps states of sequences; None: it keeps none."""

    @property
    def streams(self) -> bool:
        """True if it yields several results for one item: Python logic that is a generator."""
        return any(
            issubclass(group.spec.cls, Logic) and group.spec.cls.streams
            for group in self.instance_groups
        )


@dataclass(frozen=True, slots=True)
class Port:
    """A declared input or output: the item's key, and how its value travels."""

    name: str
    kind: str = "json"
    """image, bytes, text, integer, number, boolean, tensor, json, list"""
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    labels: str | None = None
    description: str = ""
    optional: bool = False
    """An input that a request may leave out."""
    items: Port | None = None
    """The items of a list; None: any JSON values. It has no name."""
    schema: JsonSchema | None = None
    """What the JSON must look like; None: anything."""
    media_types: tuple[str, ...] = ()
    """The media types that the input takes (`image/png`, `audio/*`). Empty: those of its kind."""
    decode: Decoding | None = None
    """Decodes the images that clients send encoded. None: they are refused."""
    stream: bool = False
    """An input that Python logic reads chunk by chunk while it arrives."""
    label_texts: tuple[str, ...] = field(default=(), compare=False)
    """The labels of a declared output, as the file `labels` had them when the pipeline was read."""

    @property
    def inner_schema(self) -> JsonSchema | None:
        """Return its schema, or that of the items of a list."""
        return self.schema if self.items is None else self.items.inner_schema


DEFAULT_INPUTS = (Port("data", "image"),)
"""The inputs of a pipeline that declares none."""
NODE_INPUTS = (Port("data", "tensor"),)
"""The inputs of an exposed node that declares none."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """A node that clients may call by itself."""

    node: str
    inputs: tuple[Port, ...] = NODE_INPUTS
    outputs: tuple[Port, ...] = ()
    batched: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """A pipeline whose configuration has been checked."""

    name: str
    nodes: dict[str, NodeConfig]
    """In topological order: each node comes after all its predecessors."""
    directory: Path = field(default_factory=Path)
    source: str = ""
    """The file, for messages."""
    version: str = DEFAULT_VERSION
    version_policy: VersionPolicy | None = None
    """Which versions of the name are served, the same in all of them; None: there is no other."""
    versions_folder: Path | None = None
    """The folder of the versions, if this is one of them (`NAME/1/pipeline.toml`)."""
    description: str = ""
    inputs: tuple[Port, ...] = DEFAULT_INPUTS
    outputs: tuple[Port, ...] = ()
    batched: bool = True
    """False: the first size of the inputs is not the batch, so a request is one item below /v2."""
    positional: bool = False
    """All inputs make up `data` and all outputs `result`, in the declared order, whatever their
    names."""
    max_requests: int = 1024
    """The largest number of requests that may be in flight."""
    timeout: float = 30.0
    """Seconds until the deadline of a request that sets none; a request may not set more."""
    max_wait: float | None = 0.0
    """Seconds that admitted requests should wait at most; the rest is refused under overload.

    0: it follows from the times of the batches (`"auto"`). None: only bounds and deadlines refuse
    (`"none"`).
    """
    queue_size: int | None = None
    """The largest number of requests that may wait for an executor. None: `max_requests` alone."""
    queue_timeout: float | None = None
    """Seconds that an item may wait in the queue of a node. None: until its deadline."""
    entry: str | None = None
    """The node at which requests that name no node enter.

    None: the one root that no `jump` leads to; if there are several, each request must name a node.
    """
    loop: bool = False
    """An item that leaves with `restart` enters again, at the node that `restart` names."""
    max_rounds: int = 10_000
    """The most rounds in which an item may pass the graph, if `loop` is set."""
    cache: bool = False
    """Keep answers, and give them to equal requests."""
    cache_ttl: float | None = None
    """Seconds for which an answer is kept. None: as long as there is room."""
    exposed: tuple[Exposed, ...] = ()
    warnings: tuple[str, ...] = ()
    """Warnings about what is allowed but may be a mistake. `penstock check` prints them."""
    model_config: Mapping[str, Any] | None = None
    """The completed ModelConfig of a Triton model, as Triton prints it; None: it isn't one."""

    @property
    def declares_inputs(self) -> bool:
        """True if the file declares the inputs."""
        return self.inputs is not DEFAULT_INPUTS and self.inputs is not NODE_INPUTS

    @property
    def stream_input(self) -> Port | None:
        """The input that is read while it arrives; it is the only one then."""
        return next((port for port in self.inputs if port.stream), None)

    @property
    def result_port(self) -> Port | None:
        """The declaration of `result` in the file; None: it has none.

        All outputs of a `positional` pipeline are in `result`: the one, or a list.
        """
        if not self.positional:
            return next((port for port in self.outputs if port.name == "result"), None)
        if len(self.outputs) == 1:
            return replace(self.outputs[0], name="result")
        names = ", ".join(port.name for port in self.outputs)
        return Port("result", "list", description=f"The outputs in their order: {names}.")

    @property
    def key_ports(self) -> tuple[Port, ...]:
        """The outputs that are keys of the item beside `result`."""
        if self.positional:
            return ()
        return tuple(port for port in self.outputs if port.name != "result")

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the pipeline, and those of its exposed nodes (`pipeline.node`)."""
        return (self.name, *(f"{self.name}.{exposed.node}" for exposed in self.exposed))

    def release(self) -> None:
        """Let go of what lives as long as pipelines of this configuration: nothing, for a file's.

        Called once none serves or loads any more.
        """

    @property
    def takes_sequences(self) -> bool:
        """True if a node keeps states of sequences: then each request is a step of one."""
        return any(node.sequence is not None for node in self.nodes.values())

    @property
    def takes_request_facts(self) -> bool:
        """True if a backend reads what a client of /v2 says of its request (`RequestFacts`)."""
        return any(
            group.spec.takes_request_facts
            for node in self.nodes.values()
            for group in node.instance_groups
        )

    def alone(self, exposed: Exposed) -> PipelineConfig:
        """Return what callers see of an exposed node: a pipeline that has only this node."""
        node = self.nodes[self.nodes[exposed.node].shares or exposed.node]
        return replace(
            self,
            name=f"{self.name}.{exposed.node}",
            nodes={exposed.node: replace(node, name=exposed.node, next=(), filter=None, map=())},
            description=exposed.description,
            inputs=exposed.inputs,
            outputs=exposed.outputs,
            batched=exposed.batched,
            positional=False,
            entry=None,
            loop=False,
            exposed=(),
            warnings=(),
            model_config=None,
        )
