"""Opening an ONNX model as a session of ONNX Runtime, with the edits that its keys ask for."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from ..base import Context
from ..errors import BackendError, ConfigError, Problem
from ..params import why_no_file
from .encryption import is_encrypted, read_model
from .normalise import channels_last, fuse_normalisation
from .onnx_params import OnnxParams
from .processors import threads_per_instance

LOG_SEVERITIES = {"verbose": 0, "info": 1, "warning": 2, "error": 3}
"""`log_level` -> ONNX Runtime's number for it."""


def open_session(path: Path, params: OnnxParams, context: Context, threads: int) -> Any:
    """Open a session of the model, with `mean`, `std` and `data_format` built into it.

    `threads` are those of an operator. Raises BackendError and ConfigError.
    """
    import onnxruntime

    for weights in path.parent.glob(f"{glob.escape(path.name)}[._]data"):
        context.files.check(weights)  # weights in a file beside the model, by its usual name
    if not path.is_file():
        raise BackendError(f"OnnxTensor: the model {path} {why_no_file(path)}")
    plain = _decrypted(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    _set_options(options, params)
    # Threads that spin between operators would take processors from other instances and the event
    # loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = LOG_SEVERITIES[params.log_level or "error"]
    source: str | bytes = str(path) if plain is None else plain
    try:
        nhwc = getattr(params, "data_format", "nchw") == "nhwc"  # only ModelTensor has this key
        if nhwc or params.mean is not None or params.std is not None:
            import onnx

            model = (
                onnx.load(path, load_external_data=False)
                if plain is None
                else onnx.load_model_from_string(plain)
            )
            key = "data_format"
            try:
                if nhwc:
                    channels_last(model)
                key = "mean" if params.mean is not None else "std"
                if params.mean is not None or params.std is not None:
                    fuse_normalisation(model, params.mean, params.std)
            except ValueError as error:
                raise config_error(context, key, str(error)) from error
            source = model.SerializeToString()
        if isinstance(source, bytes):
            # Weights in a file beside the model are read from there, and never copied into the
            # model.
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent)
            )
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except ConfigError:
        raise
    except Exception as error:  # exceptions of ONNX Runtime and protobuf share no other base class
        raise BackendError(f"OnnxTensor: the model {path} can't be loaded: {error}") from error


OPTIMIZATIONS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
"""`graph_optimization_level` -> ONNX Runtime's name for it."""


def _set_options(options: Any, params: OnnxParams) -> None:
    """Set how ONNX Runtime runs a graph, and where it takes its memory from."""
    import onnxruntime

    parallel = params.execution_mode == "parallel"
    options.inter_op_num_threads = (
        (params.inter_op_thread_count or threads_per_instance(1)) if parallel else 1
    )
    if parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    level = OPTIMIZATIONS[params.graph_optimization_level]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.enable_cpu_mem_arena = params.enable_mem_arena
    options.enable_mem_pattern = params.enable_mem_pattern


def _decrypted(path: Path) -> bytes | None:
    """Return the content of an `.encrypted` file.

    None for a plain one, which ONNX Runtime reads itself.
    """
    if not is_encrypted(path):
        return None
    try:
        return read_model(path)
    except OSError as error:
        raise BackendError(
            f"OnnxTensor: the model {path} can't be read: {error.strerror}"
        ) from error
    except BackendError as error:
        raise type(error)(f"OnnxTensor: {error}") from error


def config_error(context: Context, key: str, message: str) -> ConfigError:
    return ConfigError([Problem(message, node=context.node, key=key)])
