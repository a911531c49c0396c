"""A pipeline's graph as one draws it: its nodes by kind, and the edges between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from penstock.backends.expressions.composite import (
    CompositeBackend,
    CopySplit,
    Jump,
    Logic,
    MapReduce,
)
from penstock.backends.expressions.spec import Spec
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig
from penstock.pipelines.runs.plan import Plan, PlanNode

NodeKind = Literal["executor", "shared", "composite", "logic"]
"""`shared`: a logical node, which uses the executors of another one."""

EdgeKind = Literal["enters", "next", "map", "shares", "calls", "restart"]
"""`enters`: a request comes in at the target. `map`: the target reads from a node that is not its
predecessor. `shares`: the source uses the executors of the target. `calls`: a composite sends parts
of an item. `restart`: a loop starts its next round.
"""


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge from one node to another. Where a request enters, `source` is ""."""

    source: str
    target: str
    kind: EdgeKind
    label: str = ""


def edges_of(config: PipelineConfig, plan: Plan) -> Iterator[Edge]:
    """Yield the edges of a pipeline: where requests enter, then those of each node."""
    yield from _entries(config, plan)
    for node in plan.nodes.values():
        for following in node.next:
            yield Edge(node.name, following.name, "next", _mapped(node, following))
        for source, _ in node.sources or ():
            if source not in node.before:
                yield Edge(source.name, node.name, "map", _mapped(source, node))
        if node.config.shares is not None:
            yield Edge(node.name, node.config.shares, "shares", "shares")
        for group in node.config.instance_groups:
            cls, params = group.spec.cls, group.spec.params
            if issubclass(cls, (Jump, MapReduce, CopySplit)):
                yield Edge(node.name, params.jump, "calls", _sent(cls, params))
    if config.loop and plan.default is not None:
        restart = f"restart, at most {config.max_rounds} rounds"
        for node in plan.default.plan_nodes:
            if not node.next:
                yield Edge(node.name, plan.default.root.name, "restart", restart)


def _entries(config: PipelineConfig, plan: Plan) -> Iterator[Edge]:
    """Yield an edge to each node at which requests enter, with the key that a request needs."""
    targets = {
        getattr(group.spec.params, "jump", None)
        for node in config.nodes.values()
        for group in node.instance_groups
    }
    for root in plan.roots:
        if plan.default is not None and root is plan.default.root:
            yield Edge("", root.name, "enters")
        elif root.name not in targets:
            yield Edge("", root.name, "enters", f"node_name = {root.name}")
    if plan.default is not None and plan.default.root not in plan.roots:
        yield Edge("", plan.default.root.name, "enters")


def kind_of(config: NodeConfig) -> NodeKind:
    """Return how a node does its work."""
    if config.shares is not None:
        return "shared"
    cls = config.instance_groups[0].spec.cls
    if issubclass(cls, Logic):
        return "logic"
    return "composite" if issubclass(cls, CompositeBackend) else "executor"


def expressions_of(config: NodeConfig) -> list[str]:
    """Return the different backend expressions of a node's instances."""
    return list(dict.fromkeys(expression(group.spec) for group in config.instance_groups))


def expression(spec: Spec) -> str:
    """Write a backend expression as a file would."""
    children = ",".join(expression(child) for child in spec.children)
    prefix = f"({spec.filter})" if spec.filter else ""
    return f"{prefix}{spec.name}{f'[{children}]' if children else ''}"


def _mapped(source: PlanNode, node: PlanNode) -> str:
    """List the keys that the `map` of a node takes from a source."""
    return ", ".join(
        f"{key} → {name}"
        for origin, pairs in node.sources or ()
        if origin is source
        for key, name in pairs
    )


def _sent(cls: type[Any], params: Any) -> str:
    """Say what a composite node sends to its target."""
    if issubclass(cls, MapReduce):
        return f"each of {params.split}, merges {', '.join(params.merge)}"
    return f"pieces of {params.split_size}" if issubclass(cls, CopySplit) else "jump"
