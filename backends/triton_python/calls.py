"""Calls of other models by a model: `exec`, `async_exec`, and the orders to the repository."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..server import Call, ModelCall, ModelOrder, Response, Server
from . import running
from .datatypes import DataType, datatype_of
from .error import ErrorCode, TritonError, TritonModelException
from .response import InferenceResponse
from .tensor import Tensor


class ResponseIterator:
    """The responses of a model that was called with `decoupled=True`, as they come.

    It may be iterated over again: then it begins with the first response.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._seen: list[InferenceResponse] = []
        self._next = 0
        self._finished = False

    def __iter__(self) -> Iterator[InferenceResponse]:
        if self._finished and self._next >= len(self._seen):
            self._next = 0
        return self

    def __next__(self) -> InferenceResponse:
        """Wait for the next response."""
        if self._next == len(self._seen):
            self._receive()
        if self._next == len(self._seen):
            raise StopIteration
        self._next += 1
        return self._seen[self._next - 1]

    def _receive(self) -> None:
        if self._finished:
            return
        self._call.ask()
        response = self._call.get()
        self._finished = response.final
        if response.outputs is not None or response.error is not None:
            self._seen.append(_as_response(response))

    def cancel(self) -> None:
        """Ask for no more responses. The next one may be an error that says so."""
        if not self._finished:
            self._call.cancel()


def run(wanted: ModelCall) -> InferenceResponse | ResponseIterator:
    """Send a request to another model, and wait for its answer."""
    call = _server().start(wanted)
    return ResponseIterator(call) if wanted.streams else _as_response(call.get())


def run_async(wanted: ModelCall) -> asyncio.Future[Any]:
    """Send a request to another model from an event loop. Await what it returns for the answer."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    call: Call

    def deliver() -> None:
        if not future.done():
            future.set_result(
                ResponseIterator(call) if wanted.streams else _as_response(call.get())
            )

    def on_response() -> None:
        with suppress(RuntimeError):  # the loop is closed: no one waits
            loop.call_soon_threadsafe(deliver)

    def ended(future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            call.cancel()

    future.add_done_callback(ended)
    call = _server().start(wanted, on_response)
    return future


def load_model(model_name: str, config: str = "", files: dict[str, bytes] | None = None) -> None:
    """Load a model, or load it again. `config`: its configuration as JSON; `files`: its files.

    Raises TritonModelException with the reason if it can't be loaded.
    """
    if files is not None and not isinstance(files, dict):
        raise TritonModelException(
            f"failed to load model '{model_name}', files should be a dictionary of file paths and "
            "file contents"
        )
    _order(ModelOrder("load", model_name, config=config, files=files or {}), "load model")


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unload a model. It answers the requests that it has. Raises TritonModelException."""
    order = ModelOrder("unload", model_name, unload_dependents=unload_dependents)
    _order(order, "unload model")


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Return whether a model is ready. Raises TritonModelException for a version that is none."""
    if model_version and not (model_version.isdigit() and int(model_version) > 0):
        raise TritonModelException(
            f"failed to get model version from specified version string '{model_version}', version "
            "should be an integral value > 0"
        )
    outputs = _order(ModelOrder("ready", model_name, model_version), "check model readiness")
    return bool(outputs["ready"])


def _order(order: ModelOrder, what: str) -> dict[str, Any]:
    response = _server().order(order)
    if response.error is not None:
        raise TritonModelException(f"Failed to {what}: {response.error.message}")
    return response.outputs or {}


def _server() -> Server:
    server = running.server()
    if server is None:
        raise TritonModelException(
            "no server is known here: call it from the code of a model.py, in `execute` or in a "
            "thread that began there"
        )
    return server


def _as_response(response: Response) -> InferenceResponse:
    if response.error is not None:
        code, message = response.error
        return InferenceResponse(error=TritonError(message, ErrorCode[code]))
    outputs = response.outputs or {}
    tensors = [
        Tensor.of_item(name, _datatype(name, array, response), array)
        for name, array in outputs.items()
    ]
    return InferenceResponse(tensors, parameters=dict(response.parameters or {}))


def _datatype(name: str, array: Any, response: Response) -> DataType:
    return DataType.BF16 if name in response.bfloat16 else datatype_of(array.dtype)
