"""The pipeline that a bare ONNX image classifier needs: what `penstock serve model.onnx` serves without any TOML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem

from .source import Tables

COLORS = {1: "gray", 3: "rgb"}
"""Channels of the model's input -> the colour that images are converted to."""


def classifier(path: Path, labels: Path | None) -> Tables:
    """Tables of one node that decodes and prepares, and one that runs the model. Raises ConfigError."""
    channels, height, width = _image_input(path)
    answer = "SoftmaxArgMaxTensor"
    model: dict[str, Any] = {"backend": f"S[OnnxTensor,{answer}]", "model": str(path.resolve())}
    if labels is not None:
        if not labels.is_file():
            raise ConfigError([Problem("there is no such file: expected the labels, one per line", str(labels))])
        model[f"{answer}::labels"] = str(labels.resolve())
    prepare = {
        "backend": "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]",
        "resize_h": height,
        "resize_w": width,
        "color": COLORS[channels],
        "next": "model",
    }
    name = re.sub(r"[^A-Za-z0-9_.\-]", "_", path.stem)
    return Tables(name, {"prepare": prepare, "model": model}, file=str(path), directory=path.resolve().parent)


def _image_input(path: Path) -> tuple[int, int, int]:
    """Channels, height and width of the model's one input."""
    if not path.is_file():
        raise ConfigError([Problem("there is no such file: expected an ONNX model", str(path))])
    import onnx

    def refuse(found: str) -> ConfigError:
        advice = "expected one image, float N×C×H×W with fixed C (1 or 3), H and W; write a pipeline file (.toml) for other models"
        return ConfigError([Problem(f"{found}: {advice}", str(path))])

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:
        raise ConfigError([Problem(f"this is no ONNX model: {error}", str(path))]) from error
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in weights]
    if len(inputs) != 1:
        raise refuse(f"the model has {len(inputs)} inputs")
    tensor = inputs[0].type.tensor_type
    shape: list[Any] = [each.dim_value if each.HasField("dim_value") else each.dim_param or "?" for each in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    image = len(shape) == 4 and all(isinstance(size, int) and size > 0 for size in shape[1:]) and shape[1] in COLORS
    if not image or kind not in {"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"}:
        raise refuse(f"the model's input {inputs[0].name!r} is {kind.lower()} {'×'.join(map(str, shape)) or 'without a shape'}")
    return shape[1], shape[2], shape[3]
