"""A pipeline as a model of the protocol: what its inputs and outputs are called, of what datatype and shape, and which item they make.

An exposed node (`[pipeline.expose.NODE]`) is a pipeline of that one node.

Inputs. Where the file declares `data` among its inputs, each of them is the item's key of its name. Where it declares others only,
they make `data` together: one is `data`, several are a list in the declared order, as engines take them. Where the file declares none,
an engine at the entry says what it takes (its own names, in its own order); any other pipeline takes one image, as `data`.

Outputs are found the same way: an item's key of that name; else, for tensors, the item's `result`, or its parts where there are several.
Where no tensors are declared, `result` is an output too, by the names of the engine that ends the pipeline where there is one.

A model has a batch dimension where all of its inputs are tensors whose first size is open (-1), and there is a second one or the engine
says so. A request of N rows is then one item of `request_size` N. Other models take one item a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from penstock.backends.base import Signature, TensorPort
from penstock.backends.errors import BackendError, InvalidRequest, NotFound
from penstock.backends.item import Item
from penstock.backends.operators.classify import read_labels
from penstock.pipelines.config.definition import PipelineConfig, Port
from penstock.pipelines.pipeline import Pipeline

from ..call import NAME_CHARACTERS_IN_ERRORS
from ..tensors import DATATYPES, Datatype, datatype_of

SCALARS = {
    "image": "BYTES",
    "bytes": "BYTES",
    "text": "BYTES",
    "json": "BYTES",
    "integer": "INT64",
    "number": "FP64",
    "boolean": "BOOL",
}
"""Kinds of one value, which is a tensor of one element."""

ANY: tuple[int, ...] = (-1,)
"""The shape that clients are told where none is known."""


class Tensor(NamedTuple):
    """An input or output. `datatype` and `shape` (with the batch dimension, -1: any size) are None where they are not known.

    `kind`: `tensor`, or the kind of one value. `text`: its strings are `str` in the item, not `bytes`. `part`: it is in `data` or `result`
    (at that plan_node, where those are lists), else the item's key.
    """

    name: str
    datatype: Datatype | None
    shape: tuple[int, ...] | None
    kind: str = "tensor"
    text: bool = False
    part: int | None = None
    labels: tuple[str, ...] = ()


class Model:
    """Made of a pipeline that runs. `max_batch_size` is 0 where there is no batch dimension."""

    __slots__ = (
        "inputs",
        "inputs_by_name",
        "layouts",
        "max_batch_size",
        "name",
        "outputs",
        "outputs_by_name",
        "parts",
        "pipeline",
        "version",
    )

    def __init__(self, pipeline: Pipeline) -> None:
        config = pipeline.config
        entry_point = pipeline.plan.default
        first: Signature | None = None
        last: Signature | None = None
        if entry_point is not None and entry_point.linear:
            first = getattr(entry_point.root.node, "signature", None)
            last = getattr(entry_point.plan_nodes[-1].node, "signature", None)
        self.layouts: dict[bytes, Any] = {}  # kept by infer/layout.py
        self.pipeline = pipeline
        self.name = pipeline.name
        self.version = config.version
        self.inputs = tuple(_inputs(config, first.inputs if first is not None else None))
        self.inputs_by_name = {each.name: each for each in self.inputs}
        bound = 0
        if (
            entry_point is not None
            and self.inputs
            and all(_is_batched(each, first) for each in self.inputs)
        ):
            bound = min((node.scheduler.max for node in entry_point.nodes), default=0)
            if not config.declares_inputs and (last is None or last.outputs is None):
                bound = min(
                    bound, 1
                )  # what follows the engine may be made for one row, as a classifier's last step is
        self.max_batch_size = bound
        self.outputs = tuple(_outputs(config, last.outputs if last is not None else None))
        self.outputs_by_name = {each.name: each for each in self.outputs}
        self.parts = sum(each.part is not None for each in self.outputs)

    def values_of(self, item: Item) -> Iterator[tuple[Tensor, Any]]:
        """The outputs that an item has, in order."""
        result = item.get("result")
        for output in self.outputs:
            if output.name in item and output.name != "data":
                value = item[output.name]
            elif output.part is None or result is None:
                continue
            elif isinstance(result, dict) and output.name in result:
                value = result[output.name]
            elif self.parts == 1:
                value = result
            elif isinstance(result, (list, tuple)) and len(result) == self.parts:
                value = result[output.part]
            else:
                raise BackendError(
                    f"the result of pipeline '{self.name}' is not the list of {self.parts} outputs that it declares"
                )
            if value is None:
                continue
            if (
                output.datatype is None
                and isinstance(value, (list, tuple))
                and value
                and all(hasattr(each, "dtype") for each in value)
            ):
                for index, each in enumerate(value):  # arrays that nobody has named
                    yield output._replace(name=f"{output.name}_{index}"), each
            else:
                yield output, value


class Loaded(Protocol):
    """Where pipelines are found by name (`repository.py`)."""

    @property
    def models(self) -> dict[str, Pipeline]: ...
    @property
    def generation(self) -> int: ...
    def get(self, name: str) -> Pipeline: ...


class Models:
    """The pipelines of a repository and their exposed nodes as models, each described once."""

    def __init__(self, repository: Loaded) -> None:
        self._repository = repository
        self._models: dict[str, Model] = {}
        self._generation = repository.generation

    def get(self, name: str, version: str = "") -> Model:
        """A loaded one; "" is its only version. Raises `InvalidRequest` in Triton's words for an unknown one, `NotReady`."""
        if (
            self._generation != self._repository.generation
        ):  # pipelines that are gone are not held on to
            loaded, self._generation = self._repository.models, self._repository.generation
            self._models = {
                each: model
                for each, model in self._models.items()
                if loaded.get(each) is model.pipeline
            }
        model = self._models.get(name)
        if model is None:
            pipeline = self._repository.models.get(name)
            if pipeline is None:
                try:
                    pipeline = self._repository.get(name)
                except NotFound:
                    raise InvalidRequest(
                        f"Request for unknown model: '{name[:NAME_CHARACTERS_IN_ERRORS]}' is not found"
                    ) from None
            model = self._models[name] = Model(pipeline)
        if version and version != model.version:
            raise InvalidRequest(
                f"Request for unknown model: '{name}' version {version} is not found"
            )
        return model


