"""The inputs and outputs that a pipeline declares, with what its engines know of them.

If the file declares `data` among its inputs, each input is the key of that name in the item. If it
declares only other inputs, or is `positional`, they make up `data` together: one input is `data`,
several are a list in the declared order, as engines take them.

An item of several rows: all inputs are tensors whose first size is open (-1), and there is a second
size or the engine says so, unless the file says `batched = false`. A request of N rows is then one
item with `request_size` N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from penstock.backends.base import Signature, TensorPort
from penstock.backends.item import Item
from penstock.pipelines.config.definition import PipelineConfig, Port
from penstock.pipelines.config.json_schema import JsonSchema
from penstock.pipelines.pipeline import Pipeline

from .datatypes import DATATYPES, Datatype, datatype_of
from .encoded_images import ImageDecoder

SCALAR_DATATYPES = {
    "image": "BYTES",
    "bytes": "BYTES",
    "text": "BYTES",
    "json": "BYTES",
    "integer": "INT64",
    "number": "FP64",
    "boolean": "BOOL",
}
"""Datatypes of the kinds that are one value: such a value is a tensor of one element."""

ANY_SIZE: tuple[int, ...] = (-1,)
"""The shape of any number of elements."""

ONE_VALUE: tuple[int, ...] = (1,)

JSON_ITEM = Port("", "json")
"""The items of a list that says nothing of them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    `shape` includes the batch dimension, and -1 in it stands for any size. `datatype` and `shape`
    are None if they are not known. `kind` is `tensor`, `list` or the kind of one value. `text` says
    that strings are `str` in the item, not `bytes`. `position` is the tensor's index in the item's
    `data` or `result`, which is a list if there are several; None if the tensor is a key of the
    item. A request may leave an `optional` input out: its key is then missing, or its place in the
    list holds None. `decoder` makes the tensor of encoded images, if it may be BYTES too. `items`
    describes the items of a list. `media_types` are those that the file
    lists for the input. `schema` is what a JSON value must look like.
    """

    name: str
    datatype: Datatype | None
    shape: tuple[int, ...] | None
    kind: str = "tensor"
    text: bool = False
    position: int | None = None
    labels: tuple[str, ...] = ()
    optional: bool = False
    items: Tensor | None = None
    media_types: tuple[str, ...] = ()
    schema: JsonSchema | None = None
    decoder: ImageDecoder | None = None


class Inputs(NamedTuple):
    """The inputs of a running pipeline.

    `max_batch_size` is 0 if a request has no batch dimension. With the batch on other axes than the
    first of all inputs it is 0 too, `batch_axes` has the axis of each input with a batch, and
    `max_rows` bounds a request.
    """

    tensors: tuple[Tensor, ...]
    max_batch_size: int
    max_rows: int
    batch_axes: dict[str, int]


def inputs_of(pipeline: Pipeline) -> Inputs:
    """Describe the inputs of a pipeline. If its file declares none, an engine at the entry point
    says what it takes.
    """
    config = pipeline.config
    entry_point = pipeline.plan.default
    first, last = engines_of(pipeline)
    if first is not None and config.declares_inputs and first.inputs is not None:
        required = first.without_optional()
        if required.inputs is not None and len(required.inputs) == len(config.inputs):
            first = required
    tensors = tuple(_inputs(config, first.inputs if first is not None else None))
    # The batch dimension is the first of all inputs. With other axes there is none, but requests
    # may have several rows all the same.
    batch_axes = _batch_axes(tensors, first) if config.batched else {}
    max_rows = 0
    if entry_point is not None:
        max_rows = entry_point.max_rows
        if not config.declares_inputs and (last is None or last.outputs is None):
            # What follows the engine may work on one row only, as a classifier's last step.
            max_rows = min(max_rows, 1)
    is_batched = (
        config.batched and bool(tensors) and all(_is_batched(tensor, first) for tensor in tensors)
    )
    return Inputs(tensors, max_rows if is_batched else 0, max_rows, batch_axes)


def engines_of(pipeline: Pipeline) -> tuple[Signature | None, Signature | None]:
    """Return the signatures of the engines that a pipeline begins and ends with, if it does."""
    entry_point = pipeline.plan.default
    if entry_point is None or not entry_point.linear:
        return None, None
    return (
        getattr(entry_point.root.node, "signature", None),
        getattr(entry_point.plan_nodes[-1].node, "signature", None),
    )


def set_values(item: Item, values: dict[str, Any], tensors: Sequence[Tensor]) -> None:
    """Set the item's keys. An input that is left out has none, or None in `data`.

    `data` is an empty list if there are no inputs, as Triton's Python models may have.
    """
    parts: list[Any] = []
    if not tensors:
        item["data"] = parts
    for expected in tensors:
        value = values.get(expected.name)
        if expected.position is None:
            if expected.name in values or expected.name == "data":
                item[expected.name] = value
        elif len(tensors) == 1:
            item["data"] = value
        else:
            parts.append(value)
            item["data"] = parts


def _inputs(config: PipelineConfig, known: Sequence[TensorPort] | None) -> Iterator[Tensor]:
    """Yield the inputs; `known` are those of the engine at the entry point."""
    ports: Sequence[Port] = config.inputs
    if known is not None and not config.declares_inputs:
        for index, tensor_port in enumerate(known):
            yield of_engine(tensor_port, index)
        return
    keyed = not config.positional and any(port.name == "data" for port in ports)
    for index, port in enumerate(ports):
        engine = None
        if known is not None:
            if keyed and port.name == "data" and len(known) == 1:
                engine = known[0]
            elif not keyed and len(known) == len(ports):
                engine = known[index]
        yield of_port(port, engine, None if keyed else index)


def of_engine(port: TensorPort, position: int) -> Tensor:
    return Tensor(
        port.name,
        datatype_of(port.dtype),
        port.shape,
        text=port.dtype == "string",
        position=position,
        optional=port.optional,
    )


def of_port(port: Port, engine: TensorPort | None = None, position: int | None = None) -> Tensor:
    """Describe a declared input or output; `engine` fills in what the file leaves out."""
    if port.kind == "list":
        return _of_list(port, position)
    declared = None if port.dtype is None else datatype_of(port.dtype)
    if not is_tensor(port) and port.shape in {None, ONE_VALUE}:
        datatype = declared or DATATYPES[SCALAR_DATATYPES[port.kind]]
        is_text = port.kind == "text"
        return Tensor(
            port.name,
            datatype,
            ONE_VALUE,
            port.kind,
            is_text,
            position,
            optional=port.optional,
            media_types=port.media_types,
            schema=port.schema,
        )
    known = of_engine(engine, 0) if engine is not None else Tensor(port.name, None, None)
    return Tensor(
        port.name,
        declared
        or known.datatype
        or (None if is_tensor(port) else DATATYPES[SCALAR_DATATYPES[port.kind]]),
        port.shape if port.shape is not None else known.shape,
        "tensor",
        known.text or port.dtype == "string" or port.kind == "text",
        position,
        port.label_texts,
        optional=port.optional or known.optional,
        decoder=None if port.decode is None else ImageDecoder(port.decode),
    )


def _of_list(port: Port, position: int | None) -> Tensor:
    """Describe a list: a tensor with an element for each item if an item is one value, else its
    JSON text.
    """
    items = of_port(port.items or JSON_ITEM)
    one_value = items.kind in SCALAR_DATATYPES
    return Tensor(
        port.name,
        items.datatype if one_value else DATATYPES["BYTES"],
        ANY_SIZE if one_value else ONE_VALUE,
        "list",
        position=position,
        optional=port.optional,
        items=items,
        media_types=port.media_types,
    )


def is_tensor(port: Port) -> bool:
    """Return whether a port is a tensor: by its kind, or by a dtype or shape if it has no kind."""
    return port.kind == "tensor" or (
        port.kind == "json" and (port.dtype is not None or port.shape is not None)
    )


def _batch_axes(inputs: Sequence[Tensor], engine: Signature | None) -> dict[str, int]:
    """Return the batch axis of the inputs that have one, if it is not the first of all."""
    if (
        engine is None
        or not engine.batch_axes
        or len(inputs) < len(engine.batch_axes)
        or any(tensor.position is None for tensor in inputs)
    ):
        return {}
    return {
        tensor.name: axis
        for index, tensor in enumerate(inputs)
        if (axis := engine.batch_axis(index)) is not None
    }


def _is_batched(tensor: Tensor, engine: Signature | None) -> bool:
    if tensor.kind != "tensor" or not tensor.shape or tensor.shape[0] != -1:
        return False
    if engine is not None and engine.batch_axes:
        return False
    return (
        engine.batched
        if engine is not None and engine.inputs is not None
        else len(tensor.shape) > 1
    )
