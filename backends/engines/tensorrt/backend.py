"""TensorrtTensor as files know it. What runs it imports torch and TensorRT, and is imported by `init` alone."""

from __future__ import annotations

from typing import ClassVar

from ...base import Context, Params
from ...errors import BackendError
from ..torch.backend import TorchBackend
from .params import TensorrtParams
from .progress import BuiltEngine, Progress


class TensorrtTensor(TorchBackend):
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
    engine: ClassVar[str] = "penstock.backends.engines.tensorrt.engine:TensorrtEngine"

    @classmethod
    def build_ahead(
        cls, params: TensorrtParams, context: Context, progress: Progress
    ) -> BuiltEngine:
        """What `init` would build, without a GPU where the library can do that. Raises BackendError and ConfigError."""
        try:
            from .engine import build_ahead
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise BackendError(
                f"node {context.node!r}: TensorrtTensor needs extra tensorrt, which brings torch: pip install 'penstock-serve[tensorrt]'"
            ) from error
        return build_ahead(params, context, progress)
