"""Triton's onnxruntime backend as OnnxTensor."""

from __future__ import annotations

import re
from typing import Any

from ...config.source import Tables
from ..model import TritonModel
from .onnx_file import check_tensors
from .parameters import ParameterReader
from .tensors import translate_tensors

GRAPH_LEVELS = {-1: "basic", 1: "extended", 2: "disabled"}
"""Triton's `optimization.graph.level` -> ONNX Runtime's optimisation; others: all."""


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the ONNX model by ONNX Runtime on the CPU; or by ModelTensor, if the
    configuration wants the accelerator TensorRT.
    """
    node["backend"] = "OnnxTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
    translate_tensors(model, node)
    check_tensors(model, tables, node)
    _translate_options(model, tables, node)
    _translate_tensorrt(model, tables, node)


def _translate_options(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    level = model.config.optimization.graph.level
    if level in GRAPH_LEVELS:
        node["graph_optimization_level"] = GRAPH_LEVELS[level]
    reader = ParameterReader(model, tables)
    if reader.number("execution_mode", most=1) == 1:
        node["execution_mode"] = "parallel"
    for parameter, key in (
        ("intra_op_thread_count", "threads"),
        ("inter_op_thread_count", "inter_op_thread_count"),
    ):
        if (count := reader.number(parameter)) is not None and count > 0:
            node[key] = count
    for key in ("enable_mem_arena", "enable_mem_pattern"):
        if reader.boolean(key) is False:
            node[key] = False
    if "cpu:0" in (reader.text("memory.enable_memory_arena_shrinkage") or ""):
        node["shrink_mem_arena"] = True


ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"

TENSORRT_SHAPES = {"trt_profile_min_shapes": "min", "trt_profile_max_shapes": "max"}
"""Parameters of the accelerator -> keys of the node."""


def _translate_tensorrt(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Use ModelTensor, which takes TensorRT where it is installed, if the accelerator is wanted
    and it is known which shapes to build for.
    """
    accelerators = model.config.optimization.execution_accelerators.gpu_execution_accelerator
    wanted = next((each for each in accelerators if each.name == "tensorrt"), None)
    groups = model.written.instance_group
    if wanted is None or (groups and all(group.kind == group.KIND_CPU for group in groups)):
        return
    keys: dict[str, Any] = {}
    for parameter, key in TENSORRT_SHAPES.items():
        text = wanted.parameters.get(parameter, "")
        shapes = dict(re.findall(r"([^:,]+):(\d+(?:x\d+)*)", text))
        if shapes and all(name in shapes for name in node["inputs"]):
            keys[key] = ",".join(shapes[name] for name in node["inputs"])
    is_open = any(size < 0 for tensor in model.config.input for size in tensor.dims)
    if is_open and "max" not in keys:
        message = (
            "TensorRT builds for known shapes: without trt_profile_max_shapes, or dims without "
            "-1, ONNX Runtime runs the model on the CPU"
        )
        tables.warnings.append(model.problem(ACCELERATOR, message))
        return
    node.update(keys)
    node["backend"] = "ModelTensor"
    tables.warnings = [
        warning for warning in tables.warnings if not (warning.key or "").endswith(".kind")
    ]
    precision = wanted.parameters.get("precision_mode", "FP32").lower()
    if precision != "fp32":
        node["precision"] = precision
    if size := wanted.parameters.get("max_workspace_size_bytes", ""):
        if size.isdecimal():
            node["max_workspace_size"] = max(1, int(size) // 2**20)
        else:
            message = f"found max_workspace_size_bytes {size!r}, expected a number of bytes"
            tables.problems.append(model.problem(ACCELERATOR, message))
