"""Triton's onnxruntime backend as OnnxTensor."""

from __future__ import annotations

import re
from typing import Any

from penstock.backends.gpu.ipc import gpu_count

from ...config.source import Tables
from ..model import TritonModel
from .onnx_file import check_tensors
from .parameters import ParameterReader
from .tensors import translate_tensors

GRAPH_LEVELS = {-1: "basic", 1: "extended", 2: "disabled"}
"""Triton's `optimization.graph.level` -> ONNX Runtime's optimisation; others: all."""


ALGORITHM_SEARCHES = ("exhaustive", "heuristic", "default")
ARENA_STRATEGIES = ("next_power_of_two", "same_as_requested")
"""The values of parameters, by Triton's numbers for them."""

NO_LIMIT_BYTES = 2**63
"""What is no limit to Triton, and more: `gpu_mem_limit` is the greatest size_t then."""


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the ONNX model by ONNX Runtime; or by ModelTensor, if the configuration
    wants the accelerator TensorRT or OpenVINO.
    """
    node["backend"] = "OnnxTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
    translate_tensors(model, node)
    check_tensors(model, tables, node)
    _translate_options(model, tables, node)
    _translate_cuda(model, tables, node)
    _translate_tensorrt(model, tables, node)
    _translate_openvino(model, node)


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
    arenas = reader.text("memory.enable_memory_arena_shrinkage") or ""
    if "cpu:0" in arenas or "gpu:" in arenas:
        node["shrink_mem_arena"] = True


def _translate_cuda(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Set what tunes the CUDA provider: from the accelerator, and from parameters of the same names
    with numbers for words, which count more.
    """
    given = accelerator_of(model, "cuda")
    options: dict[str, str] = {} if given is None else dict(given.parameters)
    reader = ParameterReader(model, tables)
    names = (
        ("cudnn_conv_algo_search", ALGORITHM_SEARCHES),
        ("arena_extend_strategy", ARENA_STRATEGIES),
    )
    for key, values in names:
        written = {value.replace("_", ""): value for value in values}
        if (word := options.get(key)) is not None:
            value = written.get(word.lower().removeprefix("k"))
            if value is None:
                message = f"found {key} {word!r}, expected one of {', '.join(values)}"
                tables.problems.append(model.problem(ACCELERATOR, message))
            else:
                node[key] = value
        if (number := reader.number(key, most=len(values) - 1)) is not None:
            node[key] = values[number]
    limit = reader.number("gpu_mem_limit")
    if limit is None and (text := options.get("gpu_mem_limit")) is not None:
        if text.isdecimal():
            limit = int(text)
        else:
            message = f"found gpu_mem_limit {text!r}, expected a number of bytes"
            tables.problems.append(model.problem(ACCELERATOR, message))
    if limit is not None and 0 < limit < NO_LIMIT_BYTES:
        node["arena_limit"] = max(1, limit // 2**20)
    if options.get("use_tf32", "").lower() in ("0", "false"):
        node["precision"] = "fp32"
    if options.get("enable_cuda_graph", "").lower() in ("0", "false"):
        node["cuda_graphs"] = False


ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"

TENSORRT_SHAPES = {"trt_profile_min_shapes": "min", "trt_profile_max_shapes": "max"}
"""Parameters of the accelerator -> keys of the node."""


def accelerator_of(model: TritonModel, name: str) -> Any:
    """Return the accelerator of that name that the configuration wants; None if it doesn't."""
    accelerators = model.config.optimization.execution_accelerators
    wanted = (*accelerators.gpu_execution_accelerator, *accelerators.cpu_execution_accelerator)
    return next((each for each in wanted if each.name == name), None)


def _on_cpu(model: TritonModel) -> bool:
    """Return whether the configuration puts all instances on the CPU."""
    groups = model.written.instance_group
    return bool(groups) and all(group.kind == group.KIND_CPU for group in groups)


def _translate_openvino(model: TritonModel, node: dict[str, Any]) -> None:
    """Use ModelTensor, which takes OpenVINO on the CPU where it is installed and faster."""
    device = node.get("device", "cpu")
    if accelerator_of(model, "openvino") is not None and device == "cpu":
        node |= {"backend": "ModelTensor", "device": "cpu"}


def _translate_tensorrt(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Use ModelTensor, which takes TensorRT where it is installed, if the accelerator is wanted
    and it is known which shapes to build for.
    """
    wanted = accelerator_of(model, "tensorrt")
    if wanted is None or _on_cpu(model):
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
            "-1, ONNX Runtime runs the model itself"
        )
        tables.warnings.append(model.problem(ACCELERATOR, message))
        return
    node.update(keys)
    node["backend"] = "ModelTensor"
    if gpu_count() and node.get("device") == "cpu":  # ONNX Runtime can't use it. TensorRT may
        del node["device"]
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
    keeps = wanted.parameters.get("trt_engine_cache_enable", "").lower() in ("1", "true")
    if keeps and (folder := wanted.parameters.get("trt_engine_cache_path", "")):
        node["model::cache"] = folder
