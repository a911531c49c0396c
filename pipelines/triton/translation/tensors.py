"""The names and shapes of a model's tensors, as the keys that all engines have."""

from __future__ import annotations

from typing import Any

from ..model import TritonModel


def translate_tensors(model: TritonModel, node: dict[str, Any]) -> None:
    """Let the engine take and give the tensors in the order of the configuration, those that the
    server keeps for sequences last.
    """
    config = model.config
    controls = [control.name for control in config.sequence_batching.control_input]
    states = config.sequence_batching.state
    if not (config.input and config.output):
        return  # the engine's own
    node["inputs"] = [
        *(tensor.name for tensor in config.input),
        *controls,
        *(state.input_name for state in states),
    ]
    node["outputs"] = [
        *(tensor.name for tensor in config.output),
        *(state.output_name for state in states),
    ]
    translate_reshape(model, node)


def translate_reshape(model: TritonModel, node: dict[str, Any]) -> None:
    """Let the node give tensors the shapes that the model or the steps of an ensemble have."""
    config = model.config
    reshape = {
        tensor.name: {"from": [*tensor.dims], "to": [*tensor.reshape.shape]}
        for tensor in config.input
        if tensor.HasField("reshape")
    } | {
        tensor.name: {"from": [*tensor.reshape.shape], "to": [*tensor.dims]}
        for tensor in config.output
        if tensor.HasField("reshape")
    }
    if reshape:
        node["reshape"] = reshape
