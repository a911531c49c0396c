"""Weights of ONNX Runtime that several sessions map, in one process or in several.

A session arranges weights anew as it optimises its graph, so sessions that read the same file hold
copies. Here the first one writes its optimised graph and weights into memory, and the others map
them and optimise nothing: the same graph, with the same answers to the last bit.

What kernels pack once more when they start, each session has for itself: the matrices of MatMul and
its like. A model that consists of these has nothing to share.
"""

from __future__ import annotations

import fcntl
import logging
import math
import mmap
import os
from pathlib import Path
from typing import Any

from ..base import Context
from ..shared_files import Files
from .onnx_params import OnnxParams
from .onnx_session import open_session

logger = logging.getLogger("penstock.onnx")

MIN_SHARED_BYTES = 1 << 10
"""The smallest weight that is mapped. Shapes and other constants stay in the graph."""

LEAST_SHARE = 0.75
"""The least part of a model's weights that kernels do not pack, for it to be worth mapping."""

_ALL_SEALS = 0xF
"""Nobody may resize or write the file any more (linux/fcntl.h: F_SEAL_*)."""
_ADD_SEALS = 1033


def can_map(graph: Any) -> bool:
    """Return whether sessions could share most weights of a graph, an `onnx.GraphProto`."""
    import onnx

    if not hasattr(os, "memfd_create"):
        return False
    sizes: dict[str, int] = {
        tensor.name: math.prod(tensor.dims)
        * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    }
    mapped = {name for node in graph.node if node.op_type in _MAPPED for name in node.input}
    others = {name for node in graph.node if node.op_type not in _MAPPED for name in node.input}
    shared = sum(sizes[name] for name in sizes.keys() & (mapped - others))
    return shared >= LEAST_SHARE * sum(sizes.values()) > 0


_MAPPED = frozenset({"Conv", "Gather", "Add", "Mul", "BatchNormalization"})
"""The operators whose kernels read weights where they are."""


def write(path: Path, params: OnnxParams, context: Context, threads: int) -> Files:
    """Optimise a model, and write its graph and its weights into two files in memory.

    Raises BackendError, ConfigError and OSError.
    """
    files = Files()
    graph = files.add(_memory("graph"))
    weights = files.add(_memory("weights"))

    def save(options: Any) -> None:
        options.optimized_model_filepath = f"/proc/self/fd/{graph}"
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", str(weights))
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(MIN_SHARED_BYTES))

    open_session(path, params, context, threads, configure=save)
    for descriptor in files.descriptors:
        fcntl.fcntl(descriptor, _ADD_SEALS, _ALL_SEALS)
    return files


def open_mapped(
    files: Files, path: Path, params: OnnxParams, context: Context, threads: int
) -> Any:
    """Open a session of what `write` has written. Raises BackendError and ValueError."""
    import onnx
    import onnxruntime

    graph, weights = files.descriptors
    source = os.pread(graph, os.fstat(graph).st_size, 0)
    size = os.fstat(weights).st_size
    mapping = mmap.mmap(weights, size, mmap.MAP_SHARED, mmap.PROT_READ)
    names = {
        entry.value
        for tensor in onnx.load_model_from_string(source).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }

    def use(options: Any) -> None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(
            "session.use_external_initializer_file_buffers_directly", "1"
        )
        options.add_external_initializers_from_files_in_memory(
            [*names], [mapping] * len(names), [size] * len(names)
        )

    session = open_session(path, params, context, threads, source=source, configure=use)
    # It reads them there as long as it lives, and other instances find the files meanwhile.
    session.penstock_weights = files, mapping
    return session


def _memory(name: str) -> int:
    return os.memfd_create(f"penstock {name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
