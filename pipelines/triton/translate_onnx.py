"""Triton's onnxruntime backend as OnnxTensor."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .model import TritonModel


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the ONNX model."""
    node["backend"] = "OnnxTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
