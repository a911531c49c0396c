"""OpenvinoTensor: OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..base import Context, Params
from ..errors import BackendError
from ..params import EngineParams, why_no_file
from ..text import message_of
from .encryption import is_encrypted
from .onnx import OnnxTensor
from .onnx_gpu.providers import Provider
from .onnx_session import config_error
from .processors import threads_per_instance

TYPES = {
    "f16": "float16",
    "f32": "float",
    "f64": "double",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "string": "string",
    "boolean": "bool",
    "bf16": "bfloat16",
}
"""OpenVINO's names of element types -> ONNX's."""

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""`precision` -> OpenVINO's name."""


class OpenvinoParams(EngineParams):
    model: str = Field(description="the model file: .xml (with .bin beside it), .onnx or .tflite")
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of each instance; default: the processors that the process may use, "
        "divided among the instances",
    )


class OpenvinoTensor(OnnxTensor):
    """Runs a model with OpenVINO, on the CPU: its own format (.xml and .bin), ONNX or TFLite.

    `data` and `result` are those of OnnxTensor. The model computes in float32 unless `precision`
    says otherwise: OpenVINO's own default on some processors is bfloat16.
    """

    parameters: ClassVar[type[Params] | None] = OpenvinoParams
    extra: ClassVar[str] = "openvino"
    engine: ClassVar[str] = "OpenvinoTensor"

    def choose_provider(self, params: Any, context: Context) -> Provider:
        if context.device not in ("", "cpu"):
            raise config_error(
                context,
                "device",
                f"device is {context.device!r}, but OpenvinoTensor runs only on the CPU: "
                'set device = "cpu", or use ModelTensor',
            )
        return Provider("cpu", "OpenVINO runs there")

    def open_session(self, params: Any, context: Context) -> Any:
        """Compile the model. Raises BackendError, which names the path, and ConfigError."""
        for key in ("mean", "std"):
            if getattr(params, key) is not None:
                message = "OpenvinoTensor builds no normalisation into models: use OnnxTensor"
                raise config_error(context, key, message)
        if params.precision not in (None, *PRECISIONS):
            message = f"found {params.precision!r}, expected one of {', '.join(PRECISIONS)}"
            raise config_error(context, "precision", message)
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise BackendError(
                "OpenvinoTensor needs extra openvino, which is not installed here: "
                "pip install 'penstock-serve[openvino]'"
            ) from error
        path = context.resolve_input(params.model)
        if not path.is_file():
            raise BackendError(f"OpenvinoTensor: the model {path} {why_no_file(path)}")
        if is_encrypted(path):
            raise BackendError(
                f"OpenvinoTensor: the model {path} is encrypted, but it reads only plain files"
            )
        weights = path.with_suffix(".bin")
        if path.suffix == ".xml" and weights.is_file():
            context.files.check(weights)
        options = {
            "INFERENCE_NUM_THREADS": params.threads or threads_per_instance(context.instances),
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": PRECISIONS[params.precision or "fp32"],
        }
        try:
            return OpenvinoSession(openvino.Core(), path, options, params.inputs, params.outputs)
        except RuntimeError as error:
            reason = " ".join(message_of(error).split())[:500]
            raise BackendError(
                f"OpenvinoTensor: the model {path} can't be loaded: {reason}"
            ) from error

    def run_options(self, params: Any) -> Any:
        return None

    def quiet_options(self) -> Any:
        return None


class OpenvinoPort(NamedTuple):
    """An input or output, as ONNX Runtime describes one."""

    name: str
    type: str
    shape: list[int | None]


class OpenvinoSession:
    """A compiled model, with the methods of ONNX Runtime's session."""

    def __init__(
        self,
        core: Any,
        path: Path,
        options: dict[str, Any],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        """Compile the model. A tensor with several names has the one of `inputs` or `outputs`."""
        compiled = core.compile_model(core.read_model(path), "CPU", options)
        self._request = compiled.create_infer_request()
        self._inputs = [_port(port, inputs) for port in compiled.inputs]
        self._outputs = [_port(port, outputs) for port in compiled.outputs]
        self._places = {port.name: index for index, port in enumerate(self._inputs)}
        self._given = {port.name: index for index, port in enumerate(self._outputs)}

    def get_inputs(self) -> list[OpenvinoPort]:
        return self._inputs

    def get_outputs(self) -> list[OpenvinoPort]:
        return self._outputs

    def get_overridable_initializers(self) -> list[OpenvinoPort]:
        return []

    def run(self, names: Sequence[str], feed: dict[str, NDArray[Any]], _: Any) -> list[Any]:
        results = self._request.infer(
            {self._places[name]: array for name, array in feed.items()}, share_inputs=True
        )
        # Copies, because the memory of the results is that of the next run's.
        return [np.array(results[self._given[name]]) for name in names]


def _port(port: Any, wanted: Sequence[str]) -> OpenvinoPort:
    names = sorted(port.get_names())
    chosen = next((name for name in names if name in wanted), None)
    name = chosen or (port.get_any_name() if names else port.get_node().get_friendly_name())
    shape = port.get_partial_shape()
    sizes: list[int | None] = (
        [size.get_length() if size.is_static else None for size in shape]
        if shape.rank.is_static
        else [None]
    )
    kind = port.get_element_type().get_type_name()
    return OpenvinoPort(name, f"tensor({TYPES.get(kind, kind)})", sizes)
