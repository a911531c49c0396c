"""Weights on a GPU that the instances of a node share.

Each instance has a session of its own, since a session has one stream and its memory for
intermediate results can't be used by two runs at once. ONNX Runtime takes a weight from outside
where it is already on the device and the optimised graph still has it by that name. What its
optimiser makes of weights (a convolution with its batch norm folded in), each session has for
itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import BackendError
from ..onnx_session import load_model
from ..sharing import shared

MIN_SHARED_BYTES = 16 << 10
"""The smallest weight that is worth sharing. Shapes and other constants stay with the model."""


class SharedWeights:
    """The weights of a model as OrtValues, by name."""

    __slots__ = ("__weakref__", "values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values


def shared_weights(
    key: Hashable, source: str | bytes, folder: Path, device: torch.device
) -> SharedWeights:
    """Return the weights of a model on a device; the first caller copies them there.

    `source` is what a session is opened with, `folder` where weights in other files are.
    Instances with the same `key` share them, and must hold what is returned as long as their
    sessions.
    """
    weights: SharedWeights = shared(
        ("onnx weights", key, str(device)), lambda: _load(source, folder, device)
    )
    return weights


def _load(source: str | bytes, folder: Path, device: torch.device) -> SharedWeights:
    import onnxruntime
    from onnx import TensorProto, load_external_data_for_model, numpy_helper

    model = load_model(source)
    try:
        load_external_data_for_model(model, str(folder))
    except Exception as error:  # onnx raises what its checker and the system raise
        raise BackendError(f"OnnxTensor: weights in {folder} can't be read: {error}") from error
    graph = model.graph
    inputs = {value.name for value in graph.input}  # these weights may be given by items
    supported = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8}
    values = {}
    for tensor in graph.initializer:
        if tensor.data_type not in supported or tensor.name in inputs:
            continue
        array = numpy_helper.to_array(tensor)
        if array.nbytes >= MIN_SHARED_BYTES:
            # The memory is torch's: ONNX Runtime takes none from outside that is its own.
            weight = torch.from_numpy(array.copy()).to(device)
            values[tensor.name] = onnxruntime.OrtValue.from_dlpack(weight)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # sessions have streams of their own
    return SharedWeights(values)
