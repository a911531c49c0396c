"""Triton's tensorrt backend as TensorrtTensor."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ..model import TritonModel
from .tensors import translate_tensors


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the engine of TensorRT."""
    node["backend"] = "TensorrtTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
    translate_tensors(model, node)
