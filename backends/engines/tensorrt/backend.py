"""TensorrtTensor, the backend that files name.

It is declared without torch and TensorRT; `init` imports the engine, which needs both.
"""

from __future__ import annotations

from typing import ClassVar

from ...base import Context, Params
from ...errors import BackendError
from ..torch.backend import TorchBackend
from .params import TensorrtParams
from .progress import BuiltEngine, Progress


class TensorrtTensor(TorchBackend):
    """Runs a model with TensorRT on an NVIDIA GPU.

    The model is an .onnx file, of which an engine is built at the first load and cached, or a file
    that is an engine already (.trt, .plan, .engine).

    `data`: a tensor or array with the batch dimension first, N×..., for an item of N
    rows; or a list of them in the order of the model's inputs. `result`:
    the output as a tensor on the CPU, N×..., or a list of outputs. With `mean` or `std` the first
    input may be uint8 or of a floating type, and (x - mean) / std is computed inside the network. A
    dtype that widens without loss is converted. Any other dtype or shape is an `InvalidInput`.

    With the post-processor SoftmaxArgMax, ArgMax or SoftmaxMax the network finds the best class,
    and the item gets `class` (int) and `score` (float); `result` is the class, with SoftmaxMax the
    score. With `top_k` > 1 it also gets `top`, the best classes. For an item of several rows
    these are lists.
    """

    parameters: ClassVar[type[Params] | None] = TensorrtParams
    takes = gives = "array"
    extra: ClassVar[str] = "tensorrt"
    engine: ClassVar[str] = "penstock.backends.engines.tensorrt.engine:TensorrtEngine"

    @classmethod
    def build_ahead(
        cls, params: TensorrtParams, context: Context, progress: Progress
    ) -> BuiltEngine:
        """Build and cache the engine that `init` would load, if possible without a GPU.

        Raises BackendError, ConfigError, and BuildCancelledError after `progress.cancel`.
        """
        try:
            from .ahead import build_ahead
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise BackendError(
                f"node {context.node!r}: TensorrtTensor needs extra tensorrt, which brings torch: "
                "pip install 'penstock-serve[tensorrt]'"
            ) from error
        return build_ahead(params, context, progress)
