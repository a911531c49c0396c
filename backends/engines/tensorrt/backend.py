"""TensorrtTensor as files know it. What runs it imports torch and TensorRT, and is imported by `init` alone."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ...base import Backend, BatchRange, Context, Params
from ...errors import BackendError
from ...item import Item
from .params import TensorrtParams
from .progress import Progress


class BuiltEngine(NamedTuple):
    path: Path
    size: int
    """Bytes of the plan."""
    built: bool
    """False: it was there."""


class TensorrtTensor(Backend):
    """Runs a model by TensorRT on an NVIDIA GPU: an .onnx file, built at the first load and kept, or an engine (.trt, .plan).

    `data`: a tensor or array with the batch dimension, N×..., N = `request_size` (1 where the item has none), or a list of them in
    the order of the model's inputs. `result`: the output as a tensor on the CPU, N×..., or a list of them. With `mean` or `std` the
    first input is uint8, and (x - mean) / std is computed inside the network. A dtype that widens without loss is converted; another
    dtype or shape is an `InvalidInput`.

    With the post-processor SoftmaxArgMax, ArgMax or SoftmaxMax the network tells the class: `class` (int), `score` (float) and `result`,
    which is the class (SoftmaxMax: the score); `top` with `top_k` > 1. Lists of them where `request_size` is above 1.
    """

    parameters: ClassVar[type[Params] | None] = TensorrtParams
    extra: ClassVar[str] = "tensorrt"

    _engine: Any = None

    @classmethod
    def declared_range(cls, params: TensorrtParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        """What one run may not mix: shapes behind the batch dimension, and dtypes."""
        data = item.get("data")
        if isinstance(data, list | tuple):
            return tuple([(tuple(array.shape[1:]), array.dtype) if hasattr(array, "shape") else None for array in data])
        return (tuple(data.shape[1:]), data.dtype) if data is not None and hasattr(data, "shape") else None

    @property
    def progress(self) -> Progress | None:
        """Of the build that `init` waits for; None where there is none. May be read from any thread."""
        return self._engine.progress if self._engine is not None else None

    @classmethod
    def build_ahead(cls, params: TensorrtParams, context: Context, progress: Progress) -> BuiltEngine:
        """What `init` would build, without a GPU where the library can do that. Raises BackendError and ConfigError."""
        return _engine_module().build_ahead(params, context, progress)  # type: ignore[no-any-return]

    def init(self, params: TensorrtParams, context: Context) -> None:
        """Raises BackendError and ConfigError that name node and file, and what is missing here."""
        self._engine = _engine_module().TensorrtTensor()
        self._engine.init(params, context)
        self.min, self.max, self.device = self._engine.min, self._engine.max, self._engine.device

    def warm_up(self) -> None:
        self._engine.warm_up()

    def forward(self, batch: list[Item]) -> None:
        self._engine.forward(batch)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        super().close()


def _engine_module() -> Any:
    try:
        from . import engine
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError("TensorrtTensor needs extra tensorrt, which brings torch: pip install 'penstock[tensorrt]'") from error
    return engine
