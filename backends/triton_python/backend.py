"""`TritonPython`: runs the `execute` of a TritonPythonModel."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutine
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field

from ..base import UNBOUNDED, Backend, Context, Params, Signature, TensorPort
from ..errors import InvalidInput, ModelError
from ..item import NO_FACTS, NOT_PARAMETERS, SEQUENCE_END, SEQUENCE_START, Item, RequestFacts
from ..params import Reshape
from ..sequences.definition import why_no_id
from ..server import HANDLE
from ..warm_up_samples import Sample, run_samples
from . import model_file
from .config_defaults import with_defaults
from .datatypes import TYPE_OF, DataType, datatype_named
from .error import answer_of
from .instance import ModelInstance, describe
from .request import InferenceRequest, InferenceTrace
from .response import InferenceResponse
from .senders import OneResponseSender
from .tensor import Tensor

logger = logging.getLogger("penstock.model")

_NOT_PARAMETERS = NOT_PARAMETERS | {"request_id", "traceparent", "tracestate", "sequence", HANDLE}
"""Keys of an item for this backend that are not parameters of its request."""


class TritonPythonParams(Params):
    """The parameters of TritonPython."""

    model: str = Field(description="The model's file, as in 1/model.py.")
    triton_config: Annotated[dict[str, Any], AfterValidator(with_defaults)] = Field(
        default_factory=dict,
        alias="model_config",
        description="The model's config as Triton's JSON has it, a table. The model sees it in "
        "args['model_config']; `input` and `output` say its tensors. Fields may be left out that "
        "have the default of protobuf.",
    )
    warm_up: tuple[Sample, ...] = Field(
        (), description="Samples that each instance runs before it is ready."
    )


class ModelPorts:
    """The tensors of a model, from its config."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.batched = int(config.get("max_batch_size", 0)) > 0
        forced = config.get("parameters", {}).get("FORCE_CPU_ONLY_INPUT_TENSORS", {})
        self._takes_gpu_tensors = forced.get("string_value") == "no"
        self.inputs = [_Port(tensor, given=True) for tensor in config.get("input", ())]
        self.controls = [
            _Control(control, batched=self.batched)
            for control in config.get("sequence_batching", {}).get("control_input", ())
        ]
        self.iterative = bool(config.get("sequence_batching", {}).get("iterative_sequence"))
        """True if a request is a sequence of its own, whose steps the model asks for."""
        self.outputs = [_Port(tensor, given=False) for tensor in config.get("output", ())]
        self.output_names = [port.name for port in self.outputs]

    def signature(self) -> Signature:
        """Return the arrays that an item has, with their batch axis."""
        return Signature(
            tuple(port.as_tensor_port(self.batched) for port in self.inputs),
            tuple(port.as_tensor_port(self.batched) for port in self.outputs),
            self.batched,
        )

    def tensors(self, data: Any, *, copy: bool) -> list[Tensor]:
        """Return the input tensors that an item has.

        `copy`: the model may change them, and others see what is in the item. Raises InvalidInput
        if they are not the model's.
        """
        return [
            self._tensor(port, value, copy=copy)
            for port, value in zip(self.inputs, self._values(data), strict=True)
            if value is not None
        ]

    def _values(self, data: Any) -> list[Any]:
        names = [port.name for port in self.inputs]
        if isinstance(data, dict):
            if unknown := [name for name in data if name not in names]:
                raise InvalidInput(
                    f"data has {unknown[0]!r}: the model's inputs are {', '.join(names)}"
                )
            values = [data.get(name) for name in names]
        elif len(names) == 1:
            values = [data]
        elif isinstance(data, list | tuple) and len(data) == len(names):
            values = list(data)
        else:
            found = f"{len(data)} values" if isinstance(data, list | tuple) else type(data).__name__
            raise InvalidInput(
                f"expected {len(names)} arrays ({', '.join(names)}) in data, found {found}"
            )
        for port, value in zip(self.inputs, values, strict=True):
            if value is None and not port.optional:
                raise InvalidInput(f"input '{port.name}' is missing")
        return values

    def outside(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return an output with the shape that clients get: the config may give it another one."""
        port = next((port for port in self.outputs if port.name == name), None)
        if port is None or port.reshape is None:
            return value
        lead = value.shape[: self.batched]
        inner = port.reshape.after(value.shape[self.batched :])
        return value if inner is None else value.reshape(*lead, *inner)

    def _inside(self, port: _Port, value: Any) -> Any:
        """Return an input with the shape that the model gets."""
        if port.reshape is None:
            return value
        if not hasattr(value, "reshape"):  # a list
            value = np.asarray(value, TYPE_OF.get(port.datatype, np.float32))
        shape = tuple(value.shape)
        inner = port.reshape.after(shape[self.batched :])
        if inner is None:
            raise ValueError(f"found shape {shape}, expected {port.reshape.given}")
        return value.reshape(*shape[: self.batched], *inner)

    def _tensor(self, port: _Port, value: Any, *, copy: bool) -> Tensor:
        try:
            value = self._inside(port, value)
            if getattr(value, "is_cuda", False) and not self._takes_gpu_tensors:
                value = value.detach().cpu()
            elif copy and isinstance(value, np.ndarray):
                value = value.copy()
            elif copy and hasattr(value, "clone"):  # a tensor of torch
                value = value.clone()
            return Tensor.of_item(port.name, port.datatype, value)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"input '{port.name}' can't be read: {error}") from error


class _Port:
    """A tensor of the config. `shape`: that of clients, without the batch. `reshape`: to the
    model's, or from it.
    """

    __slots__ = ("datatype", "name", "optional", "reshape", "shape")

    def __init__(self, tensor: dict[str, Any], *, given: bool) -> None:
        """`given`: it is an input."""
        self.name = str(tensor.get("name", ""))
        self.datatype = datatype_named(str(tensor.get("data_type", "")))
        self.shape = tuple(int(size) for size in tensor.get("dims", ()))
        self.optional = bool(tensor.get("optional", False))
        self.reshape: Reshape | None = None
        if tensor.get("reshape") is not None:
            inner = tuple(int(size) for size in tensor["reshape"].get("shape", ()))
            before, after = (self.shape, inner) if given else (inner, self.shape)
            self.reshape = Reshape.model_validate({"from": before, "to": after})

    def as_tensor_port(self, batched: bool) -> TensorPort:
        if self.datatype is DataType.BYTES:
            dtype = "object"  # bytes: an encoded image is no text
        elif self.datatype is DataType.BF16:
            dtype = "bfloat16"
        else:
            dtype = np.dtype(TYPE_OF[self.datatype]).name
        return TensorPort(self.name, dtype, (*((-1,) * batched), *self.shape), self.optional)


class _Control:
    """An input that clients do not send: it says something about the step of a sequence."""

    def __init__(self, tensor: dict[str, Any], *, batched: bool) -> None:
        control = tensor["control"][0]
        self._name = str(tensor["name"])
        self._kind = control.get("kind", "").removeprefix("CONTROL_SEQUENCE_")
        self._shape = (1, 1) if batched else (1,)
        self._values: list[Any] = [False, True]
        self._datatype = datatype_named(str(control.get("data_type", "TYPE_UINT64")))
        for key, datatype in _CONTROL_DATATYPES.items():
            if values := control.get(key):
                self._values, self._datatype = list(values), datatype

    def tensor(self, identity: int | str, flags: int) -> Tensor:
        """Return the tensor for a step. Raises InvalidInput for an id that it can't hold."""
        value: Any = identity
        if self._kind != "CORRID":
            is_set = {"START": flags & SEQUENCE_START, "END": flags & SEQUENCE_END}
            value = self._values[bool(is_set.get(self._kind, True))]
        elif self._datatype is DataType.BYTES:
            value = str(identity).encode()
        elif reason := why_no_id(np.dtype(TYPE_OF[self._datatype]).name, identity):
            raise InvalidInput(reason)
        array = np.full(self._shape, value, TYPE_OF[self._datatype])
        return Tensor.of_item(self._name, self._datatype, array)


_CONTROL_DATATYPES = {
    "int32_false_true": DataType.INT32,
    "fp32_false_true": DataType.FP32,
    "bool_false_true": DataType.BOOL,
}


class TritonPython(Backend):
    """Runs a TritonPythonModel: a model of Triton's Python backend.

    `data`: the input tensors in the order of the config, or the one; None for an optional one that
    is left out. `result`: the output tensors likewise.
    """

    parameters: ClassVar[type[Params] | None] = TritonPythonParams
    blocks: ClassVar[str] = "it runs a model's code"
    takes_traceparent: ClassVar[bool] = True
    takes_request_facts: ClassVar[bool] = True
    takes_server: ClassVar[bool] = True

    def init(self, params: TritonPythonParams, context: Context) -> None:
        """Raises BackendError with the model's words if it can't be imported or initialized."""
        self._ports = ModelPorts(params.triton_config)
        if params.triton_config:
            self.signature = self._ports.signature()
        self._samples, self._context = params.warm_up, context
        self._copies = not context.alone  # on threads, the arrays of an item are not the model's
        self._sequence_ids = itertools.count(1)
        self._instance: ModelInstance | None = None
        file = context.resolve_input(params.model)
        if context.opens_only:
            model_file.check(file)
        else:
            self._instance = ModelInstance(file, params.triton_config, context)

    def warm_up(self) -> None:
        """Run the samples. Raises ConfigError that names the one that fails."""
        most = (self._context.max or UNBOUNDED) if self._ports.batched else 1
        run_samples(self._samples, self.forward, self._context, most, batched=self._ports.batched)

    def forward(self, batch: list[Item]) -> None:
        """Run `execute` once for all items. Its exception fails all of them, as in Triton."""
        asked: list[tuple[Item, InferenceRequest]] = []
        for item in batch:
            try:
                request = self._request(item)
            except InvalidInput as error:
                item["error"] = error
                continue
            sender = OneResponseSender(request.is_cancelled)
            request.came(self._context.server, item.get(HANDLE), sender)
            asked.append((item, request))
        if asked:
            with self._running(batch):
                self._run(asked)

    def _running(self, batch: list[Item], responds: bool = False) -> AbstractContextManager[None]:
        """Say that calls of other models are made on behalf of these items."""
        server = self._context.server
        return nullcontext() if server is None else server.running(batch, responds)

    def _run(self, asked: list[tuple[Item, InferenceRequest]]) -> None:
        instance = self._instance
        assert instance is not None
        while asked:
            requests = [request for _, request in asked]
            try:
                responses = self._responses(instance, requests)
            except BaseException as error:  # SystemExit too: a model's code ends no thread
                text = self.failure(instance, error)
                for item, request in asked:
                    sender = request.sender
                    if isinstance(sender, OneResponseSender) and sender.response is not None:
                        self._answer(item, request, sender.response)  # the model has sent it
                    else:
                        item["error"] = ModelError(text)
                return
            again: list[tuple[Item, InferenceRequest]] = []
            for (item, request), response in zip(asked, responses, strict=True):
                if response is None:
                    self._prepare_again(request)
                    again.append((item, request))
                else:
                    self._answer(item, request, response)
            asked = again
        instance.running.metrics.flush()

    @staticmethod
    def failure(instance: ModelInstance, error: BaseException) -> str:
        """Log an exception of `execute`, and return what clients learn of it."""
        refused = isinstance(error, RefusedError)
        text = (
            f"Failed to process the request(s) for model '{instance.name}', message: "
            f"{error if refused else describe(error)}"
        )
        logger.error("%s", text, exc_info=None if refused else error)
        return text

    def _responses(
        self, instance: ModelInstance, requests: list[InferenceRequest]
    ) -> list[InferenceResponse | None]:
        """Return the responses; None for a request that is to be run again.

        Raises TypeError or ValueError for what Triton refuses of an `execute`.
        """
        returned = instance.execute(requests)
        if iscoroutine(returned):
            returned = instance.loop.submit(returned).result()
        if returned is None and all(request.sender_taken for request in requests):
            returned = [None] * len(requests)
        if not isinstance(returned, list):
            raise RefusedError(
                f"Expected a list in the execute return, found type '{type(returned)}'."
            )
        if len(returned) != len(requests):
            raise RefusedError(
                "Number of InferenceResponse objects do not match the number of InferenceRequest "
                f"objects. InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) "
                f"size is:{len(returned)}"
            )
        return [
            self._returned(request, response)
            for request, response in zip(requests, returned, strict=True)
        ]

    @staticmethod
    def _returned(request: InferenceRequest, returned: Any) -> InferenceResponse | None:
        """Return the response to a request, of which `execute` has returned this; None if it is to
        be run again.
        """
        if request.is_rescheduled:
            if returned is not None:
                raise RefusedError(
                    "Expected a None object in the execute function return list for "
                    f"rescheduled request, found type '{type(returned)}'."
                )
            return None
        sender = request.sender
        if returned is None and request.sender_taken and isinstance(sender, OneResponseSender):
            return sender.get()
        if not isinstance(returned, InferenceResponse):
            raise RefusedError(
                "Expected an 'InferenceResponse' object in the execute function return list, "
                f"found type '{type(returned)}'."
            )
        if isinstance(sender, OneResponseSender) and sender.response is not None:
            logger.warning(
                "a model has sent the response to a request, and returned another one, which is "
                "dropped: expected None"
            )
            return sender.response
        return returned

    def _prepare_again(self, request: InferenceRequest) -> None:
        """Prepare a request that is to be run again: it is no start of a sequence any more."""
        request.set_release_flags(0)
        request.set_flags(0)
        if self._ports.iterative and self._ports.controls:
            identity = request.correlation_id()
            request.inputs()[-len(self._ports.controls) :] = [
                control.tensor(identity, 0) for control in self._ports.controls
            ]

    def _request(self, item: Item) -> InferenceRequest:
        facts: RequestFacts = item.get("request_facts") or NO_FACTS
        sequence = item.get("sequence")
        identity, flags = facts.correlation_id, facts.flags
        if sequence is not None:
            identity = sequence.id
            if not flags:
                flags = sequence.start * SEQUENCE_START | sequence.end * SEQUENCE_END
        elif self._ports.iterative and not identity:
            identity, flags = next(self._sequence_ids), SEQUENCE_START
        tensors = self._ports.tensors(item.get("data"), copy=self._copies)
        if sequence is not None or self._ports.iterative:
            tensors += [control.tensor(identity, flags) for control in self._ports.controls]
        return InferenceRequest(
            facts.request_id or item.get("request_id", ""),
            identity,
            tensors,
            facts.requested_outputs or self._ports.output_names,
            "",
            flags=flags,
            timeout=facts.timeout_us,
            trace=InferenceTrace(_trace_context(item), item.get(HANDLE)),
            parameters=_parameters(item.items()),
        )

    def _answer(self, item: Item, request: InferenceRequest, response: InferenceResponse) -> None:
        error = response.error()
        if error is not None:
            item["error"] = answer_of(error)
            return
        wanted = request.requested_output_names()
        given = {tensor.name(): tensor for tensor in response.output_tensors()}
        results = [
            self._value(given[name]) if name in given and name in wanted else None
            for name in self._ports.output_names
        ]
        item["result"] = results[0] if len(results) == 1 else results
        if response.parameter_values:
            item["response_parameters"] = response.parameter_values

    def _value(self, tensor: Tensor) -> np.ndarray:
        """Return an output. On threads it is copied: the model may keep and change it."""
        value = self._ports.outside(tensor.name(), tensor.item_value())
        return value.copy() if self._copies else value

    def close(self) -> None:
        if getattr(self, "_instance", None) is not None:
            assert self._instance is not None
            self._instance.close()


class RefusedError(Exception):
    """Raised for what an `execute` returned."""


def _trace_context(item: Item) -> str:
    if not item.get("traceparent"):
        return ""
    headers = {key: item[key] for key in ("traceparent", "tracestate") if item.get(key)}
    return json.dumps(headers)


def _parameters(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {
        key: value
        for key, value in items
        if key not in _NOT_PARAMETERS and isinstance(value, bool | int | float | str)
    }
