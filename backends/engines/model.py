"""ModelTensor: the engine that fits the file and the machine. So far that is ONNX Runtime, for .onnx files."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ..base import Context
from ..errors import BackendError
from ..item import Item
from .onnx import OnnxParams, OnnxTensor

MISSING = {
    ".trt": "TensorrtTensor (extra tensorrt, a GPU)",
    ".plan": "TensorrtTensor (extra tensorrt, a GPU)",
    ".pt": "TorchScriptTensor (extra torch)",
    ".pt2": "TorchExportTensor (extra torch)",
}
"""What the other kinds of file need."""


class ModelTensor(OnnxTensor):
    """Runs a model by the engine that fits: an .onnx file by ONNX Runtime on the CPU, as `OnnxTensor`.

    `data`: an array or a torch tensor with the batch dimension, or a list of them; `result` likewise: torch tensors where torch is
    installed, else arrays. TensorRT, OpenVINO, TorchScript and `.pt2` are not in this version; files that need them fail at load,
    saying so.
    """

    _torch: Any = None

    def init(self, params: OnnxParams, context: Context) -> None:
        """Raises BackendError for a file that no engine of this version reads, and what `OnnxTensor.init` raises."""
        name = params.model.lower()
        if name.endswith(".encrypted"):
            raise BackendError(f"ModelTensor: the model {params.model} is encrypted, which this version can't read")
        if not name.endswith(".onnx"):
            engine = next((engine for suffix, engine in MISSING.items() if name.endswith(suffix)), None)
            needs = f"needs {engine}, which is not in this version" if engine else "has no suffix that says what it is"
            raise BackendError(f"ModelTensor: the model {params.model} {needs}; an .onnx file runs here")
        if find_spec("torch") is not None:
            import torch

            self._torch = torch
        super().init(params, context)

    def forward(self, batch: list[Item]) -> None:
        super().forward(batch)
        if self._torch is not None:
            for item in batch:
                if "result" in item:
                    result = item["result"]
                    item["result"] = [self._tensor(each) for each in result] if isinstance(result, list) else self._tensor(result)

    def _tensor(self, array: Any) -> Any:
        return array if array.dtype.kind == "O" else self._torch.from_numpy(array)  # text stays NumPy: torch has none
