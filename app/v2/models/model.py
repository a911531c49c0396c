"""A pipeline as a model of the protocol: the names, datatypes and shapes of its inputs and outputs.

An exposed node (`[pipeline.expose.NODE]`) is a pipeline of that one node.

Inputs. If the file declares `data` among its inputs, each input is the key of that name in the
item. If it declares only other inputs, they make up `data` together: one input is `data`, several
are a list in the declared order, as engines take them. If it declares none, an engine at the entry
point says what it takes, with its own names in its own order; any other pipeline takes one image,
as `data`.

Outputs. An output is the key of its name in the item. If the item has no such key, a tensor is the
item's `result`, or one part of it if there are several. If no tensors are declared, `result` is an
output too, under the names of the engine that ends the pipeline, if one does.

A model has a batch dimension if all of its inputs are tensors whose first size is open (-1), and
there is a second size or the engine says so, unless the file says `batched = false`. A request of
N rows is then one item with `request_size` N. Other models take one item a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from penstock.backends.base import Signature, TensorPort
from penstock.backends.errors import BackendError, InvalidRequest, NotFound
from penstock.backends.item import Item
from penstock.backends.operators.labels import read_labels
from penstock.pipelines.config.definition import PipelineConfig, Port
from penstock.pipelines.pipeline import Pipeline

from ..call import NAME_CHARACTERS_IN_ERRORS
from ..tensors import DATATYPES, Datatype, datatype_of

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
"""The shape to report if none is known."""


class Tensor(NamedTuple):
    """An input or output.

    `shape` includes the batch dimension, and -1 in it stands for any size. `datatype` and `shape`
    are None if they are not known. `kind` is `tensor` or the kind of one value. `text` says that
    strings are `str` in the item, not `bytes`. `position` is the tensor's index in the item's
    `data` or `result`, which is a list if there are several; None if the tensor is a key of the
    item. A request may leave an `optional` input out: its key is then missing, or its place in the
    list holds None.
    """

    name: str
    datatype: Datatype | None
    shape: tuple[int, ...] | None
    kind: str = "tensor"
    text: bool = False
    position: int | None = None
    labels: tuple[str, ...] = ()
    optional: bool = False


class Model:
    """A running pipeline as a model.

    `max_batch_size` is 0 if the model has no batch dimension. With the batch on other axes than the
    first of all inputs it is 0 too, `batch_axes` has the axis of each input with a batch, and
    `max_rows` bounds a request.
    `streams` says that its answers come in parts. infer/layout.py keeps `layouts`, the requests
    that it has seen, and infer/response.py `heads`, the JSON of answers.
    """

    __slots__ = (
        "batch_axes",
        "heads",
        "inputs",
        "inputs_by_name",
        "layouts",
        "max_batch_size",
        "max_rows",
        "name",
        "outputs",
        "outputs_by_name",
        "pipeline",
        "result_length",
        "streams",
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
        if first is not None and config.declares_inputs and first.inputs is not None:
            required = first.without_optional()
            if required.inputs is not None and len(required.inputs) == len(config.inputs):
                first = required
        self.layouts: dict[bytes, Any] = {}
        self.heads: dict[tuple[Any, ...], tuple[bytes, ...]] = {}
        self.pipeline = pipeline
        self.name = pipeline.name
        self.version = config.version
        self.streams = pipeline.streams
        self.inputs = tuple(_inputs(config, first.inputs if first is not None else None))
        self.inputs_by_name = {tensor.name: tensor for tensor in self.inputs}
        # The protocol's batch dimension is the first of all inputs. With other axes the model has
        # none, but its requests may have several rows all the same.
        self.batch_axes = _batch_axes(self.inputs, first) if config.batched else {}
        self.max_rows = 0
        if entry_point is not None:
            self.max_rows = min((node.scheduler.max for node in entry_point.nodes), default=0)
            if not config.declares_inputs and (last is None or last.outputs is None):
                # What follows the engine may work on one row only, as a classifier's last step.
                self.max_rows = min(self.max_rows, 1)
        is_batched = (
            config.batched
            and bool(self.inputs)
            and all(_is_batched(tensor, first) for tensor in self.inputs)
        )
        self.max_batch_size = self.max_rows if is_batched else 0
        self.outputs = tuple(_outputs(config, last.outputs if last is not None else None))
        self.outputs_by_name = {tensor.name: tensor for tensor in self.outputs}
        self.result_length = sum(tensor.position is not None for tensor in self.outputs)

    def values_of(self, item: Item) -> list[tuple[Tensor, Any]]:
        """Return the outputs that an item has, in order, with their values.

        Raises `BackendError` if the result is not the list of outputs that the pipeline declares.
        """
        result = item.get("result")
        found: list[tuple[Tensor, Any]] = []
        for output in self.outputs:
            name = output.name
            if name in item and name != "data":
                value = item[name]
            elif output.position is None or result is None:
                continue
            elif type(result) is list and len(result) == self.result_length != 1:
                value = result[output.position]
            elif isinstance(result, dict) and name in result:
                value = result[name]
            elif self.result_length == 1:
                value = result
            elif isinstance(result, (list, tuple)) and len(result) == self.result_length:
                value = result[output.position]
            else:
                raise BackendError(
                    f"the result of pipeline '{self.name}' is not the list of "
                    f"{self.result_length} outputs that it declares"
                )
            if value is None:
                continue
            if (
                output.datatype is None
                and isinstance(value, (list, tuple))
                and value
                and all(hasattr(array, "dtype") for array in value)
            ):
                for index, array in enumerate(value):  # a list of arrays that have no names
                    found.append((output._replace(name=f"{name}_{index}"), array))
            else:
                found.append((output, value))
        return found


class LoadedRepository(Protocol):
    """A repository of loaded pipelines (`pipelines/repository.py`)."""

    @property
    def models(self) -> dict[str, Pipeline]: ...
    @property
    def versions(self) -> dict[str, dict[str, Pipeline]]: ...
    @property
    def generation(self) -> int: ...
    def get(self, name: str, version: str = "") -> Pipeline: ...


class Models:
    """The pipelines of a repository and their exposed nodes as models, each described once."""

    def __init__(self, repository: LoadedRepository) -> None:
        self._repository = repository
        # By name, and for a request that names the version by both.
        self._models: dict[str | tuple[str, str], Model] = {}
        self._generation = repository.generation

    def get(self, name: str, version: str = "") -> Model:
        """Return a loaded model; "" stands for its newest version.

        Raises `NotReady`, and `InvalidRequest` with Triton's message for an unknown model.
        """
        if self._generation != self._repository.generation:
            self._forget()
        model = self._models.get((name, version) if version else name)
        return self._find(name, version) if model is None else model

    def versions(self, name: str) -> list[Pipeline]:
        """Return the loaded versions of a model, the oldest first."""
        return list(self._repository.versions.get(name, {}).values())

    def _forget(self) -> None:
        """Let go of pipelines that are not loaded any more, or not the newest of their name."""
        self._generation = self._repository.generation
        self._models = {
            key: model for key, model in self._models.items() if self._loaded(key) is model.pipeline
        }

    def _loaded(self, key: str | tuple[str, str]) -> Pipeline | None:
        if isinstance(key, str):
            return self._repository.models.get(key)
        return self._repository.versions.get(key[0], {}).get(key[1])

    def _find(self, name: str, version: str) -> Model:
        key = (name, version) if version else name
        pipeline = self._loaded(key)
        if pipeline is None:
            try:
                pipeline = self._repository.get(name, version)
            except NotFound:
                raise self._unknown(name, version) from None
        same = (model for model in self._models.values() if model.pipeline is pipeline)
        model = self._models[key] = next(same, None) or Model(pipeline)
        return model

    def _unknown(self, name: str, version: str) -> InvalidRequest:
        shown = name[:NAME_CHARACTERS_IN_ERRORS]
        loaded = self._repository.versions.get(name, ())
        if not version or not loaded:
            return InvalidRequest(f"Request for unknown model: '{shown}' is not found")
        which = f"version {version[:NAME_CHARACTERS_IN_ERRORS]}"
        expected = f": expected one of {', '.join(loaded)}" if len(loaded) > 1 else ""
        return InvalidRequest(
            f"Request for unknown model: '{shown}' {which} is not found{expected}"
        )


def _inputs(config: PipelineConfig, known: Sequence[TensorPort] | None) -> Iterator[Tensor]:
    """Yield the inputs; `known` are those of the engine at the entry point."""
    ports: Sequence[Port] = config.inputs
    if known is not None and not config.declares_inputs:
        for index, tensor_port in enumerate(known):
            yield _of_engine(tensor_port, index)
        return
    keyed = any(port.name == "data" for port in ports)
    for index, port in enumerate(ports):
        engine = None
        if known is not None:
            if keyed and port.name == "data" and len(known) == 1:
                engine = known[0]
            elif not keyed and len(known) == len(ports):
                engine = known[index]
        yield _of_port(port, engine, None if keyed else index)


def _outputs(config: PipelineConfig, known: Sequence[TensorPort] | None) -> Iterator[Tensor]:
    """Yield the outputs; `known` are those of the engine that ends the pipeline."""
    ports = config.outputs
    keyed = any(port.name == "result" for port in ports)
    tensors = [] if keyed else [port for port in ports if _is_tensor(port)]
    if not keyed and not tensors:
        if known is not None:
            for index, tensor_port in enumerate(known):
                yield _of_engine(tensor_port, index)
        else:
            yield Tensor("result", None, None, position=0)
    for port in ports:
        position = tensors.index(port) if port in tensors else None
        engine = None
        if known is not None and position is not None and len(known) == len(tensors):
            engine = known[position]
        tensor = _of_port(port, engine, position)
        labels = _labels(port, config) if tensor.kind == "tensor" else ()
        yield tensor._replace(labels=labels)


def _of_engine(port: TensorPort, position: int) -> Tensor:
    return Tensor(
        port.name,
        datatype_of(port.dtype),
        port.shape,
        text=port.dtype == "string",
        position=position,
        optional=port.optional,
    )


def _of_port(port: Port, engine: TensorPort | None, position: int | None) -> Tensor:
    """Describe a declared input or output; `engine` fills in what the file leaves out."""
    declared = None if port.dtype is None else datatype_of(port.dtype)
    if not _is_tensor(port) and port.shape in {None, (1,)}:
        datatype = declared or DATATYPES[SCALAR_DATATYPES[port.kind]]
        is_text = port.kind == "text"
        return Tensor(
            port.name, datatype, (1,), port.kind, is_text, position, optional=port.optional
        )
    known = _of_engine(engine, 0) if engine is not None else Tensor(port.name, None, None)
    return Tensor(
        port.name,
        declared
        or known.datatype
        or (None if _is_tensor(port) else DATATYPES[SCALAR_DATATYPES[port.kind]]),
        port.shape if port.shape is not None else known.shape,
        "tensor",
        known.text or port.dtype == "string" or port.kind == "text",
        position,
        optional=port.optional or known.optional,
    )


def _is_tensor(port: Port) -> bool:
    """Return whether a port is a tensor: by its kind, or by a dtype or shape if it has no kind."""
    return port.kind == "tensor" or (
        port.kind == "json" and (port.dtype is not None or port.shape is not None)
    )


def _labels(port: Port, config: PipelineConfig) -> tuple[str, ...]:
    """Read an output's labels, relative to the pipeline's file or else to the working directory."""
    if port.labels is None:
        return ()
    beside = config.directory / port.labels
    return tuple(read_labels(beside if beside.exists() else Path(port.labels)))


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
