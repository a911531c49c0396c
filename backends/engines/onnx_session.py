"""Opening an ONNX model as a session of ONNX Runtime, with the edits that its keys ask for."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
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

FATAL = 4
"""ONNX Runtime's number for the severity above errors."""

CPU_ONLY: Sequence[tuple[str, dict[str, Any]]] = (("CPUExecutionProvider", {}),)

NO_INITIALIZERS: Mapping[str, Any] = MappingProxyType({})


def open_session(
    path: Path,
    params: OnnxParams,
    context: Context,
    threads: int,
    providers: Sequence[tuple[str, dict[str, Any]]] = CPU_ONLY,
    *,
    source: str | bytes | None = None,
    quiet: bool = False,
    initializers: Mapping[str, Any] = NO_INITIALIZERS,
    configure: Callable[[Any], None] | None = None,
) -> Any:
    """Open a session of the model, with `mean`, `std` and `data_format` built into it.

    `threads` are those of an operator. `providers` are ONNX Runtime's, each with its options.
    `source` is what `read_source` returned, if it has been called. `quiet`: it may be refused, and
    ONNX Runtime writes nothing of it. `initializers` are weights by
    name, as OrtValues, of which the session makes no copy. `configure` sets further options of
    ONNX Runtime. Raises BackendError and ConfigError.
    """
    import onnxruntime

    source = read_source(path, params, context) if source is None else source
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    _set_options(options, params)
    # Threads that spin between operators would take processors from other instances and the event
    # loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = FATAL if quiet else LOG_SEVERITIES[params.log_level or "error"]
    for name, value in initializers.items():
        options.add_initializer(name, value)
    try:
        if configure is not None:
            configure(options)
        if isinstance(source, bytes):
            # Weights in a file beside the model are read from there, and never copied into the
            # model.
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent)
            )
        # Without the fallback, which prints to standard output and then runs on the CPU.
        session = onnxruntime.InferenceSession(
            source, options, providers=list(providers), enable_fallback=0
        )
        session._model_bytes = None  # it would keep the source for other providers
        return session
    except Exception as error:  # exceptions of ONNX Runtime and protobuf share no other base class
        raise BackendError(f"OnnxTensor: the model {path} can't be loaded: {error}") from error


def read_source(
    path: Path,
    params: OnnxParams,
    context: Context,
    edit: Callable[[Any], Any] | None = None,
) -> str | bytes:
    """Return what a session is opened with: the path, or the bytes of a model that is encrypted or
    has edits.

    `edit` changes the model, an `onnx.ModelProto`, before `mean` and `std` are built in; it raises
    ValueError for what it can't do (key `precision`). Raises BackendError and ConfigError.
    """
    for weights in path.parent.glob(f"{glob.escape(path.name)}[._]data"):
        context.files.check(weights)  # weights in a file beside the model, by its usual name
    if not path.is_file():
        raise BackendError(f"OnnxTensor: the model {path} {why_no_file(path)}")
    plain = decrypted(path)
    nhwc = getattr(params, "data_format", "nchw") == "nhwc"  # only ModelTensor has this key
    if edit is None and not nhwc and params.mean is None and params.std is None:
        return str(path) if plain is None else plain
    try:
        model = load_model(path if plain is None else plain, weights=edit is not None)
        key = "precision"
        try:
            if edit is not None:
                model = edit(model)
            key = "data_format"
            if nhwc:
                channels_last(model)
            key = "mean" if params.mean is not None else "std"
            if params.mean is not None or params.std is not None:
                fuse_normalisation(model, params.mean, params.std)
        except ValueError as error:
            raise config_error(context, key, str(error)) from error
        source: bytes = model.SerializeToString()
    except ConfigError:
        raise
    except Exception as error:  # exceptions of onnx and protobuf share no other base class
        raise BackendError(f"OnnxTensor: the model {path} can't be loaded: {error}") from error
    return source


def load_model(source: Path | str | bytes, *, weights: bool = False) -> Any:
    """Return the `onnx.ModelProto` of a file or of its bytes. `weights`: with those that are in a
    file beside it.
    """
    import onnx

    return (
        onnx.load_model_from_string(source)
        if isinstance(source, bytes)
        else onnx.load(source, load_external_data=weights)
    )


def external_files(model: Any, folder: Path) -> list[Path]:
    """Return the files beside a model, an `onnx.ModelProto` of that folder, that hold weights."""
    names = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [file for name in sorted(names) if (file := folder / name).is_file()]


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


def decrypted(path: Path) -> bytes | None:
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
