"""Which nodes of a pipeline run in front processes, and what these need to run them.

The model process makes the table (`front_table`) and sends it to each front process, which makes
a pipeline of the front nodes alone of each entry.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from penstock.backends.base import Context
from penstock.backends.expressions.filters import filter_registered_here, run, swap
from penstock.backends.expressions.registry import backend_registered_here
from penstock.backends.expressions.spec import Spec
from penstock.backends.process.wire import SpecMessage

from ..config.definition import NodeConfig, PipelineConfig
from .plan import Plan, PlanNode

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..repository import Repository

RAW_KINDS = frozenset({"image", "bytes"})
"""The kinds of an input that a body may be as it is."""


class FrontEntry(NamedTuple):
    """One loaded version of a pipeline whose first nodes may run in front processes.

    `names`: those by which clients ask for it. `pressure`: it is under pressure. `notes`: its
    batches are noted. `config`: what `read_config` takes.
    """

    names: tuple[str, ...]
    token: str
    pressure: bool
    notes: bool
    config: bytes


def front_nodes(config: PipelineConfig) -> tuple[str, ...]:
    """Return the nodes that may run in front processes: a chain from the default entry.

    Empty if there are none, or if requests of this pipeline can't be cut in two.
    """
    return tuple(node.name for node in front_chain(config, Plan(config.nodes, config.entry)))


def front_chain(config: PipelineConfig, plan: Plan) -> tuple[PlanNode, ...]:
    """Return the same nodes of the plan."""
    entry_point = plan.default
    if entry_point is None or entry_point.stream is not None or not _may_be_cut(config):
        return ()
    shared = {node.shares for node in config.nodes.values()}
    by_data = {
        source.name
        for plan_node in plan.nodes.values()
        for source, pairs in plan_node.sources or ()
        if any(key == "data" for key, _ in pairs)
    }
    chain: list[PlanNode] = []
    node: PlanNode | None = entry_point.root
    while node is not None and node.sources is None:
        if node.name in shared or node.name in by_data or not _runs_in_front(node.config):
            break
        if not all(_takes_result(following) for following in node.next):
            break
        chain.append(node)
        following = node.follows
        if node.kept or following is None or following.filter is not swap:
            break
        node = following if following.before == (node,) else None
    return tuple(chain)


def _may_be_cut(config: PipelineConfig) -> bool:
    """Return whether a request is one raw body, and nothing but its result goes on."""
    if config.cache or config.loop or config.takes_sequences or config.positional:
        return False
    if len(config.inputs) != 1 or any(port.name == "data" for port in config.outputs):
        return False
    (port,) = config.inputs
    return (
        port.name == "data"
        and port.kind in RAW_KINDS
        and not port.stream
        and not any(_wants_request(node) for node in config.nodes.values())
    )


def _wants_request(node: NodeConfig) -> bool:
    return any(group.spec.takes_headers for group in node.instance_groups)


def _runs_in_front(node: NodeConfig) -> bool:
    return (
        node.front
        and node.shares is None
        and node.sequence is None
        and node.executor != "process"
        and not any(device.startswith("cuda") for device in node.devices)
        and all(_crosses(group.spec) for group in node.instance_groups)
    )


def _crosses(spec: Spec) -> bool:
    """Return whether another process can make this backend, and it asks for nothing but the item."""
    return not (
        spec.takes_request_id
        or spec.takes_traceparent
        or spec.takes_request_facts
        or spec.takes_server
    ) and all(
        not backend_registered_here(one.name)
        and not one.name.startswith("__main__:")
        and not (one.filter is not None and filter_registered_here(one.filter))
        for one in _members(spec)
    )


def _members(spec: Spec) -> Iterator[Spec]:
    yield spec
    for child in spec.children:
        yield from _members(child)


def _takes_result(node: PlanNode) -> bool:
    """Return whether a node reads of the item before it neither `data` nor what crosses not."""
    if node.sources is None:
        return node.filter is swap
    return node.filter is run


def front_table(repository: Repository) -> bytes:
    """Return what front processes need to run the front nodes of all loaded pipelines."""
    entries: list[FrontEntry] = []
    for pipeline in repository.served:
        if pipeline.state != "ready" or not pipeline.front_nodes:
            continue
        name, version = pipeline.name, pipeline.config.version
        names = [f"{name}/versions/{version}"]
        if repository.pipelines.get(name) is pipeline:
            names.append(name)
        entries.append(_entry(pipeline, tuple(names)))
    return pickle.dumps(entries, 5)


def _entry(pipeline: Pipeline, names: tuple[str, ...]) -> FrontEntry:
    config = pipeline.config
    chain = pipeline.front_nodes
    nodes = {name: config.nodes[name] for name in chain}
    last = chain[-1]
    nodes[last] = replace(nodes[last], next=())
    alone = replace(
        config,
        nodes=nodes,
        outputs=(),
        entry=None,
        exposed=(),
        warnings=(),
        versions_folder=None,
        version_policy=None,
        model_config=None,
    )
    file = io.BytesIO()
    _Pickler(file, config.directory).dump(alone)
    return FrontEntry(
        names, pipeline.token, pipeline.pressure, pipeline.notes_batches, file.getvalue()
    )


def read_entries(table: bytes) -> list[FrontEntry]:
    """Read what `front_table` made."""
    return cast("list[FrontEntry]", pickle.loads(table))


def read_config(entry: FrontEntry, fronts: int) -> PipelineConfig:
    """Return the configuration of a pipeline of the front nodes, for one of `fronts` processes.

    It has its share of the instances and of `max_requests`. Imports the backends: raises
    `ConfigError`, and what else unpickling raises.
    """
    config: PipelineConfig = pickle.loads(entry.config)
    nodes = {
        name: replace(
            node,
            instance_groups=tuple(
                replace(group, instances=-(-group.instances // fronts))
                for group in node.instance_groups
            ),
        )
        for name, node in config.nodes.items()
    }
    return replace(config, nodes=nodes, max_requests=-(-config.max_requests // fronts))


class _Pickler(pickle.Pickler):
    """Pickles a configuration. Backends go by their names: their classes may be made at load."""

    def __init__(self, file: io.BytesIO, directory: Path) -> None:
        super().__init__(file, 5)
        self._directory = directory

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Spec:
            return _bound, (SpecMessage.of(obj), self._directory)
        return NotImplemented


def _bound(message: SpecMessage, directory: Path) -> Spec:
    return message.bind(Context(directory=directory))
