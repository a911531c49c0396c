"""Convert an ONNX model's layers to float16 with onnxconverter-common.

The converter makes mistakes around layers that stay in float32; this module corrects them.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from .normalise import Names, replace_uses

log = logging.getLogger("penstock.precision")

SMALLEST_FLOAT16, LARGEST_FLOAT16 = 2.0**-24, 65504.0
"""The least positive and the greatest value in float16. The converter's own limits are tighter: it
would clip weights to 1e-7 and 10,000.
"""

_converting = threading.Lock()
"""Held during a conversion, whose warnings are caught for the whole process."""


def to_float16(model: Any, kept: Sequence[str]) -> Any:
    """Convert layers of a model to float16. Return the model.

    `model` is an `onnx.ModelProto`, and is changed in place. Inputs and outputs keep their types.
    Nodes named in `kept` stay in float32, and so do operators that the converter blocks. Raises
    ValueError if the converter is not installed.
    """
    if find_spec("onnxconverter_common") is None:
        raise ValueError(
            "precision fp16 needs a converter: pip install onnxconverter-common (the extras "
            "tensorrt and onnx-gpu bring it)"
        )
    from onnxconverter_common import float16

    for index, node in enumerate(model.graph.node):
        # The converter names its casts after the nodes, so each node needs a name.
        node.name = node.name or f"{node.op_type}_{index}"
    if float16.check_if_fp16_ready(model.graph):
        return model
    # The converter would declare the output of a Cast to float32 as float16. Kept in float32 it is
    # also exact where layers in float32 read it: an image's size, made a float.
    kept = [*kept, *[node.name for node in model.graph.node if _float_casts([node])]]
    left = [
        node
        for node in model.graph.node
        if node.name in kept or node.op_type in float16.DEFAULT_OP_BLOCK_LIST
    ]
    names = {node.name for node in left}
    _cast_to_float16([node for node in model.graph.node if node.name not in names])
    _give_own_weights(model.graph, left)
    outputs = _detach_outputs(model.graph, left)
    with _converting, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = float16.convert_float_to_float16(
            model,
            min_positive_val=SMALLEST_FLOAT16,
            max_finite_val=LARGEST_FLOAT16,
            keep_io_types=True,
            node_block_list=list(kept),
        )
    if caught:
        log.info(
            "fp16: weights outside float16's range were clipped, %d times: %s",
            len(caught),
            caught[0].message,
        )
    _attach_outputs(converted.graph, outputs)
    _drop_detours(converted.graph)
    return converted


def _float_casts(nodes: Iterable[Any]) -> list[Any]:
    """Return the attributes of the nodes that cast to float32."""
    from onnx import TensorProto

    return [
        attribute
        for node in nodes
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT
    ]


def _cast_to_float16(nodes: Iterable[Any]) -> None:
    """Let the Casts to float32 in the subgraphs of nodes cast to float16, as which the converter
    declares all floats there.
    """
    from onnx import TensorProto

    for node in nodes:
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                for cast in _float_casts(subgraph.node):
                    cast.i = TensorProto.FLOAT16
                _cast_to_float16(subgraph.node)


def _give_own_weights(graph: Any, left: Sequence[Any]) -> None:
    """Copy the weights that nodes in float32 share with other nodes.

    Exporters write equal weights once, and the converter has one type for each weight.
    """
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
    """Yield every name that a node reads or that is an output of the graph, in subgraphs too."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _reads(subgraph)
    for value in graph.output:
        yield value.name


class _Output(NamedTuple):
    """An output of the graph before conversion."""

    value: Any
    maker: tuple[str, int] | None
    """If the output is made in float32: the name of its node, and its index among the node's
    outputs.
    """


def _detach_outputs(graph: Any, left: Sequence[Any]) -> list[_Output]:
    """Turn outputs that nodes in float32 make into inner values, and return all outputs.

    Otherwise the converter would cast these to float16 and not cast them back.
    """
    from onnx import TensorProto

    makers = {name: (node.name, index) for node in left for index, name in enumerate(node.output)}
    outputs = [
        _Output(
            value,
            makers.get(value.name)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
            else None,
        )
        for value in map(_copy, graph.output)
    ]
    del graph.output[:]
    for value, maker in outputs:
        (graph.output if maker is None else graph.value_info).append(value)
    return outputs


def _attach_outputs(graph: Any, outputs: Sequence[_Output]) -> None:
    """Make the values of nodes in float32 outputs again.

    They come without the cast to float16 that other nodes read.
    """
    nodes, names = {node.name: node for node in graph.node}, Names(graph)
    others = {value.name: _copy(value) for value in graph.output}
    del graph.output[:]  # so that the renames below touch only inner values
    stale = set()
    for value, maker in outputs:
        if maker is None:
            continue
        name, node = value.name, nodes[maker[0]]
        exact = node.output[maker[1]]
        stale |= {name, exact}
        if exact == name:
            continue
        cast = next((other for other in graph.node if name in other.output), None)
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
    """Remove casts from float32 to float16 and back.

    The converter removes them only if a single node reads the value.
    """
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
            # Only the converter casts to float16, and it casts only float32, so `exact` is float32.
            if (kind, through) == (TensorProto.FLOAT, TensorProto.FLOAT16):
                node.input[index] = exact
    for _ in range(2):  # the second cast of a pair goes first, and then no node reads the other
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
