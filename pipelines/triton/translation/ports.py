"""The `input` and `output` of a ModelConfig as `[pipeline.inputs]` and `[pipeline.outputs]`."""

from __future__ import annotations

from typing import Any

from ...config.presets import COLORS
from ...config.source import Tables
from ..datatypes import datatype_name
from ..model import TritonModel

HAS_OWN = frozenset({"tensorrt", "openvino"})
"""The backends whose engines know their tensors, and whose configurations may lack them."""


def translate_ports(model: TritonModel, tables: Tables) -> None:
    """Write the declared tensors, each with its batch dimension.

    If the configuration has none, even after it was completed, the engine says its own.
    """
    if model.backend in HAS_OWN and not (model.config.input and model.config.output):
        return
    if model.backend == "pytorch":
        message = "it is empty, and a TorchScript model doesn't name its tensors: expected them"
        tables.problems += [
            model.problem(field, message)
            for field in ("input", "output")
            if not getattr(model.config, field)
        ]
    tables.pipeline["inputs"] = {
        tensor.name: _port(tensor, model) | ({"optional": True} if tensor.optional else {})
        for tensor in model.config.input
    }
    _decode_images(model, tables)
    tables.pipeline["outputs"] = {
        tensor.name: _port(tensor, model)
        | ({"labels": tensor.label_filename} if _has_labels(tensor, model) else {})
        for tensor in model.config.output
    }
    for index, tensor in enumerate(model.config.output):
        if tensor.label_filename and not _has_labels(tensor, model):
            message = f"there is no file {tensor.label_filename!r} in the model's folder"
            tables.problems.append(model.problem(f"output[{index}].label_filename", message))


def _has_labels(tensor: Any, model: TritonModel) -> bool:
    return bool(tensor.label_filename) and (model.folder / tensor.label_filename).is_file()


def _port(tensor: Any, model: TritonModel) -> dict[str, Any]:
    port: dict[str, Any] = {"kind": "tensor"}
    if (datatype := datatype_name(tensor.data_type)) is not None:
        port["dtype"] = datatype
    port["shape"] = [*([-1] if model.batched else []), *tensor.dims]
    return port


DECODE_PARAMETER = "penstock_decode"
"""The parameter that lets clients send encoded images: a preset for the model's one input of pixels
(`imagenet`), or one for each of several (`LEFT=imagenet,RIGHT=raw`).
"""


def _decode_images(model: TritonModel, tables: Tables) -> None:
    text = model.parameters.get(DECODE_PARAMETER)
    if text is None:
        return
    ports = tables.pipeline["inputs"]
    for piece in text.split(","):
        name, equals, preset = piece.partition("=")
        if not equals:
            images = [name for name, port in ports.items() if _has_pixels(port["shape"])]
            name, preset = (images[0] if len(images) == 1 else "", piece)
        if name.strip() not in ports:
            message = (
                f"found {text!r}, expected a preset for the one input of pixels, or INPUT=preset "
                f"with inputs of {', '.join(ports)}"
            )
            tables.problems.append(model.problem(f"parameters.{DECODE_PARAMETER}", message))
            return
        ports[name.strip()]["decode"] = preset.strip()


def _has_pixels(shape: list[int]) -> bool:
    return len(shape) >= 3 and (shape[-3] in COLORS or shape[-1] in COLORS)
