"""Triton's pytorch backend as TorchScriptTensor, or TorchExportTensor for packages (`.pt2`)."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from ..config.tables import numpy_type
from .datatypes import datatype_name
from .model import TritonModel
from .parameters import ParameterReader
from .translate_tensors import translate_tensors

SWITCHES = (
    "INFERENCE_MODE",
    "DISABLE_CUDNN",
    "ENABLE_WEIGHT_SHARING",
    "ENABLE_CACHE_CLEANING",
)
SCRIPT_SWITCHES = (
    "DISABLE_OPTIMIZED_EXECUTION",
    "ENABLE_JIT_EXECUTOR",
    "ENABLE_JIT_PROFILING",
    "ENABLE_TENSOR_FUSER",
)
"""Parameters that only TorchScript has."""
COUNTS = ("INTER_OP_THREAD_COUNT", "INTRA_OP_THREAD_COUNT")


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the model, with the parameters of the same names."""
    is_package = model.model_file.endswith(".pt2")
    node["backend"] = "TorchExportTensor" if is_package else "TorchScriptTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
    translate_tensors(model, node)
    # Others go to the model as they come.
    dtypes = {
        tensor.name: numpy_type(datatype)
        for tensor in model.config.input
        if (datatype := datatype_name(tensor.data_type)) in {"BF16", "FP64"}
    }
    if dtypes:
        node["dtypes"] = dtypes
    reader = ParameterReader(model, tables)
    for key in SWITCHES if is_package else (*SWITCHES, *SCRIPT_SWITCHES):
        if (switch := reader.boolean(key)) is not None:
            node[key] = switch
    for key in COUNTS:
        if (count := reader.number(key)) is not None and count > 0:
            node[key] = count
