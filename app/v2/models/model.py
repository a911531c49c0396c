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
from dataclasses import replace
from typing import Any, Protocol

from penstock.backends.base import TensorPort
from penstock.backends.errors import BackendError, InvalidRequest, NotFound
from penstock.backends.item import Item
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline

from ...http.inputs.declared import Tensor, engines_of, inputs_of, is_tensor, of_engine, of_port
from ..call import NAME_CHARACTERS_IN_ERRORS


class Model:
    """A running pipeline as a model.

    `max_batch_size` is 0 if the model has no batch dimension. With the batch on other axes than the
    first of all inputs it is 0 too, `batch_axes` has the axis of each input with a batch, and
    `max_rows` bounds a request.
    `decodes` says that inputs may be encoded images, which takes milliseconds to read. `streams`
    says that its answers come in parts. infer/layout.py keeps `layouts`, the requests
    that it has seen, and infer/response.py `heads`, the JSON of answers.
    """

    __slots__ = (
        "batch_axes",
        "decodes",
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
        "takes_request_facts",
        "version",
    )

    def __init__(self, pipeline: Pipeline) -> None:
        config = pipeline.config
        inputs = inputs_of(pipeline)
        _, last = engines_of(pipeline)
        self.layouts: dict[bytes, Any] = {}
        self.heads: dict[tuple[Any, ...], tuple[bytes, ...]] = {}
        self.pipeline = pipeline
        self.name = pipeline.name
        self.version = config.version
        self.streams = pipeline.streams
        self.takes_request_facts = config.takes_request_facts
        self.inputs = inputs.tensors
        self.decodes = any(tensor.decoder is not None for tensor in self.inputs)
        self.inputs_by_name = {tensor.name: tensor for tensor in self.inputs}
        self.max_batch_size = inputs.max_batch_size
        self.max_rows = inputs.max_rows
        self.batch_axes = inputs.batch_axes
        self.outputs = tuple(_outputs(config, last.outputs if last is not None else None))
        self.outputs_by_name = {tensor.name: tensor for tensor in self.outputs}
        self.result_length = sum(tensor.position is not None for tensor in self.outputs)

    @property
    def begins_on_gpu(self) -> bool:
        """True if the node that gets the inputs works on GPUs, with threads of this process."""
        entry_point = self.pipeline.plan.default
        node = None if entry_point is None else entry_point.root.node
        devices = node.devices if isinstance(node, Node) else ()
        return bool(devices) and all(device.startswith("cuda") for device in devices)

    def values_of(self, item: Item) -> list[tuple[Tensor, Any]]:
        """Return the outputs that an item has, in order, with their values.

        Raises `BackendError` if the result is not the list of outputs that the pipeline declares.
        """
        result = item.get("result")
        positional = self.pipeline.config.positional
        found: list[tuple[Tensor, Any]] = []
        listed = type(result) is list and len(result) == self.result_length != 1
        for output in self.outputs:
            name = output.name
            if not positional and name in item and name != "data":
                value = item[name]
            elif output.position is None or result is None:
                continue
            elif listed:
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
                    found.append((replace(output, name=f"{name}_{index}"), array))
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


def _outputs(config: PipelineConfig, known: Sequence[TensorPort] | None) -> Iterator[Tensor]:
    """Yield the outputs; `known` are those of the engine that ends the pipeline."""
    ports = config.outputs
    keyed = not config.positional and any(port.name == "result" for port in ports)
    tensors = [] if keyed else [port for port in ports if is_tensor(port)]
    if not keyed and not tensors:
        if known is not None:
            for index, tensor_port in enumerate(known):
                yield of_engine(tensor_port, index)
        else:
            yield Tensor("result", None, None, position=0)
    for port in ports:
        position = tensors.index(port) if port in tensors else None
        engine = None
        if known is not None and position is not None and len(known) == len(tensors):
            engine = known[position]
        yield of_port(port, engine, position)
