"""What a classifier answers if its file declares no outputs: its class, score and label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from penstock.backends.base import Context
from penstock.backends.expressions.kinds import chain_of
from penstock.backends.expressions.spec import Spec
from penstock.backends.operators.labels import labels_of_model

from .definition import NodeConfig, Port

CLASSIFIER = "SoftmaxArgMaxTensor"


def undeclared_outputs(
    nodes: Mapping[str, NodeConfig], entry: str | None, directory: Path
) -> tuple[Port, ...]:
    """Return the outputs of a pipeline that declares none: what its classifier sets, if each of its
    last nodes ends with one and all set the same.
    """
    found = {
        outputs_of_node(nodes[nodes[name].shares or name], directory)
        for name in _reached(nodes, entry)
        if not nodes[name].next
    }
    return found.pop() if len(found) == 1 else ()


def outputs_of_node(node: NodeConfig, directory: Path) -> tuple[Port, ...]:
    """Return the outputs of a node that ends with a classifier; () for any other."""
    found = {_outputs_of(group.spec, directory) for group in node.instance_groups}
    return found.pop() if len(found) == 1 else ()


def _outputs_of(spec: Spec, directory: Path) -> tuple[Port, ...]:
    last = [*chain_of(spec)][-1]
    if last.cls.__name__ != CLASSIFIER or last.filter is not None:
        return ()
    params = last.params
    ports = [
        Port("class", "integer", description="The best class, counted from 0."),
        Port("score", "number", description="Its probability."),
    ]
    if params.top_k > 1:
        ports.append(Port("top", "json", description="The best classes, the best first."))
    source = params.labels
    if source is None and params.model is not None:
        path = Context(directory=directory).resolve(params.model)
        source = params.model if path.suffix == ".onnx" and labels_of_model(path) else None
    if source is not None:
        label = Port("label", "text", labels=source, description="The best class's label.")
        ports.insert(0, label)
    return tuple(ports)


def _reached(nodes: Mapping[str, NodeConfig], entry: str | None) -> set[str]:
    """Return the nodes that requests pass which name no node."""
    if entry is None:
        targets = {following for node in nodes.values() for following in node.next} | {
            getattr(group.spec.params, "jump", None)
            for node in nodes.values()
            for group in node.instance_groups
        }
        roots = [name for name in nodes if name not in targets]
        if len(roots) != 1:
            return set()
        (entry,) = roots
    reached: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name not in reached and name in nodes:
            reached.add(name)
            waiting += nodes[name].next
    return reached
