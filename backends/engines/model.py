"""ModelTensor: the engine that fits the file and the machine."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..base import Backend, BatchRange, Context, Params
from ..errors import BackendError, ConfigError, Problem
from ..item import Item
from .onnx import OnnxParams, OnnxTensor
from .tensorrt.backend import TensorrtTensor
from .tensorrt.library import find_library
from .tensorrt.params import TensorrtParams
from .torch.backend import TorchExportTensor, TorchScriptTensor, shape_key
from .torch.params import TorchScriptParams

logger = logging.getLogger("penstock.model")

ENGINES: dict[str, type[Backend]] = {
    ".trt": TensorrtTensor,
    ".plan": TensorrtTensor,
    ".engine": TensorrtTensor,
    ".pt": TorchScriptTensor,
    ".pt2": TorchExportTensor,
}
"""Files that one engine alone reads."""


class ModelParams(TensorrtParams, TorchScriptParams, OnnxParams):  # pyright: ignore[reportIncompatibleVariableOverride]
    """What any of the engines takes; each reads what it knows."""


class ModelTensor(Backend):
    """Runs a model by the engine that fits: .onnx by TensorRT on a GPU, where its library is installed, else by ONNX Runtime on the CPU;
    .trt, .plan and .engine by TensorRT, .pt by TorchScript, .pt2 by torch.export.

    `data`: an array or a torch tensor with the batch dimension, or a list of them; `result` likewise: torch tensors where torch is
    installed, else arrays.
    """

    parameters: ClassVar[type[Params] | None] = ModelParams

    _torch: Any = None
    """Where the engine's own answers are arrays, and torch is there."""

    @classmethod
    def declared_range(cls, params: ModelParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: ModelParams, context: Context) -> None:
        """Raises BackendError for a file that no engine reads, and what the engine's `init` raises."""
        choice = choose_engine(params, context)
        if params.data_format != "nchw" and choice.engine in (TorchScriptTensor, TorchExportTensor):
            message = f"{params.data_format} is for .onnx files: {params.model} takes images as it was exported"
            raise ConfigError([Problem(message, node=context.node, key="data_format")])
        if context.instance == 0:
            where = f"{context.node}: ModelTensor runs {params.model} by {choice.engine.__name__}"
            extra = {"pipeline": context.pipeline, "node": context.node}
            if choice.missed:
                logger.warning(
                    "%s on the CPU, and not on the GPU that is here: %s",
                    where,
                    choice.why,
                    extra=extra,
                )
            else:
                logger.info("%s on %s: %s", where, choice.device, choice.why, extra=extra)
        engine = choice.engine()
        self.children = (engine,)
        engine.init(params, context)
        self.min, self.max, self.device = engine.min, engine.max, engine.device
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
                        [self._tensor(each) for each in result]
                        if isinstance(result, list)
                        else self._tensor(result)
                    )

    def _tensor(self, found: Any) -> Any:
        """Text stays NumPy: torch has none. What a post-processor says is plain Python."""
        return (
            self._torch.from_numpy(found)
            if isinstance(found, np.ndarray) and found.dtype.kind != "O"
            else found
        )


class Choice(NamedTuple):
    """`missed`: there is a GPU, and the engine does not use it."""

    engine: type[Backend]
    device: str
    why: str
    missed: bool = False


def choose_engine(params: ModelParams, context: Context) -> Choice:
    """The engine of a file here. Raises BackendError where the file's name does not say what it is, or the device is not there."""
    name = params.model.lower().removesuffix(".encrypted")
    if name.endswith(".onnx"):
        return _choose_for_onnx(params, context)
    suffix = next((suffix for suffix in ENGINES if name.endswith(suffix)), None)
    if suffix is None:
        raise BackendError(
            f"node {context.node!r}: ModelTensor: the model {params.model} has no suffix that says what it is: "
            f"expected .onnx, {', '.join(ENGINES)}"
        )
    return Choice(
        ENGINES[suffix],
        context.device or "the device that it chooses",
        f"it is the one for {suffix}",
    )


def _choose_for_onnx(params: ModelParams, context: Context) -> Choice:
    if context.device == "cpu":
        return Choice(OnnxTensor, "cpu", "the node's device is cpu")
    if find_spec("torch") is None:
        return Choice(OnnxTensor, "cpu", "torch, which TensorrtTensor needs, is not installed")
    import torch

    from ..gpu.device import choose_device

    try:
        device = choose_device(context.device)
    except BackendError as error:
        raise BackendError(f"node {context.node!r}: ModelTensor: {error}") from error
    if device.type == "cpu":
        return Choice(OnnxTensor, "cpu", "torch sees no GPU")
    try:
        library = find_library(params.library)
    except BackendError as error:
        return Choice(OnnxTensor, "cpu", str(error), missed=True)
    capability = torch.cuda.get_device_capability(device)
    if library.is_rtx and not runs_rtx(capability):
        why = f"tensorrt_rtx needs compute capability 7.5, 8.x or 12.x, and {device} has {'.'.join(map(str, capability))}"
        return Choice(OnnxTensor, "cpu", why, missed=True)
    return Choice(TensorrtTensor, str(device), f"{library.name} {library.version} is here")


def runs_rtx(capability: tuple[int, int]) -> bool:
    """Whether `tensorrt_rtx` runs on GPUs of this compute capability."""
    return capability == (7, 5) or capability[0] in (8, 12)
