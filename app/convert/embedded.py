"""A pipeline inside Triton's Python backend: the class that a converted `model.py` imports.

Its tensors are those that the pipeline has below /v2, and become items in the same way. The
requests of a batch run at the same time, so Penstock's own nodes batch them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from penstock.backends.errors import InvalidInput, InvalidRequest, PenstockError
from penstock.backends.item import SEQUENCE_END, SEQUENCE_START, Item
from penstock.backends.lazy_numpy import np
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.pipeline import Pipeline

from ..http.inputs.declared import set_values
from ..http.json_text import JsonLimits
from ..settings import Settings
from ..v2.infer.request import InferRequest, value_of
from ..v2.infer.response import tensor_of
from ..v2.models.model import Model
from ..v2.models.sequence_batching import stateful_nodes_of

FILE = "penstock.toml"
"""The pipeline's file, beside `model.py`. It is not called `pipeline.toml`, because Penstock would
serve that in place of the model.
"""

Answer = TypeVar("Answer")


class TritonPythonModel:
    """Runs the pipeline of the file that lies beside the `model.py`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the pipeline. Raises what that raises: the model does not load then."""
        self.utils: Any = import_module("triton_python_backend_utils")  # Triton's own
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        settings = Settings()
        self.limits = JsonLimits(settings.max_json_depth, settings.max_json_values)
        file = Path(args["model_repository"], args["model_version"], FILE)
        self.pipeline = self._run(self._load(file))
        self.model = Model(self.pipeline)

    async def _load(self, file: Path) -> Pipeline:
        pipeline = Pipeline.load(file)
        await pipeline.start()
        return pipeline

    def execute(self, requests: list[Any]) -> Any:
        """Answer requests at the same time. A pipeline that streams answers by senders."""
        if self.model.streams:
            self._run(self._together([self._stream(request) for request in requests]))
            return None
        return self._run(self._together([self._answer(request) for request in requests]))

    def finalize(self) -> None:
        self._run(self.pipeline.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _together(self, work: list[Coroutine[Any, Any, Answer]]) -> list[Answer]:
        return await asyncio.gather(*work)

    async def _answer(self, request: Any) -> Any:
        try:
            item = self._item(request)
            return self._response(await self.pipeline(item, **self._sequence(request)), item)
        except Exception as error:
            return self._failure(error)

    async def _stream(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            item = self._item(request)
            async for part in self.pipeline.stream(item, **self._sequence(request)):
                sender.send(self._response(part, item))
        except Exception as error:
            sender.send(self._failure(error))
        sender.send(flags=self.utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _item(self, request: Any) -> Item:
        """Return the item that a request's tensors make up. Raises `InvalidRequest`."""
        read = InferRequest(Reservation(budget), self.limits)
        values: dict[str, Any] = {}
        item: Item = {}
        for tensor in request.inputs():
            expected = self.model.inputs_by_name[tensor.name()]
            array = np.array(tensor.as_numpy())  # a copy: Triton's memory ends with the request
            if self.model.max_batch_size and len(array) > 1:
                item["request_size"] = len(array)
            values[expected.name] = value_of(read, expected, array)
        set_values(item, values, self.model.inputs)
        return item

    def _sequence(self, request: Any) -> dict[str, Any]:
        """Return what the request says of its sequence, for a pipeline that keeps their states."""
        sequence = request.correlation_id()
        if not stateful_nodes_of(self.pipeline.config) or not sequence:
            return {}
        flags = request.flags()
        return {
            "sequence": sequence,
            "sequence_start": bool(flags & SEQUENCE_START),
            "sequence_end": bool(flags & SEQUENCE_END),
        }

    def _response(self, answer: Item, item: Item) -> Any:
        if "error" in answer:
            raise answer["error"]
        rows = item.get("request_size", 1)
        tensors = []
        for output, value in self.model.values_of(answer):
            datatype, array = tensor_of(output, value, rows, self.model)
            if not datatype.size:
                flat = [_as_bytes(each) for each in array.reshape(-1)]
                array = np.array([*flat, None], object)[:-1].reshape(array.shape)
            tensors.append(self.utils.Tensor(output.name, np.ascontiguousarray(array)))
        return self.utils.InferenceResponse(tensors)

    def _failure(self, error: Exception) -> Any:
        codes = self.utils.TritonError
        is_clients = isinstance(error, InvalidInput | InvalidRequest)
        code = codes.INVALID_ARG if is_clients else codes.INTERNAL
        text = (
            str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        )
        return self.utils.InferenceResponse([], error=codes(text, code))


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
