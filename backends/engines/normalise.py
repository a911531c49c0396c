"""Edits to an ONNX model's graph: `mean`, `std` and the image layout become nodes of it.

They come before the first input is used. Nothing here runs a model: OnnxTensor and TensorRT do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .shapes import shape_text


def fuse_normalisation(
    model: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Edit `model` (an `onnx.ModelProto`) in place, so that it computes (x - mean) / std itself.

    The first input keeps its name and shape. Its type becomes float32, or stays float64: uint8 and
    float16 widen to both without loss, so the engines take them too.

    `mean` and `std` have one value for each channel, or one for all. The channel axis is the
    second, or the last if only that one has as many channels (NHWC). Raises ValueError if neither
    axis fits, if a std is 0, or if the input is not of a floating type.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}  # old files list these as inputs too
    first = next(value for value in graph.input if value.name not in weights)
    tensor = first.type.tensor_type
    if tensor.elem_type not in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.BFLOAT16,
    ):
        type_name = TensorProto.DataType.Name(tensor.elem_type)
        raise ValueError(
            f"mean and std need a first input of a floating type, but {first.name!r} is {type_name}"
        )

    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    names = Names(graph)
    raw, normalised = first.name, names.new(f"{first.name}_normalised")
    replace_uses(graph, raw, normalised)

    nodes = []
    current = names.new(f"{raw}_float")
    nodes.append(
        helper.make_node("Cast", [raw], [current], names.new("penstock_cast"), to=TensorProto.FLOAT)
    )
    for operation, key, values in (("Sub", "mean", mean), ("Mul", "std", std)):
        if values is None:
            continue
        if key == "std" and 0 in values:
            raise ValueError(f"std must not contain 0, found {tuple(values)}")
        exact = (
            np.asarray(values, np.float64) if key == "mean" else 1 / np.asarray(values, np.float64)
        )
        constant = exact.astype(np.float32).reshape(_broadcast(shape, len(values), key))
        constant_name, output = names.new(f"penstock_{key}"), names.new(f"{raw}_{key}")
        graph.initializer.append(numpy_helper.from_array(constant, constant_name))
        nodes.append(
            helper.make_node(
                operation, [current, constant_name], [output], names.new(f"penstock_{operation}")
            )
        )
        current = output
    # The normalisation is in float32 even for a model in 16 bits, in which mean and std would lose
    # digits.
    nodes.append(
        helper.make_node(
            "Cast", [current], [normalised], names.new("penstock_cast"), to=tensor.elem_type
        )
    )
    if tensor.elem_type != TensorProto.DOUBLE:
        tensor.elem_type = TensorProto.FLOAT

    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def channels_last(model: Any) -> None:
    """Edit `model` (an `onnx.ModelProto`) in place: its first input, N×C×H×W, becomes N×H×W×C.

    Raises ValueError for an input without 4 axes.
    """
    from onnx import helper

    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    first = next((value for value in graph.input if value.name not in weights), None)
    dims = first.type.tensor_type.shape.dim if first is not None else []
    if first is None or len(dims) != 4:
        raise ValueError(f"nhwc needs a first input of 4 axes, N×C×H×W, found {len(dims)}")
    turned = Names(graph).new(f"{first.name}_nchw")
    replace_uses(graph, first.name, turned)
    graph.node.insert(
        0,
        helper.make_node(
            "Transpose", [first.name], [turned], f"{turned}_transpose", perm=(0, 3, 1, 2)
        ),
    )
    channels = type(dims[1])()
    channels.CopyFrom(dims[1])
    dims.append(channels)
    del dims[1]


def _broadcast(shape: list[int | None], count: int, key: str) -> tuple[int, ...]:
    """Return the shape that lays `count` values along the channel axis of an input of this shape.

    Raises ValueError if no axis fits.
    """
    if count == 1:
        return ()
    channels = channel_axis(shape, count, key)
    return tuple(count if axis == channels else 1 for axis in range(len(shape)))


def channel_axis(shape: list[int | None], count: int, key: str) -> int:
    """Return the axis of an input of this shape that has `count` channels: the second, or the last.

    Raises ValueError if neither has. `key` is what has `count` values, for the message.
    """
    rank = len(shape)
    for axis in (1, rank - 1):
        if 1 <= axis < rank and shape[axis] == count:
            return axis
    if rank < 2 or shape[1] is not None:
        raise ValueError(
            f"{key} has {count} values, but neither the second nor the last axis of the first "
            f"input {shape_text(shape)} has as many channels"
        )
    return 1


def replace_uses(graph: Any, old: str, new: str) -> None:
    """Let every node that reads `old` read `new`.

    This includes subgraphs, except those with an input of their own that is named `old`.
    """
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                if all(value.name != old for value in subgraph.input):
                    replace_uses(subgraph, old, new)
    for value in graph.output:
        # `old` is an output of a subgraph, or of a model that returns its own input.
        if value.name == old:
            value.name = new


class Names:
    """Hands out names that the graph does not have yet."""

    def __init__(self, graph: Any) -> None:
        self._taken = {
            name for node in graph.node for name in (node.name, *node.input, *node.output)
        }
        self._taken.update(
            value.name for value in (*graph.input, *graph.output, *graph.initializer)
        )

    def new(self, wanted: str) -> str:
        """Return `wanted`, or if that is taken `wanted_1`, `wanted_2` ..."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
