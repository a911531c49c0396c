"""Triton's pytorch backend as TorchScriptTensor, or TorchExportTensor for packages (`.pt2`)."""

from __future__ import annotations

import re
from typing import Any

from ...config.source import Tables
from ...config.tables import numpy_type
from ..datatypes import datatype_name
from ..model import TritonModel
from .parameters import ParameterReader
from .tensors import translate_tensors

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
    is_package = model.config.platform == "torch_aoti" or model.model_file.endswith(".pt2")
    node["backend"] = "TorchExportTensor" if is_package else "TorchScriptTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
    translate_tensors(model, node)
    if is_package:
        _use_places(model, tables, node)
    # Others go to the model as they come.
    dtypes = {
        name: numpy_type(datatype)
        for tensor, name in zip(model.config.input, node["inputs"], strict=False)
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


_PLACED = re.compile(r"ARGS\[(\d+)\]|RESULT(?:\[(\d+)\])?")


def _use_places(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Name the tensors of a package by their places: `ARGS[1]` is `INPUT__1`, and `RESULT`
    `OUTPUT__0`. Those inside of dicts and lists are refused.
    """
    places: dict[str, str] = {}
    for field, prefix in (("input", "INPUT"), ("output", "OUTPUT")):
        for name in node[f"{field}s"]:
            if not name.startswith(("ARGS", "KWARGS", "RESULT")):
                continue
            match = _PLACED.fullmatch(name)
            if match is None:
                message = f"found {name!r}, expected its place among all tensors, as in {prefix}__0"
                tables.problems.append(model.problem(field, message))
                return
            places[name] = f"{prefix}__{match[1] or match[2] or 0}"
        node[f"{field}s"] = [places.get(name, name) for name in node[f"{field}s"]]
    if "reshape" in node:
        node["reshape"] = {places.get(name, name): it for name, it in node["reshape"].items()}
