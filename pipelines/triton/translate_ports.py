"""The `input` and `output` of a ModelConfig as `[pipeline.inputs]` and `[pipeline.outputs]`."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .datatypes import datatype_name
from .model import TritonModel

HAS_OWN = frozenset({"tensorrt", "openvino"})
"""The backends whose engines know their tensors, and whose configurations may lack them."""


def translate_ports(model: TritonModel, tables: Tables) -> None:
    """Write the declared tensors, each with its batch dimension.

    If the configuration has none, even after it was completed, the engine says its own.
    """
    if model.backend in HAS_OWN and not (model.config.input and model.config.output):
        return
    if model.backend == "pytorch":
        message = "it is empty, and a TorchScript model doesn't name its tensors: expected them"
        tables.problems += [
            model.problem(field, message)
            for field in ("input", "output")
            if not getattr(model.config, field)
        ]
    tables.pipeline["inputs"] = {
        tensor.name: _port(tensor, model) | ({"optional": True} if tensor.optional else {})
        for tensor in model.config.input
    }
    tables.pipeline["outputs"] = {
        tensor.name: _port(tensor, model)
        | ({"labels": tensor.label_filename} if tensor.label_filename else {})
        for tensor in model.config.output
    }


def _port(tensor: Any, model: TritonModel) -> dict[str, Any]:
    port: dict[str, Any] = {"kind": "tensor"}
    if (datatype := datatype_name(tensor.data_type)) is not None:
        port["dtype"] = datatype
    port["shape"] = [*([-1] if model.batched else []), *tensor.dims]
    return port
