"""An ONNX model in another precision. Networks are strongly typed: a layer computes in the types that the model says, so the model is
converted, by ModelOpt's AutoCast where that is installed (it looks at values to see which layers must stay), else by onnxconverter-common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...suggestions import did_you_mean
from .float16 import to_float16

QUANTIZERS = {"int8": ("INT8", "UINT8"), "fp8": ("FLOAT8E4M3FN", "FLOAT8E5M2")}
"""Precision -> the types to which a model's own QuantizeLinear nodes may round."""

CONVERTED = {"fp16": "fp16", "bf16": "bf16", "best": "fp16"}


def convert(
    model: Any, precision: str | None, keep: Iterable[str] = (), path: Path | None = None
) -> Any:
    """The model (an `onnx.ModelProto`; it may be changed) with inputs and outputs as they were, and layers in `precision`.

    None and fp32 leave it as it is; so do int8, fp8 and best where it has Q/DQ nodes, which then say what is rounded. `keep` has parts
    of names of nodes that stay in fp32; `path` is the file that the model was read from, which AutoCast needs. Raises ValueError.
    """
    kept = _kept(model, tuple(keep))
    quantized = _quantized(model)
    if precision in QUANTIZERS:
        if not quantized & set(QUANTIZERS[precision]):
            found = (
                f"QuantizeLinear nodes to {', '.join(sorted(quantized))}" if quantized else "none"
            )
            raise ValueError(
                f"precision {precision} needs QuantizeLinear and DequantizeLinear nodes in the model that round to "
                f"{' or '.join(QUANTIZERS[precision])}, found {found}: quantize it first, with calibration data (python -m "
                "modelopt.onnx.quantization)"
            )
        return model
    if precision not in CONVERTED or (precision == "best" and quantized):
        return model
    wanted = CONVERTED[precision]
    if path is not None and find_spec("modelopt") is not None:
        return _autocast(path, wanted, kept)
    if wanted == "bf16":
        raise ValueError(
            "precision bf16 needs NVIDIA ModelOpt: pip install 'nvidia-modelopt[onnx]'; it reads plain .onnx files"
        )
    return to_float16(model, kept)


def converter_name(precision: str | None) -> str:
    """What would convert to this precision: engines made by another differ."""
    if precision not in CONVERTED:
        return ""
    return "modelopt" if find_spec("modelopt") is not None else "onnxconverter-common"


def _kept(model: Any, parts: tuple[str, ...]) -> list[str]:
    """The names of the nodes that have one of `parts` in them; each part must be in some."""
    names = [node.name for node in model.graph.node]
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(
                f"precision::fp32 has {part!r}, and no node's name contains it{did_you_mean(part, names)}"
            )
    return [name for name in names if any(part in name for part in parts)]


def _quantized(model: Any) -> set[str]:
    """The types that the model's QuantizeLinear nodes round to; and of DequantizeLinear's weights, where only weights are rounded."""
    from onnx import TensorProto

    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        declared = next(
            (attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0
        )
        zero = weights.get(node.input[2]) if len(node.input) > 2 else None
        if node.op_type == "QuantizeLinear":
            found.add(zero or declared or TensorProto.UINT8)
        elif node.input[0] in weights:
            found.add(weights[node.input[0]])
    return {TensorProto.DataType.Name(each) for each in found}


def _autocast(path: Path, wanted: str, kept: list[str]) -> Any:
    autocast = import_module("modelopt.onnx.autocast")
    patterns = [f"^{re.escape(name)}$" for name in kept]
    return autocast.convert_to_mixed_precision(
        str(path), low_precision_type=wanted, nodes_to_exclude=patterns, keep_io_types=True
    )
