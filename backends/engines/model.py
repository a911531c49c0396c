"""ModelTensor: the engine that fits the file and the machine."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..base import Backend, BatchRange, Context, Params
from ..errors import BackendError, ConfigError, Problem
from ..item import Item
from .cpu_choice import Comparison, Tried, try_openvino
from .encryption import is_encrypted
from .onnx import OnnxTensor
from .onnx_gpu.providers import choose_provider
from .onnx_params import OnnxParams
from .openvino.backend import OpenvinoTensor
from .openvino.params import OpenvinoParams
from .shapes import shape_key
from .tensorrt.backend import TensorrtTensor
from .tensorrt.library import Library, find_library
from .tensorrt.params import TensorrtParams
from .torch.backend import TorchExportTensor, TorchScriptTensor
from .torch.params import TorchScriptParams

logger = logging.getLogger("penstock.model")

ENGINE_BY_SUFFIX: dict[str, type[Backend]] = {
    ".trt": TensorrtTensor,
    ".plan": TensorrtTensor,
    ".engine": TensorrtTensor,
    ".pt": TorchScriptTensor,
    ".pt2": TorchExportTensor,
    ".xml": OpenvinoTensor,
    ".tflite": OpenvinoTensor,
}
"""The suffixes of files that only one engine reads."""


class ModelParams(TensorrtParams, TorchScriptParams, OnnxParams, OpenvinoParams):
    """The parameters of all engines; each engine reads those that it knows."""


class ModelTensor(Backend):
    """Runs a model with the engine that fits the file and the machine.

    On a GPU, TensorrtTensor runs .onnx files if a TensorRT for it is installed, else OnnxTensor by
    ONNX Runtime's CUDA provider. On the CPU, OpenvinoTensor runs them if OpenVINO is installed and
    faster (cpu_choice.py), else OnnxTensor. TensorrtTensor also runs .trt, .plan and .engine files.
    TorchScriptTensor runs .pt files, TorchExportTensor .pt2 files, and OpenvinoTensor .xml and
    .tflite files.

    `data`: an array or a torch tensor with the batch dimension first, N×..., for an item of N
    rows; or a list of them in the order of the model's inputs. `result`:
    the output, N×..., or a list of outputs: torch tensors if torch is installed, otherwise arrays.
    """

    parameters: ClassVar[type[Params] | None] = ModelParams
    blocks = "it runs a model"
    takes = gives = "array"

    _torch: Any = None
    """The module torch, if it is installed and the engine's results are arrays; else None."""
    _tried: Comparison | None = None
    """Kept for the other instances, so that all have one engine."""

    @classmethod
    def keys_set(cls, params: ModelParams) -> tuple[str, ...]:
        return params.keys_set

    @classmethod
    def declared_range(cls, params: ModelParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: ModelParams, context: Context) -> None:
        """Choose the engine and let it load the model.

        Raises BackendError for a file that no engine reads, and what the engine's `init` raises.
        """
        choice = choose_engine(params, context)
        if params.data_format != "nchw" and choice.engine in (TorchScriptTensor, TorchExportTensor):
            message = (
                f"{params.data_format} is for .onnx files: "
                f"{params.model} takes images in the layout that it was exported with"
            )
            raise ConfigError([Problem(message, node=context.node, key="data_format")])
        if context.instance == 0:
            where = (
                f"node {context.node!r}: ModelTensor runs {params.model} "
                f"with {choice.engine.__name__}"
            )
            extra = {"pipeline": context.pipeline, "node": context.node}
            if choice.missed:
                logger.warning(
                    "%s on the CPU, although there is a GPU: %s",
                    where,
                    choice.why,
                    extra=extra,
                )
            else:
                logger.info("%s on %s: %s", where, choice.device, choice.why, extra=extra)
        if choice.device == "cpu":
            context = replace(context, device="cpu")  # the engine need not choose again
        engine = choice.engine()
        self.children = (engine,)
        try:
            engine.init(params, context)
        finally:
            if choice.tried is not None and choice.tried.engine is not None:
                choice.tried.engine.close()
        self._tried = choice.tried and choice.tried.comparison
        self.min, self.max, self.device = engine.min, engine.max, engine.device
        self.signature = engine.signature
        if isinstance(engine, OnnxTensor) and find_spec("torch") is not None:
            import torch

            self._torch = torch

    def forward(self, batch: list[Item]) -> None:
        self.children[0].forward(batch)
        if self._torch is not None:
            for item in batch:
                if "result" in item:
                    result = item["result"]
                    item["result"] = (
                        [self._tensor(output) for output in result]
                        if isinstance(result, list)
                        else self._tensor(result)
                    )

    def _tensor(self, output: Any) -> Any:
        """Turn an array into a tensor.

        Text stays an array, since torch has no text, and what a post-processor made stays plain
        Python.
        """
        if not isinstance(output, np.ndarray) or output.dtype.kind == "O":
            return output
        if output.dtype == np.uint64:  # ONNX Runtime gives C's unsigned long long, unknown to torch
            output = output.view(np.uint64)
        return self._torch.from_numpy(output)


