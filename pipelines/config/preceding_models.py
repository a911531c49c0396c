"""Tell classifiers, detectors and recognisers the model whose output they get.

Its metadata may have their labels or characters. It is the engine before them: in their expression,
or else in the nodes before theirs, if these agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from penstock.backends.expressions.spec import Spec
from penstock.backends.operators.labels import ModelNamesParams
from penstock.backends.params import EngineParams

from .definition import NodeConfig


def with_preceding_models(nodes: Mapping[str, NodeConfig]) -> dict[str, NodeConfig]:
    """Return the nodes, which are in topological order, with `model` set where a node leaves it out
    and there is one model before it.
    """
    changed: dict[str, NodeConfig] = {}
    arriving: dict[str, set[str | None]] = {name: set() for name in nodes}
    for name, node in nodes.items():
        model = _only(arriving[name])
        groups, leaving = [], set[str | None]()
        for group in nodes[node.shares or name].instance_groups:
            spec, last = _with_model(group.spec, model)
            groups.append(replace(group, spec=spec))
            leaving.add(last)
        changed[name] = node if node.shares else replace(node, instance_groups=tuple(groups))
        for following in node.next:
            arriving[following] |= leaving
    return changed


def _with_model(spec: Spec, model: str | None) -> tuple[Spec, str | None]:
    """Return the expression with its models set, and the last model in it. `model` is the one
    before it.
    """
    params = spec.params
    if isinstance(params, EngineParams):
        return spec, params.model
    if isinstance(params, ModelNamesParams) and params.model is None and model is not None:
        spec = replace(spec, params=params.model_copy(update={"model": model}))
    children = []
    for child in spec.children:
        changed, model = _with_model(child, model)
        children.append(changed)
    return (replace(spec, children=tuple(children)) if children else spec), model


def _only(models: set[str | None]) -> str | None:
    return next(iter(models)) if len(models) == 1 else None
