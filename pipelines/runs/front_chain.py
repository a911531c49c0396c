"""The nodes of a pipeline that may run in front processes: a chain from its entry."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.backends.expressions.filters import filter_registered_here, run, swap
from penstock.backends.expressions.registry import backend_registered_here
from penstock.backends.expressions.spec import Spec

from ..config.definition import NodeConfig, PipelineConfig
from .plan import Plan, PlanNode

RAW_KINDS = frozenset({"image", "bytes"})
"""The kinds of an input that a body may be as it is."""


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
        port.kind in RAW_KINDS
        and not port.stream
        and not any(_wants_request(node) for node in config.nodes.values())
    )


def _wants_request(node: NodeConfig) -> bool:
    return any(group.spec.takes_headers for group in node.instance_groups)


def _runs_in_front(node: NodeConfig) -> bool:
    specs = [group.spec for group in node.instance_groups]
    # A file may name a GPU for all nodes. Backends that make images on the CPU have no use for it.
    on_cpu = set(node.devices) <= {"cpu"} or all(spec.in_front for spec in specs)
    return (
        node.front
        and on_cpu
        and node.shares is None
        and node.sequence is None
        and node.executor != "process"
        and all(map(_crosses, specs))
    )


def _crosses(spec: Spec) -> bool:
    """Return whether another process can make a backend, which needs no more than its item."""
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