class Choice(NamedTuple):
    """The engine that ModelTensor chose, and why."""

    engine: type[Backend]
    device: str
    why: str
    missed: bool = False
    """There is a GPU, and the engine does not use it."""
    tried: Tried | None = None


def choose_engine(params: ModelParams, context: Context) -> Choice:
    """Choose the engine for a file on this machine.

    Raises BackendError if the file's name does not say what the file is, or the node's device does
    not exist.
    """
    name = params.model.lower().removesuffix(".encrypted")
    if name.endswith(".onnx"):
        return _choose_for_onnx(params, context)
    suffix = next((suffix for suffix in ENGINE_BY_SUFFIX if name.endswith(suffix)), None)
    if suffix is None:
        raise BackendError(
            f"node {context.node!r}: ModelTensor: the model {params.model} has no suffix that says "
            f"what it is: expected .onnx, {', '.join(ENGINE_BY_SUFFIX)}"
        )
    return Choice(
        ENGINE_BY_SUFFIX[suffix],
        context.device or "the device that it chooses",
        f"it is the engine for {suffix} files",
    )


def _choose_for_onnx(params: ModelParams, context: Context) -> Choice:
    if params.provider:
        provider = choose_provider(params, context)
        where = "cpu" if provider.name == "cpu" else context.device or "the first GPU"
        return Choice(OnnxTensor, where, f"provider = {params.provider!r}")
    if context.device == "cpu":
        return _choose_for_cpu(params, context, "the node's device is cpu")
    if find_spec("torch") is None:
        reason = "torch, which engines for GPUs need, is not installed"
        return _choose_for_cpu(params, context, reason)
    from ..gpu.device import choose_device

    try:
        device = choose_device(context.device)
    except BackendError as error:
        raise BackendError(f"node {context.node!r}: ModelTensor: {error}") from error
    if device.type == "cpu":
        return _choose_for_cpu(params, context, "torch sees no GPU")
    found = _find_tensorrt(params, device)
    if isinstance(found, Library):
        why = f"{found.name} {found.version} is installed"
        return Choice(TensorrtTensor, str(device), why)
    try:
        provider = choose_provider(params, context)
    except BackendError as error:  # the file names a GPU
        raise BackendError(
            f"node {context.node!r}: ModelTensor: nothing here runs {params.model} on {device}: "
            f"{found}; {error}"
        ) from error
    why = f"{found}; {provider.why}"
    if provider.name == "cpu":
        return _choose_for_cpu(params, context, why)._replace(missed=True)
    return Choice(OnnxTensor, str(device), why)


def _find_tensorrt(params: ModelParams, device: Any) -> Library | str:
    """Return the TensorRT that runs on this GPU, or a text that says why there is none."""
    import torch

    try:
        library = find_library(params.library)
    except BackendError as error:
        return str(error)
    capability = torch.cuda.get_device_capability(device)
    if library.is_rtx and not runs_rtx(capability):
        version = ".".join(map(str, capability))
        return f"tensorrt_rtx needs compute capability 7.5, 8.x or 12.x, and {device} has {version}"
    return library


def _choose_for_cpu(params: ModelParams, context: Context, why: str) -> Choice:
    if is_encrypted(Path(params.model)) or find_spec("openvino") is None:
        return Choice(OnnxTensor, "cpu", why)
    tried = try_openvino(params, context)
    engine = OpenvinoTensor if tried.comparison.faster else OnnxTensor
    return Choice(engine, "cpu", f"{why}; {tried.comparison.why}", tried=tried)


def runs_rtx(capability: tuple[int, int]) -> bool:
    """Return whether `tensorrt_rtx` runs on GPUs of this compute capability, (major, minor)."""
    return capability == (7, 5) or capability[0] in (8, 12)
