"""Streamed inputs: what stands in the way of one that is read while it arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from penstock.backends.errors import Problem
from penstock.backends.expressions.composite import BlockingLogic, Decoupled, JumpParams, Logic

from .definition import NodeConfig
from .graph import Graph
from .tables import PipelineTable


def check_stream_input(
    settings: PipelineTable, graph: Graph, nodes: Mapping[str, NodeConfig], loop: bool
) -> Iterator[Problem]:
    """Yield why an input with `stream = true` can't be one. The graph must be right otherwise.

    Only Python logic can wait for chunks: anything else would hold an executor meanwhile.
    """
    for exposed, table in settings.expose.items():
        for name, port in (table.inputs or {}).items():
            if port.stream:
                yield Problem(
                    "an exposed node takes no stream: expected stream = false",
                    node="pipeline",
                    key=f"expose.{exposed}.inputs.{name}.stream",
                )
    inputs = settings.inputs or {}
    streamed = next((name for name, port in inputs.items() if port.stream), None)
    if streamed is None:
        return
    key = f"inputs.{streamed}.stream"
    if len(inputs) > 1:
        others = ", ".join(repr(name) for name in inputs if name != streamed)
        message = f"a streamed input must be the only one, and there is {others} too"
        yield Problem(message, node="pipeline", key=key)
    if loop:
        message = "a stream can be read once, so the pipeline can't have loop = true"
        yield Problem(message, node="pipeline", key=key)
    entry = settings.entry or _only_root(graph, nodes)
    if entry is not None and entry in nodes and not _is_logic(nodes, entry):
        yield Problem(
            "only Python logic can read a stream: expected a node at the entry whose backend is an "
            f"async def (item, call), and {entry!r} is none",
            node="pipeline",
            key=key,
        )


def _is_logic(nodes: Mapping[str, NodeConfig], name: str) -> bool:
    node = nodes[nodes[name].shares or name]
    return any(
        issubclass(group.spec.cls, Logic)
        and not issubclass(group.spec.cls, (BlockingLogic, Decoupled))
        for group in node.instance_groups
    )


def _only_root(graph: Graph, nodes: Mapping[str, NodeConfig]) -> str | None:
    """Return the root at which requests enter; None if there are several."""
    targets = {
        group.spec.params.jump
        for node in nodes.values()
        for group in node.instance_groups
        if isinstance(group.spec.params, JumpParams)
    }
    roots = [root for root in graph.roots if root not in targets]
    return roots[0] if len(roots) == 1 else None
