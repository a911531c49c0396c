"""The recipe of an engine: all that it is made from.

Cached engines are identified by it, since engines of one recipe are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base import Context
from ...errors import BackendError
from ..encryption import is_encrypted, read_model
from ..precision import converter_name
from .library import Library
from .params import TensorrtParams

ENGINE_SUFFIXES = (".trt", ".plan", ".engine")
"""Suffixes of files that are engines already."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The sources of an engine: the model, the parameters, the batch sizes and the GPU."""

    model: Path
    params: TensorrtParams
    sizes: tuple[int, ...]
    """The batch sizes to prepare for, in rising order."""
    gpu: str = "none"
    """The GPU that the engine is built on and for; "none" if any GPU may run it."""
    node: str = ""
    """The node's name, for messages."""

    @classmethod
    def of(
        cls,
        params: TensorrtParams,
        context: Context,
        sizes: Sequence[int],
        library: Library,
        gpu: str | None,
    ) -> Recipe:
        """Make the recipe of a node. `gpu` is the GPU that torch sees, None without one.

        Raises BackendError if the model does not exist.
        """
        recipe = cls(context.resolve_input(params.model), params, tuple(sizes), node=context.node)
        if not recipe.model.is_file():
            raise BackendError(f"{recipe}: the model {recipe.model} does not exist")
        return replace(recipe, gpu=gpu_of(params, library, gpu))

    @property
    def is_engine(self) -> bool:
        """True if the model's file is an engine already."""
        return plain_suffix(self.model) in ENGINE_SUFFIXES

    def key(self, library: Library) -> dict[str, Any]:
        """Return the facts that decide the engine's content, as JSON values.

        Those that change most often come first, since messages name the first difference. Raises
        BackendError for weights outside the model's folder.
        """
        params = self.params
        return {
            "model": model_hash(self.model, str(self)),
            "library": library.name,
            "version": library.version,
            "gpu": self.gpu,
            "precision": params.precision or "",
            "precision::fp32": list(params.precision_fp32),
            "converter": converter_name(params.precision),
            "min": params.min or "",
            "max": params.max or "",
            "batch sizes": list(self.sizes),
            # Not in the keys of engines that were cached before there was this key.
            **({"batch_axis": params.batch_axis} if params.batch_axis else {}),
            "mean": list(params.mean or ()),
            "std": list(params.std or ()),
            # Engines that were cached before it was float32 have an input that takes only uint8.
            **({} if params.mean is params.std is None else {"normalised input": "float32"}),
            "data_format": params.data_format,
            "postprocessor": params.postprocessor or "",
            "top_k": params.top_k,
            "max_workspace_size": params.max_workspace_size or 0,
            "weight streaming": params.weight_budget_percentage is not None,
            "hardware_compatibility": params.hardware_compatibility or "",
        }

    def __str__(self) -> str:
        return message_prefix(self.node)


def message_prefix(node: str) -> str:
    """Return how messages begin: the node and the backend."""
    return f"node {node!r}: TensorrtTensor" if node else "TensorrtTensor"


def plain_suffix(path: Path) -> str:
    """Return the suffix in lower case, without a final `.encrypted`."""
    return (path.with_suffix("") if is_encrypted(path) else path).suffix.lower()


def gpu_of(params: TensorrtParams, library: Library, gpu: str | None) -> str:
    """Return the GPU that an engine is for, or "none".

    TensorRT-RTX compiles for the GPU when it loads an engine, so its engines are for none, unless
    hardware_compatibility = "current" asks for this one.
    """
    if library.is_rtx and (params.hardware_compatibility or "").lower() != "current":
        return "none"
    return gpu or "none"


def model_hash(path: Path, where: str) -> str:
    """Return the SHA-256 of the file and of the files beside it that hold its weights.

    `where` begins the message of a BackendError.
    """
    digest = hashlib.sha256()
    for model_file in (path, *_external_files(path, where)):
        with model_file.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_onnx(path: Path, where: str) -> Any:
    """Read an ONNX model, without weights that lie in other files.

    Raises BackendError for a file that can't be read or is not an ONNX model.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(read_model(path))
    except OSError as error:
        raise BackendError(f"{where}: the model {path} can't be read: {error.strerror}") from error
    except BackendError:
        raise
    except Exception as error:  # protobuf's exceptions share no other base class
        raise BackendError(
            f"{where}: the model {path} is not an ONNX file, or is truncated: {error}"
        ) from error
    if not model.graph.output:
        raise BackendError(
            f"{where}: the model {path} is not an ONNX file: its graph has no output"
        )
    return model


def _external_files(path: Path, where: str) -> list[Path]:
    """Return the files in which an ONNX model keeps weights.

    Raises BackendError if one is outside the model's folder, or missing.
    """
    if plain_suffix(path) != ".onnx":
        return []
    from onnx import TensorProto

    graph = read_onnx(path, where).graph
    tensors = [
        *graph.initializer,
        *(
            attribute.t
            for node in graph.node
            for attribute in node.attribute
            if attribute.HasField("t")
        ),
    ]
    names = {
        field.value
        for tensor in tensors
        if tensor.data_location == TensorProto.EXTERNAL
        for field in tensor.external_data
        if field.key == "location"
    }
    folder = path.parent.resolve()
    files = []
    for name in sorted(names):
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise BackendError(
                f"{where}: the model {path} keeps weights in {name}, outside of its folder: move "
                "them beside it"
            )
        if not file.is_file():
            raise BackendError(
                f"{where}: the model {path} keeps weights in {name}, which is not beside it"
            )
        files.append(file)
    return files
