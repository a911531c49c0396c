"""Pipelines as a Mermaid flowchart, for `penstock graph` and anything that renders Mermaid.

Nodes have generated ids (`n1`, `n2`, …), because a name could be a Mermaid keyword. The names are
in the labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from penstock.backends.expressions.composite import (
    CompositeBackend,
    CopySplit,
    Jump,
    Logic,
    MapReduce,
)
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig
from penstock.pipelines.runs.plan import Plan, PlanNode

from .check_tables import expression
from .output import printable

NODE_SHAPES = {
    "executor": ('["', '"]'),  # a box
    "shared": ('[["', '"]]'),  # a box with double sides
    "composite": ('{{"', '"}}'),  # a hexagon
    "logic": ('(["', '"])'),  # a stadium
    "request": ('(("', '"))'),  # a circle
}
"""Kind of node -> the text before and after its label."""


def flowchart(configs: Iterable[PipelineConfig]) -> str:
    """Draw pipelines as one chart; if there are several, each is a subgraph with its name.

    A thick arrow leads from the request to the node that it enters. A dotted arrow leads to the
    node that a composite sends parts of an item to, or at which a loop starts its next round. A
    dotted line without a head joins a logical node to the node whose executors it uses. An arrow
    that ends in a circle is a `map` that reads from a node other than a direct predecessor.
    """
    pipelines = list(configs)
    ids = count(1)
    lines = ["flowchart TD"]
    for number, config in enumerate(pipelines, 1):
        chart = _pipeline(config, ids)
        if len(pipelines) > 1:
            lines += [
                f'    subgraph p{number}["{escaped(config.name)}"]',
                *(f"    {line}" for line in chart),
                "    end",
            ]
        else:
            lines += chart
    return "\n".join(lines)


def _pipeline(config: PipelineConfig, ids: Iterator[int]) -> Iterator[str]:
    plan = Plan(config.nodes, config.entry)
    names = {name: f"n{next(ids)}" for name in plan.nodes}
    request = f"n{next(ids)}"
    yield f"    {_shape(request, 'request', ['request'])}"
    for node in plan.nodes.values():
        yield f"    {_node(names[node.name], node)}"
    for name, label in _entries(config, plan):
        yield f"    {request} ==>{_on_edge(label)} {names[name]}"
    for node in plan.nodes.values():
        here = names[node.name]
        for following in node.next:
            yield f"    {here} -->{_on_edge(_mapped(node, following))} {names[following.name]}"
        for source, _ in node.sources or ():
            if source not in node.before:
                yield f"    {names[source.name]} --o{_on_edge(_mapped(source, node))} {here}"
        if node.config.shares is not None:
            yield f"    {here} -.-{_on_edge('shares')} {names[node.config.shares]}"
        for group in node.config.instance_groups:
            cls, params = group.spec.cls, group.spec.params
            if issubclass(cls, (Jump, MapReduce, CopySplit)):
                yield f"    {here} -.->{_on_edge(_sent(cls, params))} {names[params.jump]}"
    if config.loop and plan.default is not None:
        restart = _on_edge(f"restart, at most {config.max_rounds} rounds")
        for node in plan.default.plan_nodes:
            if not node.next:
                yield f"    {names[node.name]} -.->{restart} {names[plan.default.root.name]}"


def _entries(config: PipelineConfig, plan: Plan) -> Iterator[tuple[str, str]]:
    """Yield each node at which requests enter, and the key that a request needs to enter there."""
    targets = {
        getattr(group.spec.params, "jump", None)
        for node in config.nodes.values()
        for group in node.instance_groups
    }
    for root in plan.roots:
        if plan.default is not None and root is plan.default.root:
            yield root.name, ""
        elif root.name not in targets:
            yield root.name, f"node_name = {root.name}"
    if plan.default is not None and plan.default.root not in plan.roots:
        yield plan.default.root.name, ""


def _node(identifier: str, node: PlanNode) -> str:
    label = [node.name, *_described(node.config)]
    if node.config.filter is not None:
        label.append(f"filter: {node.config.filter}")
    if node.streams:
        label.append("streams")
    return _shape(identifier, _kind(node.config), label)


def _kind(config: NodeConfig) -> str:
    if config.shares is not None:
        return "shared"
    cls = config.instance_groups[0].spec.cls
    if issubclass(cls, Logic):
        return "logic"
    return "composite" if issubclass(cls, CompositeBackend) else "executor"


def _described(config: NodeConfig) -> Iterator[str]:
    """Yield the lines of a label: the node's expression and, if it has executors, their numbers."""
    groups = config.instance_groups
    for text in dict.fromkeys(expression(group.spec) for group in groups):
        yield text.replace(",", ", ")  # so that Mermaid can break long ones
    if _kind(config) != "executor":
        return
    most = " & ".join(str(group.bound(group.spec.declared_range.max)) for group in groups)
    instances = " & ".join(str(group.instances) for group in groups)
    where = {"process": ", in processes", "loop": ", on the event loop"}.get(config.executor, "")
    yield f"max {most}, {instances} instance{'s' * (instances != '1')}{where}"


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


def _shape(identifier: str, kind: str, label: Iterable[str]) -> str:
    opening, closing = NODE_SHAPES[kind]
    return f"{identifier}{opening}{'<br>'.join(map(escaped, label))}{closing}"


def _on_edge(label: str) -> str:
    return f'|"{escaped(label)}"|' if label else ""


def escaped(text: str) -> str:
    """Escape a text for a quoted label.

    A character that would end the label, or could be read as HTML, Markdown, a directive or an
    entity, is written by its number.
    """
    return "".join(f"#{ord(char)};" if char in '"#<>&`%' else char for char in printable(text))
