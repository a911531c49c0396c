"""Pipelines as a Mermaid flowchart, for `penstock graph` and anything that renders Mermaid.

Nodes have generated ids (`n1`, `n2`, …), because a name could be a Mermaid keyword. The names are
in the labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from penstock.pipelines.config.definition import NodeConfig, PipelineConfig
from penstock.pipelines.runs.plan import Plan, PlanNode

from ..graph import EdgeKind, edges_of, expressions_of, kind_of
from .output import printable

NODE_SHAPES = {
    "executor": ('["', '"]'),  # a box
    "shared": ('[["', '"]]'),  # a box with double sides
    "composite": ('{{"', '"}}'),  # a hexagon
    "logic": ('(["', '"])'),  # a stadium
    "request": ('(("', '"))'),  # a circle
}
"""Kind of node -> the text before and after its label."""

ARROWS: dict[EdgeKind, str] = {
    "enters": "==>",
    "next": "-->",
    "map": "--o",
    "shares": "-.-",
    "calls": "-.->",
    "restart": "-.->",
}


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
    for edge in edges_of(config, plan):
        source = names[edge.source] if edge.source else request
        yield f"    {source} {ARROWS[edge.kind]}{_on_edge(edge.label)} {names[edge.target]}"


def _node(identifier: str, node: PlanNode) -> str:
    label = [node.name, *_described(node.config)]
    if node.config.filter is not None:
        label.append(f"filter: {node.config.filter}")
    if node.streams:
        label.append("streams")
    return _shape(identifier, kind_of(node.config), label)


def _described(config: NodeConfig) -> Iterator[str]:
    """Yield the lines of a label: the node's expression and, if it has executors, their numbers."""
    groups = config.instance_groups
    for text in expressions_of(config):
        yield text.replace(",", ", ")  # so that Mermaid can break long ones
    if kind_of(config) != "executor":
        return
    most = " & ".join(str(group.bound(group.spec.declared_range.max)) for group in groups)
    instances = " & ".join(str(group.instances) for group in groups)
    where = {"process": ", in processes", "loop": ", on the event loop"}.get(config.executor, "")
    yield f"max {most}, {instances} instance{'s' * (instances != '1')}{where}"


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
