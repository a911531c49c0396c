"""Triton's ModelSequenceBatching: what is reported of a node that keeps state, and how it changes.

* `max_sequence_idle_microseconds`: `idle_timeout`.
* `direct`, `oldest`: `strategy`. `max_queue_delay_microseconds` of both: `batching_timeout`.
* `oldest.max_candidate_sequences`: `max_sequences` by instance.
* `control_input`: `controls`. `state`: `state`.

The last two can't be changed: they must be as the server reports them (`declared_tensors.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Literal, cast

from penstock.backends.base import TensorPort
from penstock.backends.sequences.definition import (
    DEFAULT_MAX_SEQUENCES,
    Control,
    ControlKind,
    SequenceConfig,
    State,
)
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig
from penstock.pipelines.pipeline import Pipeline

from ...http.inputs.datatypes import datatype_of
from .config_fields import (
    MAX_MICROSECONDS,
    invalid,
    number_in,
    table_of,
)

CONTROL_KINDS: Mapping[ControlKind, str] = {
    "start": "CONTROL_SEQUENCE_START",
    "ready": "CONTROL_SEQUENCE_READY",
    "end": "CONTROL_SEQUENCE_END",
    "id": "CONTROL_SEQUENCE_CORRID",
}

FLAG_FIELDS: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "int32": ("int32_false_true", int),
    "float32": ("fp32_false_true", float),
    "bool": ("bool_false_true", bool),
}
"""By the dtype of a control's input: the field with its two values, and their type in JSON."""

MAX_SEQUENCES = 2**31 - 1

FIELDS = frozenset({"max_sequence_idle_microseconds", "control_input", "state"})

STRATEGY_FIELDS: Mapping[Literal["direct", "oldest"], frozenset[str]] = {
    "direct": frozenset({"max_queue_delay_microseconds"}),
    "oldest": frozenset({"max_queue_delay_microseconds", "max_candidate_sequences"}),
}
"""The fields of each strategy that are read."""

FIXED: Mapping[str, Any] = {
    "iterative_sequence": False,
    "minimum_slot_utilization": 0,
    "preferred_batch_size": [],
    "preserve_ordering": False,
    "use_same_buffer_for_input_output": False,
    "use_growable_memory": False,
}
"""The fields that can't be changed, with the values that they may have."""


def stateful_nodes_of(config: PipelineConfig) -> list[str]:
    """Return the nodes that keep state."""
    return [name for name, node in config.nodes.items() if node.sequence is not None]


# what is reported


def sequence_batching_of(pipeline: Pipeline) -> dict[str, Any] | None:
    """Return the object of a pipeline; None if it has no sequences.

    Of several nodes that keep state it describes the first one.
    """
    names = stateful_nodes_of(pipeline.config)
    if not names:
        return None
    config = pipeline.config.nodes[names[0]]
    sequence = cast("SequenceConfig", config.sequence)
    signatures = [node.signature for node in pipeline.nodes if node.name == names[0]]
    known = {port.name: port for one in signatures if one is not None for port in one.kept}
    strategy: dict[str, Any] = {
        "max_queue_delay_microseconds": round(config.batching_timeout * 1000)
    }
    if sequence.strategy == "direct":
        strategy["minimum_slot_utilization"] = 0.0
    else:
        strategy["max_candidate_sequences"] = _candidates(config)
        strategy["preferred_batch_size"] = []
        strategy["preserve_ordering"] = False
    return {
        sequence.strategy: strategy,
        "max_sequence_idle_microseconds": round(sequence.idle_timeout * 1e6),
        "control_input": [_control(one, known) for one in sequence.controls],
        "state": [_state(one, known) for one in sequence.state],
        "iterative_sequence": False,
    }


def _candidates(config: NodeConfig) -> int:
    """Return how many sequences an instance may have at a time."""
    most = cast("SequenceConfig", config.sequence).max_sequences or DEFAULT_MAX_SEQUENCES
    return max(1, most // sum(group.instances for group in config.instance_groups))


def _control(control: Control, known: Mapping[str, TensorPort]) -> dict[str, Any]:
    dtype = known[control.input].dtype
    described: dict[str, Any] = {
        "kind": CONTROL_KINDS[control.kind],
        **{field: [] for field, _ in FLAG_FIELDS.values()},
        "data_type": _type_name(dtype) if control.kind == "id" else "TYPE_INVALID",
    }
    if control.kind != "id" and dtype in FLAG_FIELDS:
        field, as_json = FLAG_FIELDS[dtype]
        described[field] = [as_json(control.false), as_json(control.true)]
    return {"name": control.input, "control": [described]}


def _state(state: State, known: Mapping[str, TensorPort]) -> dict[str, Any]:
    port = known[state.input]
    tensor = {"data_type": _type_name(port.dtype), "dims": list(port.shape)}
    initial = (
        {"zero_data": True}
        if state.initial == "zeros"
        else {"data_file": PurePath(state.initial).name}
    )
    return {
        "input_name": state.input,
        "output_name": state.output,
        **tensor,
        "initial_state": [{"name": state.input, **tensor, **initial}],
        "use_same_buffer_for_input_output": False,
        "use_growable_memory": False,
    }


def _type_name(dtype: str) -> str:
    datatype = datatype_of(dtype)
    if datatype is None:
        return "TYPE_INVALID"
    return f"TYPE_{'STRING' if datatype.name == 'BYTES' else datatype.name}"


# a change


def with_batching(node: NodeConfig, batching: Mapping[str, Any]) -> NodeConfig:
    """Return a node that keeps state with the changes that `batching` makes. What is not given
    stays, and so do its controls and states. Raises `InvalidRequest`.
    """
    sequence = cast("SequenceConfig", node.sequence)
    _check_fields("sequence_batching", batching, {*FIELDS, *STRATEGY_FIELDS})
    given: list[Literal["direct", "oldest"]] = [
        name for name in STRATEGY_FIELDS if batching.get(name) is not None
    ]
    if len(given) > 1:
        raise invalid("'sequence_batching' has 'direct' and 'oldest', expected one of them")
    for name in given:
        strategy = table_of(batching[name], name)
        _check_fields(name, strategy, STRATEGY_FIELDS[name])
        sequence = replace(sequence, strategy=name)
        if strategy.get("max_queue_delay_microseconds") is not None:
            delay = number_in(strategy, "max_queue_delay_microseconds", MAX_MICROSECONDS)
            node = replace(node, batching_timeout=delay / 1000)
        most = number_in(strategy, "max_candidate_sequences", MAX_SEQUENCES)
        if most and most != _candidates(node):
            instances = sum(group.instances for group in node.instance_groups)
            sequence = replace(sequence, max_sequences=most * instances)
    if idle := number_in(batching, "max_sequence_idle_microseconds", MAX_MICROSECONDS):
        sequence = replace(sequence, idle_timeout=idle / 1e6)
    return replace(node, sequence=sequence)


def _check_fields(name: str, table: Mapping[str, Any], read: set[str] | frozenset[str]) -> None:
    """Raise `InvalidRequest` for a field of object `name` that would be ignored."""
    for key, value in table.items():
        if key in read or (key in FIXED and value in (None, FIXED[key])):
            continue
        raise invalid(f"'{key[:100]}' of '{name}' can't be set here")
