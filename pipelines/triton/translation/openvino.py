"""Triton's openvino backend as OpenvinoTensor."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ..model import TritonModel
from .parameters import ParameterReader
from .tensors import translate_tensors

THREADS = ("CPU_THREADS_NUM", "INFERENCE_NUM_THREADS")
BF16 = ("ENFORCE_BF16", "HINT_BF16")
"""Parameters, the older names first."""


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the model with OpenVINO, on the CPU."""
    node["backend"] = "OpenvinoTensor"
    node["model"] = model.model_file
    node["batched"] = model.batched
    translate_tensors(model, node)
    reader = ParameterReader(model, tables)
    for key in THREADS:
        if (threads := reader.number(key)) is not None and threads > 0:
            node["threads"] = threads
    if any(reader.text(key) == "YES" for key in BF16):
        node["precision"] = "bf16"
    if reader.text("CPU_BIND_THREAD") == "YES":
        node["pin_cores"] = True