def _inputs(config: PipelineConfig, known: Sequence[TensorPort] | None) -> Iterator[Tensor]:
    ports: Sequence[Port] = config.inputs
    if known is not None and not config.declares_inputs:
        for index, each in enumerate(known):
            yield _of_engine(each, index)
        return
    keyed = any(port.name == "data" for port in ports)
    for index, port in enumerate(ports):
        plan_node = known is not None and (
            (len(known) == len(ports) and not keyed) or (port.name == "data" and len(known) == 1)
        )
        yield _of_port(
            port,
            known[index if not keyed else 0] if known is not None and plan_node else None,
            None if keyed else index,
        )


def _outputs(config: PipelineConfig, known: Sequence[TensorPort] | None) -> Iterator[Tensor]:
    ports = config.outputs
    keyed = any(port.name == "result" for port in ports)
    tensors = [] if keyed else [port for port in ports if _is_tensor(port)]
    if not keyed and not tensors:
        if known is not None:
            for index, each in enumerate(known):
                yield _of_engine(each, index)
        else:
            yield Tensor("result", None, None, part=0)
    for port in ports:
        part = tensors.index(port) if port in tensors else None
        engine = (
            known[part]
            if known is not None and part is not None and len(known) == len(tensors)
            else None
        )
        yield _of_port(port, engine, part, config)


def _of_engine(port: TensorPort, part: int) -> Tensor:
    return Tensor(
        port.name, datatype_of(port.dtype), port.shape, text=port.dtype == "string", part=part
    )


def _of_port(
    port: Port, engine: TensorPort | None, part: int | None, config: PipelineConfig | None = None
) -> Tensor:
    """`engine`: what the engine says of it, for what the file leaves out. `config`: of an output, whose labels are read."""
    scalar = None if _is_tensor(port) or port.shape not in {None, (1,)} else SCALARS[port.kind]
    declared = None if port.dtype is None else datatype_of(port.dtype)
    if scalar is not None:
        return Tensor(
            port.name, declared or DATATYPES[scalar], (1,), port.kind, port.kind == "text", part
        )
    found = _of_engine(engine, 0) if engine is not None else Tensor(port.name, None, None)
    shape_found = port.shape if port.shape is not None else found.shape
    datatype_found = (
        declared or found.datatype or (None if _is_tensor(port) else DATATYPES[SCALARS[port.kind]])
    )
    text = found.text or port.dtype == "string" or port.kind == "text"
    return Tensor(
        port.name, datatype_found, shape_found, "tensor", text, part, _labels(port, config)
    )


def _is_tensor(port: Port) -> bool:
    """It says so, or it has no kind and says what only tensors have."""
    return port.kind == "tensor" or (
        port.kind == "json" and (port.dtype is not None or port.shape is not None)
    )


def _labels(port: Port, config: PipelineConfig | None) -> tuple[str, ...]:
    if port.labels is None or config is None:
        return ()
    beside = config.directory / port.labels
    return tuple(read_labels(beside if beside.exists() else Path(port.labels)))


def _is_batched(tensor: Tensor, engine: Signature | None) -> bool:
    if tensor.kind != "tensor" or not tensor.shape or tensor.shape[0] != -1:
        return False
    return (
        engine.batched
        if engine is not None and engine.inputs is not None
        else len(tensor.shape) > 1
    )
