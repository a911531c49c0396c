"""The `input` and `output` of a ModelConfig as `[pipeline.inputs]` and `[pipeline.outputs]`."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .datatypes import datatype_name
from .model import TritonModel


def translate_ports(model: TritonModel, tables: Tables) -> None:
    """Write the declared tensors, each with its batch dimension."""
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
