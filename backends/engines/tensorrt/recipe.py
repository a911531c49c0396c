"""All that an engine is made from. Two engines of one recipe are the same, so it is also what a kept engine is known by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...base import Context
from ...errors import BackendError
from ..encryption import is_encrypted, read_model
from .library import Library
from .params import TensorrtParams
from .precision import converter_name

ENGINES = (".trt", ".plan", ".engine")
"""Files that are engines already."""


@dataclass(frozen=True, slots=True)
class Recipe:
    model: Path
    params: TensorrtParams
    sizes: tuple[int, ...]
    """The batch sizes that are prepared; rising."""
    gpu: str = "none"
    """The GPU that the engine is built on and for; "none" where it is for no particular one."""
    node: str = ""
    """For messages."""

    @classmethod
    def of(
        cls,
        params: TensorrtParams,
        context: Context,
        sizes: Sequence[int],
        library: Library,
        gpu: str | None,
    ) -> Recipe:
        """`gpu`: what torch sees. Raises BackendError where the model is not there."""
        recipe = cls(context.resolve(params.model), params, tuple(sizes), node=context.node)
        if not recipe.model.is_file():
            raise BackendError(f"{recipe}: the model {recipe.model} does not exist")
        return replace(recipe, gpu=gpu_of(params, library, gpu))

    @property
    def is_engine(self) -> bool:
        return plain_suffix(self.model) in ENGINES

    def key(self, library: Library) -> dict[str, Any]:
        """What decides how the engine turns out, as JSON has it, the likeliest to change first."""
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
            "mean": list(params.mean or ()),
            "std": list(params.std or ()),
            "data_format": params.data_format,
            "postprocessor": params.postprocessor or "",
            "top_k": params.top_k,
            "max_workspace_size": params.max_workspace_size or 0,
            "weight streaming": params.weight_budget_percentage is not None,
            "hardware_compatibility": params.hardware_compatibility or "",
        }

    def __str__(self) -> str:
        return who(self.node)


def who(node: str) -> str:
    """How messages begin."""
    return f"node {node!r}: TensorrtTensor" if node else "TensorrtTensor"


def plain_suffix(path: Path) -> str:
    """The suffix before `.encrypted`."""
    return (path.with_suffix("") if is_encrypted(path) else path).suffix.lower()


def gpu_of(params: TensorrtParams, library: Library, gpu: str | None) -> str:
    """TensorRT-RTX compiles for the GPU when an engine is loaded: what it builds is for none, unless it was asked to build for this one."""
    if library.is_rtx and (params.hardware_compatibility or "").lower() != "current":
        return "none"
    return gpu or "none"


def model_hash(path: Path, where: str) -> str:
    """SHA-256 of the file and of the files beside it that hold its weights. `where` begins what it raises."""
    digest = hashlib.sha256()
    for each in (path, *_external_files(path, where)):
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_onnx(path: Path, where: str) -> Any:
    """The model without the weights that lie in other files. Raises BackendError for what is none."""
    import onnx

    try:
        model = onnx.load_model_from_string(read_model(path))
    except OSError as error:
        raise BackendError(f"{where}: the model {path} can't be read: {error.strerror}") from error
    except BackendError:
        raise
    except Exception as error:  # protobuf's own, which have no base of their own
        raise BackendError(
            f"{where}: the model {path} is no ONNX file, or is cut off: {error}"
        ) from error
    if not model.graph.output:
        raise BackendError(
            f"{where}: the model {path} is no ONNX file: it holds no graph with an output"
        )
    return model


def _external_files(path: Path, where: str) -> list[Path]:
    """Where an ONNX model keeps weights outside of itself. Raises BackendError for files outside the model's folder."""
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
        entry.value
        for tensor in tensors
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    files = []
    for name in sorted(names):
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise BackendError(
                f"{where}: the model {path} keeps weights in {name}, outside of its folder: put them beside it"
            )
        if not file.is_file():
            raise BackendError(
                f"{where}: the model {path} keeps weights in {name}, which is not beside it"
            )
        files.append(file)
    return files
