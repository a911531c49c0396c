"""Convert an ONNX model to another precision.

Each layer computes in the types that the model gives: TensorRT's networks are strongly typed, and
ONNX Runtime has no option for it. ModelOpt's AutoCast converts if it is installed (it looks at
values to see which layers must stay in fp32), and otherwise onnxconverter-common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..suggestions import did_you_mean
from .float16 import to_float16

QUANTIZED_TYPES = {"int8": ("INT8", "UINT8"), "fp8": ("FLOAT8E4M3FN", "FLOAT8E5M2")}
"""`precision` -> the types to which the model's own QuantizeLinear nodes must round."""

CONVERTED_TO = {"fp16": "fp16", "bf16": "bf16", "best": "fp16"}
"""`precision` -> the type of layers after conversion."""


def convert(
    model: Any, precision: str | None, keep: Iterable[str] = (), path: Path | None = None
) -> Any:
    """Convert layers of a model to `precision`. Return the model.

    `model` is an `onnx.ModelProto`, and may be changed in place. Inputs and outputs keep their
    types.

    None and fp32 leave the model as it is. So do int8, fp8 and best if the model has QuantizeLinear
    and DequantizeLinear nodes, which then decide what is rounded. Nodes whose names contain one of
    `keep` stay in fp32. `path` is the file that the model was read from, which AutoCast needs.
    Raises ValueError for a conversion that the model or this machine can't do.
    """
    kept = _kept(model, tuple(keep))
    quantized = _quantized(model)
    if precision in QUANTIZED_TYPES:
        if not quantized & set(QUANTIZED_TYPES[precision]):
            nodes = (
                f"QuantizeLinear nodes to {', '.join(sorted(quantized))}" if quantized else "none"
            )
            raise ValueError(
                f"precision {precision} needs QuantizeLinear and DequantizeLinear nodes in the "
                f"model that round to {' or '.join(QUANTIZED_TYPES[precision])}, found {nodes}: "
                "quantize it first, with calibration data (python -m modelopt.onnx.quantization)"
            )
        return model
    if precision not in CONVERTED_TO or (precision == "best" and quantized):
        return model
    wanted = CONVERTED_TO[precision]
    if path is not None and find_spec("modelopt") is not None:
        return _autocast(path, wanted, kept)
    if wanted == "bf16":
        raise ValueError(
            "precision bf16 needs NVIDIA ModelOpt: pip install 'nvidia-modelopt[onnx]'; it reads "
            "only plain .onnx files"
        )
    return to_float16(model, kept)


def converter_name(precision: str | None) -> str:
    """Return the name of the converter for this precision, "" if none is needed.

    It is part of an engine's key, because converters differ.
    """
    if precision not in CONVERTED_TO:
        return ""
    return "modelopt" if find_spec("modelopt") is not None else "onnxconverter-common"


def _kept(model: Any, parts: tuple[str, ...]) -> list[str]:
    """Return the names of nodes that contain one of `parts`.

    Raises ValueError for a part that no name contains.
    """
    names = [node.name for node in model.graph.node]
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(
                f"precision::fp32 has {part!r}, but no node's name contains "
                f"it{did_you_mean(part, names)}"
            )
    return [name for name in names if any(part in name for part in parts)]


def _quantized(model: Any) -> set[str]:
    """Return the types that the model's QuantizeLinear and DequantizeLinear nodes use.

    QuantizeLinear nodes count with the type that they round to, DequantizeLinear nodes with that of
    the weights that they read: a model may have only its weights rounded.
    """
    from onnx import TensorProto

    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        declared = next(
            (attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0
        )
        zero = weights.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type == "QuantizeLinear":
            types.add(zero or declared or TensorProto.UINT8)
        elif node.input[0] in weights:
            types.add(weights[node.input[0]])
    return {TensorProto.DataType.Name(number) for number in types}


def _autocast(path: Path, wanted: str, kept: list[str]) -> Any:
    autocast = import_module("modelopt.onnx.autocast")
    patterns = [f"^{re.escape(name)}$" for name in kept]
    return autocast.convert_to_mixed_precision(
        str(path), low_precision_type=wanted, nodes_to_exclude=patterns, keep_io_types=True
    )
