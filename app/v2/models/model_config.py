"""Triton's ModelConfig as a change to a pipeline. `description.py` writes a ModelConfig.

* `max_batch_size`: the smallest `max` of the nodes (and of their engines). 0 changes nothing: it is
  what models without a batch dimension have.
* `instance_group`: `instance_num`, and `device` by `kind` and `gpus`, of the node with the group's
  name. A group without a name belongs to the only node.
* `dynamic_batching.max_queue_delay_microseconds`: `batching_timeout` of the entry node.
* `dynamic_batching.priority_levels`, `.default_priority_level`: `priority_levels` and
  `default_priority` of the entry node.
* `dynamic_batching.default_queue_policy.max_queue_size`: `queue_size` of the pipeline.
* `dynamic_batching.default_queue_policy.default_timeout_microseconds`: its `queue_timeout`.
* `sequence_batching`: see `sequence_batching.py`.
* `response_cache.enable`: `cache` of the pipeline.

A field that Penstock does not have must have the value that `description.py` reports, or be empty.
So no field is accepted and then ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams
from penstock.pipelines.config.definition import (
    DEFAULT_MAX,
    InstanceGroupConfig,
    NodeConfig,
    PipelineConfig,
)
from penstock.pipelines.runs.plan import Plan

from ...http.json_text import kind_of
from .config_fields import (
    MAX_MICROSECONDS,
    invalid,
    list_of,
    number_in,
    number_of,
    table_in,
    table_of,
)
from .sequence_batching import stateful_nodes_of, with_batching

ACCEPTED_KEYS = frozenset(
    {
        "name",
        "backend",
        "platform",
        "max_batch_size",
        "instance_group",
        "dynamic_batching",
        "sequence_batching",
        "default_model_filename",
        "input",
        "output",
        "version_policy",
        "optimization",
        "model_transaction_policy",
        "response_cache",
    }
)
"""The fields that may be given.

Inputs and outputs must be those of the pipeline or its model (`declared_tensors.py`). The version
and transaction policies must be the pipeline's own. ONNX Runtime optimises models itself: `FIXED`
has the values that `optimization` may have.
"""

FIXED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "optimization": {
        "priority": ("PRIORITY_DEFAULT",),
        "gather_kernel_buffer_threshold": (0,),
        "eager_batching": (False,),
    },
    "dynamic_batching": {"preserve_ordering": (False,), "priority_queue_policy": ({},)},
    "response_cache": {},
    "default_queue_policy": {"timeout_action": ("REJECT",), "allow_timeout_override": (True,)},
    "instance_group": {
        "secondary_devices": ([],),
        "profile": ([],),
        "passive": (False,),
        "host_policy": ("",),
    },
}
"""The fields of each object that can't be changed, with the values that they may have."""

SETTINGS: Mapping[str, frozenset[str]] = {
    "dynamic_batching": frozenset(
        {
            "preferred_batch_size",
            "max_queue_delay_microseconds",
            "priority_levels",
            "default_priority_level",
            "default_queue_policy",
        }
    ),
    "default_queue_policy": frozenset({"max_queue_size", "default_timeout_microseconds"}),
    "instance_group": frozenset({"name", "kind", "count", "gpus"}),
    "response_cache": frozenset({"enable"}),
}
"""The fields of each object that are read."""

