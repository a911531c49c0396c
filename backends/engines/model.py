"""ModelTensor: the engine that fits the file and the machine."""

from __future__ import annotations

from collections.abc import Hashable
from importlib.util import find_spec
from typing import Any, ClassVar

from ..base import Backend, BatchRange, Context, Params
from ..errors import BackendError
from ..item import Item
from .onnx import OnnxParams, OnnxTensor
from .tensorrt.backend import TensorrtTensor
from .tensorrt.library import find_library
from .tensorrt.params import TensorrtParams
from .torch.backend import TorchExportTensor, TorchScriptTensor, shape_key
from .torch.params import TorchScriptParams

ENGINES: dict[str, type[Backend]] = {
    ".trt": TensorrtTensor,
    ".plan": TensorrtTensor,
    ".pt": TorchScriptTensor,
    ".pt2": TorchExportTensor,
}
"""Files that one engine alone reads."""

RTX_CAPABILITIES = (7, 8, 12)
"""Of `tensorrt_rtx`: the GPUs that it runs on, by the first number of their compute capability."""


class ModelParams(TensorrtParams, TorchScriptParams, OnnxParams):  # pyright: ignore[reportIncompatibleVariableOverride]
    """What any of the engines takes; each reads what it knows."""


class ModelTensor(Backend):
    """Runs a model by the engine that fits: .onnx by TensorRT on a GPU, where its library is installed, else by ONNX Runtime on the CPU;
    .trt and .plan by TensorRT, .pt by TorchScript, .pt2 by torch.export.

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
        engine = engine_for(params, context)()
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
                    item["result"] = [self._tensor(each) for each in result] if isinstance(result, list) else self._tensor(result)

    def _tensor(self, array: Any) -> Any:
        return array if array.dtype.kind == "O" else self._torch.from_numpy(array)  # text stays NumPy: torch has none


def engine_for(params: ModelParams, context: Context) -> type[Backend]:
    """The engine of a file here. Raises BackendError where the file's name does not say what it is."""
    name = params.model.lower().removesuffix(".encrypted")
    if name.endswith(".onnx"):
        return TensorrtTensor if _tensorrt_runs(params, context) else OnnxTensor
    engine = next((engine for suffix, engine in ENGINES.items() if name.endswith(suffix)), None)
    if engine is None:
        raise BackendError(
            f"node {context.node!r}: ModelTensor: the model {params.model} has no suffix that says what it is: "
            f"expected .onnx, {', '.join(ENGINES)}"
        )
    return engine


def _tensorrt_runs(params: ModelParams, context: Context) -> bool:
    if context.device == "cpu" or find_spec("torch") is None:
        return False
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        library = find_library(params.library)
    except BackendError:
        return False
    return not library.is_rtx or torch.cuda.get_device_capability()[0] in RTX_CAPABILITIES
