"""`mean`, `std` and `data_format` become steps in front of a model of OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base import Context
from ..normalise import channel_axis
from ..onnx_session import config_error
from .params import OpenvinoParams


def with_preprocessing(model: Any, params: OpenvinoParams, context: Context) -> Any:
    """Return the model with (x - mean) / std and the transposition of nhwc images before its first
    input, as OnnxTensor builds them in. Raises ConfigError for a model that can't have them.

    The input's type becomes float32, or stays float64: uint8 and float16 widen to both without
    loss.
    """
    nhwc = params.data_format == "nhwc"
    if not nhwc and params.mean is None and params.std is None:
        return model
    import openvino
    from openvino.preprocess import PrePostProcessor

    port = model.inputs[0]
    shape = port.get_partial_shape()
    sizes = [size.get_length() if size.is_static else None for size in shape]
    steps = PrePostProcessor(model)
    first = steps.input(0)
    if nhwc:
        if len(sizes) != 4:
            message = f"nhwc needs a first input of 4 axes, N×C×H×W, found {len(sizes)}"
            raise config_error(context, "data_format", message)
        first.tensor().set_layout(openvino.Layout("NHWC"))
        first.model().set_layout(openvino.Layout("NCHW"))
    if params.mean is not None or params.std is not None:
        try:
            wide = _widened(port)
            axes = {
                channel_axis(sizes, len(values), key)
                for key, values in (("mean", params.mean), ("std", params.std))
                if values is not None and len(values) > 1
            }
            _refuse_zeros(params.std)
        except ValueError as error:
            key = "mean" if params.mean is not None else "std"
            raise config_error(context, key, str(error)) from error
        first.tensor().set_element_type(getattr(openvino.Type, wide))
        if axes and not nhwc:
            places = "".join("C" if axis in axes else "?" for axis in range(len(sizes)))
            first.tensor().set_layout(openvino.Layout(places))
            first.model().set_layout(openvino.Layout(places))
        for key, values in (("mean", params.mean), ("scale", params.std)):
            if values is not None:
                step = getattr(first.preprocess(), key)
                step(values[0] if len(values) == 1 else list(values))
    return steps.build()


def _widened(port: Any) -> str:
    """Return the type of the raw input. Raises ValueError for a model of integers."""
    kind = port.get_element_type().get_type_name()
    if kind not in ("f16", "bf16", "f32", "f64"):
        name = port.get_any_name() if port.get_names() else "0"
        raise ValueError(
            f"mean and std need a first input of a floating type, but {name!r} is {kind}"
        )
    return "f64" if kind == "f64" else "f32"


def _refuse_zeros(std: Sequence[float] | None) -> None:
    if std is not None and 0 in std:
        raise ValueError(f"std must not contain 0, found {tuple(std)}")