KEYS_ACCEPTED_EMPTY = frozenset(
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
"""The fields that may be there if they are empty, as in what the server itself reports."""

ENTRY_SETTINGS = SETTINGS["dynamic_batching"] - {"preferred_batch_size", "default_queue_policy"}
"""The fields of `dynamic_batching` that set keys of the entry node."""

INSTANCE_KINDS = frozenset({"KIND_AUTO", "KIND_CPU", "KIND_GPU"})

MAX_BATCH_SIZE = 2**31 - 1
MAX_QUEUE_SIZE = 2**31 - 1
MAX_INSTANCES = 1024
MAX_GPU = 1023
MAX_PRIORITY_LEVELS = 1024


def configure(
    config: PipelineConfig, override: Mapping[str, Any], reported: int = 0
) -> PipelineConfig:
    """Return the pipeline with the changes that `override` makes.

    `reported` is the `max_batch_size` that clients see for the pipeline as it is, 0 if that is not
    known. Some nodes may take more rows than that, so an `override` that sends it back changes no
    node. Raises `InvalidRequest`.
    """
    nodes = dict(config.nodes)
    working = [name for name, node in nodes.items() if node.shares is None and node.instance_groups]
    bound = override.get("max_batch_size")
    if bound is not None:
        bound = number_of(bound, "max_batch_size", MAX_BATCH_SIZE)
        if bound not in {0, reported}:
            nodes |= _bounded(bound, [nodes[name] for name in working])
    _check_fields(table_in(override, "optimization"), "optimization")
    _check_policy(table_in(override, "version_policy"), version_policy_of(config))
    _check_decoupled(table_in(override, "model_transaction_policy"), config)
    placed: set[str] = set()
    for group in list_of(override.get("instance_group"), "instance_group"):
        _check_fields(group, "instance_group")
        name = group.get("name")
        if not isinstance(name, str | None):
            raise invalid(f"'name' of an instance group is a JSON {kind_of(name)}, not a string")
        if name not in working:
            if len(working) != 1:
                raise invalid(
                    "each 'instance_group' must have the 'name' of a node, one of "
                    f"{', '.join(working)}"
                )
            name = working[0]
        if name in placed:
            raise invalid(f"two 'instance_group' are of node '{name}', expected one for each node")
        placed.add(name)
        nodes[name] = _placed(nodes[name], group)
    batching = override.get("dynamic_batching")
    changes: dict[str, Any] = {}
    if batching is not None:
        batching = table_of(batching, "dynamic_batching")
        _check_fields(batching, "dynamic_batching")
        _check_preferred(batching.get("preferred_batch_size"), {bound, reported})
        entry_point = Plan(config.nodes, config.entry).default
        if entry_point is not None:
            root = entry_point.root.name
            nodes[root] = _batching(nodes[root], batching)
        elif given := sorted(ENTRY_SETTINGS & {key for key, value in batching.items() if value}):
            raise invalid(
                f"'{given[0]}' is of the entry node, and the pipeline has several roots and no "
                "'entry'"
            )
        policy = table_in(batching, "default_queue_policy")
        _check_fields(policy, "default_queue_policy")
        if size := number_in(policy, "max_queue_size", MAX_QUEUE_SIZE):
            changes["queue_size"] = size
        if timeout := number_in(policy, "default_timeout_microseconds", MAX_MICROSECONDS):
            changes["queue_timeout"] = timeout / 1e6
    if (sequences := override.get("sequence_batching")) is not None:
        stateful = stateful_nodes_of(config)
        if len(stateful) != 1:
            raise invalid(
                "'sequence_batching' is of the node that keeps state ([NODE.sequence]), and the "
                f"pipeline has {len(stateful) or 'none'}"
            )
        name = stateful[0]
        nodes[name] = with_batching(nodes[name], table_of(sequences, "sequence_batching"))
    cache = table_in(override, "response_cache")
    _check_fields(cache, "response_cache")
    enable = cache.get("enable")
    if enable is not None:
        if type(enable) is not bool:
            raise invalid(
                f"'enable' of 'response_cache' is a JSON {kind_of(enable)}, not a boolean"
            )
        if enable and any(node.streams or node.sequence for node in nodes.values()):
            raise invalid(
                "'response_cache' can't be enabled: the model answers in parts, or keeps state"
            )
        changes["cache"] = enable
    return replace(config, nodes=nodes, **changes)


def _check_fields(table: Mapping[str, Any], name: str) -> None:
    """Raise `InvalidRequest` for a field of object `name` that would be ignored."""
    fixed, settings = FIXED[name], SETTINGS.get(name, frozenset())
    for key, value in table.items():
        if key in settings:
            continue
        if key not in fixed:
            raise invalid(
                f"'{key[:100]}' of '{name}' can't be set here, expected one of "
                f"{', '.join(sorted({*settings, *fixed}))}"
            )
        if value is not None and not any(
            type(value) is type(allowed) and value == allowed for allowed in fixed[key]
        ):
            raise invalid(
                f"'{key}' of '{name}' can't be changed, expected {json.dumps(fixed[key][-1])}"
            )


def _check_preferred(sizes: Any, maxima: set[int | None]) -> None:
    """Raise `InvalidRequest` for preferred batch sizes other than the largest size of a batch.

    A batch takes what waits, up to that size (docs/explanation/scheduling.md, rule 1).
    """
    if sizes is None:
        return
    if not isinstance(sizes, list) or any(
        number_of(size, "preferred_batch_size", MAX_BATCH_SIZE) not in maxima for size in sizes
    ):
        raise invalid(
            "'preferred_batch_size' of 'dynamic_batching' can't be set here to anything but "
            "[max_batch_size]: a batch takes what waits"
        )


def version_policy_of(config: PipelineConfig) -> dict[str, Any]:
    """Return the version policy of a pipeline in the shape of ModelConfig."""
    policy = config.version_policy
    if policy is None:
        return {"latest": {"num_versions": 1}}
    if policy.specific is not None:
        return {
            "specific": {
                "versions": [
                    int(version) if version.isdecimal() and len(version) < 20 else version
                    for version in policy.specific
                ]
            }
        }
    return {"all": {}} if policy.latest is None else {"latest": {"num_versions": policy.latest}}


def _check_policy(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for a version policy other than the pipeline's own.

    Fields that are null, and an empty object in place of the own one, declare nothing.
    """
    for key, value in given.items():
        if value is None and key in {"latest", "all", "specific"}:
            continue
        if key not in own:
            raise invalid(
                f"'{key[:100]}' of 'version_policy' can't be set here, expected {', '.join(own)}"
            )
        if value not in ({}, own[key]):
            raise invalid(
                f"'{key}' of 'version_policy' can't be changed, expected {json.dumps(own[key])}"
            )


def _check_decoupled(given: Mapping[str, Any], config: PipelineConfig) -> None:
    """Raise `InvalidRequest` unless a transaction policy is the pipeline's own."""
    entry_point = Plan(config.nodes, config.entry).default
    streams = entry_point is not None and entry_point.stream is not None
    for key, value in given.items():
        if key != "decoupled":
            raise invalid(
                f"'{key[:100]}' of 'model_transaction_policy' can't be set here, expected decoupled"
            )
        if value is not None and value is not streams:
            raise invalid(
                "'decoupled' of 'model_transaction_policy' can't be changed, expected "
                f"{json.dumps(streams)}"
            )


def maxima_of(config: PipelineConfig) -> dict[str, list[int | None]]:
    """Return the values of the nodes that a `max_batch_size` may change."""
    return {
        name: [group.max for group in node.instance_groups] for name, node in config.nodes.items()
    }


def _bounded(bound: int, nodes: list[NodeConfig]) -> dict[str, NodeConfig]:
    """Change the `max` of the nodes so that the smallest of all is `bound`."""
    # A node takes as many rows as its largest group.
    most = {
        node.name: max(group.max or DEFAULT_MAX for group in node.instance_groups) for node in nodes
    }
    least = min(most.values(), default=bound)

    def changes(maximum: int | None, node: NodeConfig) -> bool:
        return maximum is None or (
            maximum > bound if bound < least else maximum == most[node.name] < bound
        )

    return {
        node.name: replace(
            node,
            instance_groups=tuple(
                _with_max(group, bound) if changes(group.max, node) else group
                for group in node.instance_groups
            ),
        )
        for node in nodes
    }


def _with_max(group: InstanceGroupConfig, bound: int) -> InstanceGroupConfig:
    """Set the `max` of a group, and of its engines if they have the same.

    Raises `InvalidRequest` if its backends take fewer rows: nothing would report that otherwise.
    """
    spec = group.spec
    # An engine that takes enough stays as it is, so that it need not be built again.
    if spec.declared_range.max < bound:
        spec = _with_engine_max(spec, str(group.max), str(bound))
    if (most := spec.declared_range.max) < bound:
        raise invalid(f"'max_batch_size' is {bound}, but {spec.name} takes at most {most} rows")
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


def _placed(node: NodeConfig, instance_group: Mapping[str, Any]) -> NodeConfig:
    """Set the number of a node's instances, and their devices."""
    kind = instance_group.get("kind")
    if kind is None:
        kind = "KIND_AUTO"
    if kind not in sorted(INSTANCE_KINDS):
        raise invalid(
            f"'kind' of an instance group must be one of {', '.join(sorted(INSTANCE_KINDS))}"
        )
    gpus = instance_group.get("gpus")
    if gpus is None:
        gpus = []
    if not isinstance(gpus, list):
        raise invalid("'gpus' of an instance group must be an array of numbers")
    devices = tuple(f"cuda:{number_of(gpu, 'gpus', MAX_GPU)}" for gpu in gpus)
    if kind == "KIND_CPU" and devices:
        raise invalid("an instance group of KIND_CPU must have no 'gpus'")
    groups = node.instance_groups
    instances = sum(group.instances for group in groups)
    count = number_in(instance_group, "count", MAX_INSTANCES)
    # ModelConfig counts the instances on each device. 0 is not given: as many as now.
    if count:
        count *= max(1, len(devices))
    elif devices:
        count = max(1, instances // max(1, len(node.devices))) * len(devices)
    else:
        count = instances
    if kind == "KIND_CPU" and node.devices:
        devices = ("cpu",)
    if len(groups) == 1:
        groups = (replace(groups[0], instances=count),)
    elif count != instances:
        raise invalid(
            f"node '{node.name}' has several groups of instances, which an 'instance_group' can't "
            "change"
        )
    return replace(node, instance_groups=groups, devices=devices or node.devices)


def _batching(node: NodeConfig, batching: Mapping[str, Any]) -> NodeConfig:
    """Set how long a node gathers batches, and its priorities. What is not given stays."""

    def number(key: str, most: int, now: int) -> int:
        value = batching.get(key)
        return now if value is None else number_of(value, key, most)

    given = batching.get("max_queue_delay_microseconds")
    delay = (
        node.batching_timeout
        if given is None
        else number_of(given, "max_queue_delay_microseconds", MAX_MICROSECONDS) / 1000
    )
    levels = number("priority_levels", MAX_PRIORITY_LEVELS, node.priority_levels)
    if node.queue_policies and levels != node.priority_levels:
        raise invalid(
            f"'priority_levels' of node '{node.name}' can't be changed, expected "
            f"{node.priority_levels}: each level has a queue policy"
        )
    # A level that stays makes no sense without levels.
    now = node.default_priority if levels else 0
    level = number("default_priority_level", MAX_PRIORITY_LEVELS, now)
    if level > levels or (levels and not level):
        raise invalid(
            f"'default_priority_level' must be from 1 to {levels}, the 'priority_levels'"
            if levels
            else "'default_priority_level' is set, but there are no 'priority_levels'"
        )
    return replace(node, batching_timeout=delay, priority_levels=levels, default_priority=level)
