"""`sequence_batching` as `[NODE.sequence]`."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ..datatypes import datatype_name
from ..model import TritonModel

INITIAL_STATES = "initial_state"
"""The folder in that of the model that has the files of states to begin with."""

_CONTROLS = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_CORRID": "id",
}

_FLAGS = {
    "int32_false_true": "INT32",
    "fp32_false_true": "FP32",
    "bool_false_true": "BOOL",
}
"""The fields that have a control's two values -> their datatype."""

MAX_WAITING = 1 << 20
"""Triton lets any number of sequences wait until they may begin: `max_requests` bounds them."""


def translate_sequences(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node keep the states of sequences, if the model does.

    A Python model gets its controls as tensors from what runs it, which knows the whole
    configuration.
    """
    batching = model.config.sequence_batching
    if not model.config.HasField("sequence_batching") or batching.iterative_sequence:
        return  # of an iterative sequence, the backend makes the steps
    instances = node.get("instance_num", 1)
    direct = batching.HasField("direct")
    most = max(1, model.config.max_batch_size)
    delay = batching.direct.max_queue_delay_microseconds
    if not direct:
        most = batching.oldest.max_candidate_sequences or most
        delay = batching.oldest.max_queue_delay_microseconds
    if delay:
        node["batching_timeout"] = delay / 1000
    sequence: dict[str, Any] = {
        "strategy": "direct" if direct else "oldest",
        "max_sequences": most * instances,
        "max_waiting": MAX_WAITING,
        "idle_timeout": batching.max_sequence_idle_microseconds / 1e6,
    }
    if model.backend != "python":
        if batching.control_input:
            sequence["controls"] = _controls(batching)
        if batching.state:
            sequence["state"] = [_state(state) for state in batching.state]
    node["sequence"] = sequence


def _controls(batching: Any) -> dict[str, Any]:
    return {
        _CONTROLS[control.Kind.Name(control.kind)]: {"input": tensor.name, **_values(control)}
        for tensor in batching.control_input
        for control in tensor.control
    }


def _values(control: Any) -> dict[str, Any]:
    """Return the dtype of a control, and its values for false and true."""
    for field, dtype in _FLAGS.items():
        if values := list(getattr(control, field)):
            return {"dtype": dtype, "false": float(values[0]), "true": float(values[-1])}
    datatype = datatype_name(control.data_type)
    return {} if datatype is None else {"dtype": datatype}


def _state(state: Any) -> dict[str, Any]:
    table: dict[str, Any] = {"input": state.input_name, "output": state.output_name}
    if (datatype := datatype_name(state.data_type)) is not None:
        table["dtype"] = datatype
    dims = list(state.dims)
    for initial in state.initial_state:
        dims = list(initial.dims) or dims
        if initial.data_file:
            table["initial"] = f"{INITIAL_STATES}/{initial.data_file}"
    if dims and min(dims) >= 0:
        table["shape"] = dims
    return table
