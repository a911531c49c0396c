"""A pipeline as a Mermaid flowchart: for `penstock graph`, and whatever shows Mermaid (GitHub, editors, mermaid.live).

Nodes have ids of their own (`n1`, `n2`, …), so that no name of a file can be taken for a word of Mermaid; names are in the labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from penstock.backends.expressions.composite import Composite, CopySplit, Jump, Logic, MapReduce
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig
from penstock.pipelines.runs.plan import Plan, PlanNode

from .tables import expression
from .trace_text import printable

SHAPES = {
    "executor": ('["', '"]'),
    "shared": ('[["', '"]]'),
    "composite": ('{{"', '"}}'),
    "logic": ('(["', '"])'),
    "request": ('(("', '"))'),
}
"""What stands around a label: a box, a box with double sides, a hexagon, a stadium, a circle."""


def flowchart(configs: Iterable[PipelineConfig]) -> str:
    """The pipelines as one chart; of several each is a subgraph with its name.

    A request enters by a thick arrow. A dotted arrow leads where a node sends parts of an item, or where a loop enters again; a dotted line
    without a head, from a logical node to the one whose executors it uses. An arrow that ends in a circle is a `map` that reads a
    node further up.
    """
    found = list(configs)
    ids = count(1)
    lines = ["flowchart TD"]
    for number, config in enumerate(found, 1):
        chart = _pipeline(config, ids)
        if len(found) > 1:
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
    for plan_node in plan.nodes.values():
        yield f"    {_node(names[plan_node.name], plan_node)}"
    for name, label in _entries(config, plan):
        yield f"    {request} ==>{_on_edge(label)} {names[name]}"
    for plan_node in plan.nodes.values():
        here = names[plan_node.name]
        for following in plan_node.next:
            yield f"    {here} -->{_on_edge(_taken(plan_node, following))} {names[following.name]}"
        for source, _ in plan_node.sources or ():
            if source not in plan_node.before:
                yield f"    {names[source.name]} --o{_on_edge(_taken(source, plan_node))} {here}"
        if plan_node.config.shares is not None:
            yield f"    {here} -.-{_on_edge('shares')} {names[plan_node.config.shares]}"
        for group in plan_node.config.groups:
            if issubclass(group.spec.cls, (Jump, MapReduce, CopySplit)):
                yield f"    {here} -.->{_on_edge(_sent(group.spec.cls, group.spec.params))} {names[group.spec.params.jump]}"
    if config.loop and plan.default is not None:
        for plan_node in plan.default.plan_nodes:
            if not plan_node.next:
                restart = f"restart, at most {config.max_rounds} rounds"
                yield f"    {names[plan_node.name]} -.->{_on_edge(restart)} {names[plan.default.root.name]}"


def _entries(config: PipelineConfig, plan: Plan) -> Iterator[tuple[str, str]]:
    """Where requests come in, and what they must say for it."""
    targets = {
        getattr(group.spec.params, "jump", None)
        for node in config.nodes.values()
        for group in node.groups
    }
    for root in plan.roots:
        if plan.default is not None and root is plan.default.root:
            yield root.name, ""
        elif root.name not in targets:
            yield root.name, f"node_name = {root.name}"
    if plan.default is not None and plan.default.root not in plan.roots:
        yield plan.default.root.name, ""


def _node(identifier: str, plan_node: PlanNode) -> str:
    config = plan_node.config
    label = [plan_node.name, *_described(config)]
    if config.filter is not None:
        label.append(f"filter: {config.filter}")
    if plan_node.streams:
        label.append("streams")
    return _shape(identifier, _kind(config), label)


def _kind(config: NodeConfig) -> str:
    if config.shares is not None:
        return "shared"
    cls = config.groups[0].spec.cls
    return (
        "logic"
        if issubclass(cls, Logic)
        else "composite"
        if issubclass(cls, Composite)
        else "executor"
    )


def _described(config: NodeConfig) -> Iterator[str]:
    """Its expression, and how it runs where it has executors."""
    groups = config.groups
    for text in dict.fromkeys(expression(group.spec) for group in groups):
        yield text.replace(",", ", ")  # that long ones can be broken
    if _kind(config) != "executor":
        return
    most = " & ".join(str(group.bound(group.spec.declared_range.max)) for group in groups)
    instances = " & ".join(str(group.instances) for group in groups)
    process = ", in processes" if config.executor == "process" else ""
    yield f"max {most}, {instances} instance{'s' * (instances != '1')}{process}"


def _taken(source: PlanNode, plan_node: PlanNode) -> str:
    """What a `map` takes of a source."""
    return ", ".join(
        f"{key} → {name}"
        for origin, pairs in plan_node.sources or ()
        if origin is source
        for key, name in pairs
    )


def _sent(cls: type[Any], params: Any) -> str:
    if issubclass(cls, MapReduce):
        return f"each of {params.split}, merges {', '.join(params.merge)}"
    return f"pieces of {params.split_size}" if issubclass(cls, CopySplit) else "jump"


def _shape(identifier: str, kind: str, label: Iterable[str]) -> str:
    opening, closing = SHAPES[kind]
    return f"{identifier}{opening}{'<br>'.join(map(escaped, label))}{closing}"


def _on_edge(label: str) -> str:
    return f'|"{escaped(label)}"|' if label else ""


def escaped(text: str) -> str:
    """For a quoted label: what would end it, or be taken for HTML, Markdown, a directive or an entity, by its number."""
    return "".join(f"#{ord(each)};" if each in '"#<>&`%' else each for each in printable(text))
