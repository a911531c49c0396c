"""Triton's ModelConfig, read: what of it means something to a pipeline, and a pipeline's configuration with that. `description.py` writes
it.

| ModelConfig | pipeline |
|---|---|
| `max_batch_size` | the least `max` of its nodes (and their engines'); 0 changes none: it is what models without a batch dimension have |
| `instance_group` | `instance_num`, and `device` by `kind` and `gpus`, of the node of that name; without one of the only node |
| `dynamic_batching.max_queue_delay_microseconds` | `batching_timeout` of the node at the entry |
| `dynamic_batching.priority_levels`, `.default_priority_level` | `priority_levels`, `default_priority` there |
| `dynamic_batching.default_queue_policy` | `.max_queue_size`: `max_requests`; `.default_timeout_microseconds`: `timeout` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams
from penstock.pipelines.config.definition import (
    DEFAULT_MAX,
    GroupConfig,
    NodeConfig,
    PipelineConfig,
)

from ..json_text import kind_of

KEYS = frozenset({
    "name", "backend", "platform", "max_batch_size", "instance_group", "dynamic_batching", "default_model_filename",
    "input", "output", "version_policy", "optimization",
})  # fmt: skip
"""What may be given. Inputs and outputs are the pipeline's own, or its model's; there is one version; ONNX Runtime optimises."""

IGNORED = frozenset(
    {
        "runtime",
        "batch_input",
        "batch_output",
        "cc_model_filenames",
        "metric_tags",
        "parameters",
        "model_warmup",
    }
)
"""What may be there, empty, as in what the server itself tells."""

KINDS = frozenset({"KIND_AUTO", "KIND_CPU", "KIND_GPU"})


def configure(config: PipelineConfig, wanted: Mapping[str, Any], told: int = 0) -> PipelineConfig:
    """The pipeline as `wanted` has it. `told`: the `max_batch_size` that clients are told of it as it is, if that is known. It may be less
    than some nodes take: where it comes back, none changes. Raises `InvalidRequest`.
    """
    nodes = dict(config.nodes)
    working = [name for name, node in nodes.items() if node.shares is None and node.groups]
    bound = wanted.get("max_batch_size")
    if bound is not None and (bound := _number(bound, "max_batch_size", 2**31 - 1)) not in (
        0,
        told,
    ):
        nodes |= _bounded(bound, [nodes[name] for name in working])
    for entry in _list(wanted.get("instance_group"), "instance_group"):
        said = entry.get("name")
        if said not in working and len(working) != 1:
            raise _invalid(f"'instance_group' must name a node each, of {', '.join(working)}")
        name = said if said in working else working[0]
        nodes[name] = _placed(nodes[name], entry)
    batching = wanted.get("dynamic_batching")
    changes: dict[str, Any] = {}
    if batching is not None:
        batching = _table(batching, "dynamic_batching")
        entry_name = config.entry or next(iter(nodes))
        nodes[entry_name] = _batching(nodes[entry_name], batching)
        policy = _table(batching.get("default_queue_policy") or {}, "default_queue_policy")
        if policy.get("max_queue_size"):
            changes["max_requests"] = _number(policy["max_queue_size"], "max_queue_size", 2**31 - 1)
        if policy.get("default_timeout_microseconds"):
            changes["timeout"] = (
                _number(
                    policy["default_timeout_microseconds"], "default_timeout_microseconds", 2**53
                )
                / 1e6
            )
    return replace(config, nodes=nodes, **changes)


def maxima_of(config: PipelineConfig) -> dict[str, list[int | None]]:
    """What of nodes a `max_batch_size` changes."""
    return {name: [group.max for group in node.groups] for name, node in config.nodes.items()}


def _bounded(bound: int, nodes: list[NodeConfig]) -> dict[str, NodeConfig]:
    """The nodes whose `max` must change for the least of all to be `bound`."""
    most = {
        node.name: max(group.max or DEFAULT_MAX for group in node.groups) for node in nodes
    }  # a node's is that of its largest group
    least = min(most.values(), default=bound)

    def changes(maximum: int | None, node: NodeConfig) -> bool:
        return maximum is None or (
            maximum > bound if bound < least else maximum == most[node.name] < bound
        )

    return {
        node.name: replace(
            node,
            groups=tuple(
                _with_max(group, bound) if changes(group.max, node) else group
                for group in node.groups
            ),
        )
        for node in nodes
    }


def _with_max(group: GroupConfig, bound: int) -> GroupConfig:
    """A node's `max` may be its engines' too. Raises `InvalidRequest` where its backends take fewer: nobody would learn of it."""
    spec = group.spec
    if (
        spec.declared_range.max < bound
    ):  # else it stays, and an engine that was built for more need not be built again
        spec = _with_engine_max(spec, str(group.max), str(bound))
    if (most := spec.declared_range.max) < bound:
        raise _invalid(f"'max_batch_size' is {bound}, and {spec.name} takes {most} rows at most")
    return replace(group, spec=spec, max=bound)


def _with_engine_max(spec: Spec, old: str, new: str) -> Spec:
    params = spec.params
    if isinstance(params, EngineParams) and params.max == old:
        params = params.model_copy(update={"max": new})
    return replace(
        spec,
        params=params,
        children=tuple(_with_engine_max(child, old, new) for child in spec.children),
    )


def _placed(node: NodeConfig, entry: Mapping[str, Any]) -> NodeConfig:
    kind = entry.get("kind") or "KIND_AUTO"
    if kind not in KINDS:
        raise _invalid(f"'kind' of an instance group is one of {', '.join(sorted(KINDS))}")
    gpus = entry.get("gpus") or []
    if not isinstance(gpus, list):
        raise _invalid("'gpus' of an instance group is an array of numbers")
    devices = tuple(f"cuda:{_number(gpu, 'gpus', 1023)}" for gpu in gpus)
    if kind == "KIND_CPU" and devices:
        raise _invalid("an instance group of KIND_CPU has no 'gpus'")
    if kind == "KIND_CPU" and node.devices:
        devices = ("cpu",)
    count = _number(entry.get("count") or 1, "count", 1024) * max(
        1, len(devices) if kind != "KIND_CPU" else 1
    )
    groups = node.groups
    if len(groups) == 1:
        groups = (replace(groups[0], instances=count),)
    elif count != sum(group.instances for group in groups):
        raise _invalid(
            f"node '{node.name}' has several groups of instances, which an 'instance_group' can't change"
        )
    return replace(node, groups=groups, devices=devices or node.devices)


def _batching(node: NodeConfig, batching: Mapping[str, Any]) -> NodeConfig:
    delay = (
        _number(
            batching.get("max_queue_delay_microseconds") or 0, "max_queue_delay_microseconds", 2**53
        )
        / 1000
    )
    levels = _number(batching.get("priority_levels") or 0, "priority_levels", 1024)
    level = _number(batching.get("default_priority_level") or 0, "default_priority_level", 1024)
    if level > levels or (levels and not level):
        raise _invalid(
            f"'default_priority_level' is from 1 to the {levels} 'priority_levels'"
            if levels
            else "there are no 'priority_levels'"
        )
    return replace(node, batching_timeout=delay, priority_levels=levels, default_priority=level)


def _number(value: Any, key: str, most: int) -> int:
    if isinstance(value, str) and value.isdigit() and len(value) < 20:
        value = int(value)  # protobuf's JSON has int64 as strings
    if type(value) is not int or not 0 <= value <= most:
        raise _invalid(f"'{key}' is a whole number from 0 to {most}")
    return value


def _list(value: Any, key: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(f"'{key}' is a JSON {kind_of(value)}, expected an array")
    return [_table(each, key) for each in value]


def _table(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"'{key}': expected an object, got a JSON {kind_of(value)}")
    return value


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid config override: {what}")
