"""An ONNX model's layers in float16, by onnxconverter-common. What it gets wrong about layers that stay in float32 is put right here."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..normalise import Names, replace_uses

log = logging.getLogger("penstock.tensorrt")

SMALLEST, LARGEST = 2.0**-24, 65504.0
"""What float16 can hold; by itself, the converter would cut weights off at 1e-7 and 10,000."""

_converting = threading.Lock()
"""What the converter warns of is caught for the whole process."""


def to_float16(model: Any, kept: Sequence[str]) -> Any:
    """The model (an `onnx.ModelProto`, which is changed) with inputs and outputs as they were, and layers in float16 but for the nodes
    named in `kept` and those that the converter leaves. Raises ValueError without the converter.
    """
    if find_spec("onnxconverter_common") is None:
        raise ValueError(
            "precision fp16 needs a converter: pip install onnxconverter-common (extra tensorrt brings it)"
        )
    from onnxconverter_common import float16

    for index, node in enumerate(model.graph.node):
        node.name = (
            node.name or f"{node.op_type}_{index}"
        )  # the converter names its casts after the nodes
    if float16.check_if_fp16_ready(model.graph):
        return model
    left = [
        node
        for node in model.graph.node
        if node.name in kept or node.op_type in float16.DEFAULT_OP_BLOCK_LIST
    ]
    _give_own_weights(model.graph, left)
    outputs = _detach_outputs(model.graph, left)
    with _converting, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = float16.convert_float_to_float16(
            model,
            min_positive_val=SMALLEST,
            max_finite_val=LARGEST,
            keep_io_types=True,
            node_block_list=list(kept),
        )
    if caught:
        log.info(
            "fp16: %d times, weights beyond what float16 can hold were cut off: %s",
            len(caught),
            caught[0].message,
        )
    _attach_outputs(converted.graph, outputs)
    _drop_detours(converted.graph)
    return converted


def _give_own_weights(graph: Any, left: Sequence[Any]) -> None:
    """Weights that nodes in float32 share with others (exporters write equal ones once): the converter has one type for each."""
    from onnx import TensorProto

    weights = {
        tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    uses = Counter(_reads(graph))
    own = Counter(name for node in left for name in node.input)
    names, copies = Names(graph), {}
    for node in left:
        for index, name in enumerate(node.input):
            if name not in weights or uses[name] == own[name]:
                continue
            if name not in copies:
                copies[name] = names.new(f"{name}_fp32")
                copy = graph.initializer.add()
                copy.CopyFrom(weights[name])
                copy.name = copies[name]
            node.input[index] = copies[name]


def _reads(graph: Any) -> Iterator[str]:
    """Every name that a node reads, or that the graph answers, in subgraphs too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _reads(subgraph)
    for value in graph.output:
        yield value.name


class _Output(NamedTuple):
    """An output of the graph as it was, and where it is made in float32 the node's name and which of its outputs it is."""

    value: Any
    maker: tuple[str, int] | None


def _detach_outputs(graph: Any, left: Sequence[Any]) -> list[_Output]:
    """Make outputs of nodes in float32 plain values, since the converter would cast them to float16 and leave them so."""
    from onnx import TensorProto

    makers = {name: (node.name, index) for node in left for index, name in enumerate(node.output)}
    found = [
        _Output(
            value,
            makers.get(value.name)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
            else None,
        )
        for value in map(_copy, graph.output)
    ]
    del graph.output[:]
    for value, maker in found:
        (graph.output if maker is None else graph.value_info).append(value)
    return found


def _attach_outputs(graph: Any, outputs: Sequence[_Output]) -> None:
    """Answer what the nodes in float32 made, before the cast to float16 that others read."""
    nodes, names = {node.name: node for node in graph.node}, Names(graph)
    others = {value.name: _copy(value) for value in graph.output}
    del graph.output[:]  # so that what is renamed below are values inside alone
    stale = set()
    for value, maker in outputs:
        if maker is None:
            continue
        name, node = value.name, nodes[maker[0]]
        exact = node.output[maker[1]]
        stale |= {name, exact}
        if exact == name:
            continue
        cast = next((each for each in graph.node if name in each.output), None)
        if cast is not None:
            cast.output[0] = names.new(f"{name}_fp16")
            replace_uses(graph, name, cast.output[0])
        node.output[maker[1]] = name
        replace_uses(graph, exact, name)
    types = [_copy(value) for value in graph.value_info if value.name not in stale]
    del graph.value_info[:]
    graph.value_info.extend(types)
    graph.output.extend(
        [value if maker is not None else others[value.name] for value, maker in outputs]
    )


def _drop_detours(graph: Any) -> None:
    """What passes from float32 to float32 by way of float16 goes straight. The converter sees to that only where one node reads it."""
    from onnx import TensorProto

    casts = {
        node.output[0]: (node.input[0], node.attribute[0].i)
        for node in graph.node
        if node.op_type == "Cast"
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            rounded, kind = casts.get(name, ("", 0))
            exact, through = casts.get(rounded, ("", 0))
            if (kind, through) == (
                TensorProto.FLOAT,
                TensorProto.FLOAT16,
            ):  # only the converter casts to float16, and only float32
                node.input[index] = exact
    for _ in range(2):  # the second of a pair, then the first
        read = set(_reads(graph))
        live = [
            _copy(node) for node in graph.node if node.op_type != "Cast" or node.output[0] in read
        ]
        del graph.node[:]
        graph.node.extend(live)


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
