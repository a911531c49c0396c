"""`TritonPythonDecoupled`: runs a TritonPythonModel that answers by response senders alone."""

from __future__ import annotations

from collections.abc import Coroutine
from inspect import iscoroutine
from typing import Any

from ..errors import ModelError
from ..expressions.composite import Decoupled
from ..item import Item
from ..server import HANDLE, Response, ResponseError
from .backend import RefusedError, TritonPython
from .instance import ModelInstance
from .request import InferenceRequest
from .response import InferenceResponse
from .senders import InferenceResponseSender


class TritonPythonDecoupled(TritonPython, Decoupled):
    """Runs a decoupled TritonPythonModel: each response that it sends is one part of the answer.

    The model may send them from any thread, also after `execute` has returned. An error that it
    sends ends the answer.
    """

    def forward(self, batch: list[Item]) -> None:
        """Call `execute` with the request of one item. Raises ModelError if that raises."""
        (item,) = batch
        instance = self._instance
        assert instance is not None
        request = self._request(item)
        sender = _Sender(self, request, item.get(HANDLE))
        request.came(self._context.server, item.get(HANDLE), sender)
        try:
            with self._running(batch, responds=True):
                returned = instance.execute([request])
                while not iscoroutine(returned) and self._runs_again(instance, returned, request):
                    returned = instance.execute([request])
            if iscoroutine(returned):
                instance.loop.submit(self._finished(instance, returned, request, sender))
        except BaseException as error:  # SystemExit too: a model's code ends no thread
            raise ModelError(self.failure(instance, error)) from None
        finally:
            instance.running.metrics.flush()

    def _runs_again(
        self, instance: ModelInstance, returned: Any, request: InferenceRequest
    ) -> bool:
        """Return whether the model has asked to run a request again, whose client is still there.

        Raises RefusedError if `execute` has returned anything.
        """
        self._check(instance, returned)
        if not request.is_rescheduled or request.is_cancelled():
            return False
        self._prepare_again(request)
        return True

    async def _finished(
        self,
        instance: ModelInstance,
        executing: Coroutine[Any, Any, Any],
        request: InferenceRequest,
        sender: _Sender,
    ) -> None:
        """Await an `async def execute`, and answer by its exception."""
        try:
            while self._runs_again(instance, await executing, request):
                executing = instance.execute([request])
        except BaseException as error:
            sender.fail(self.failure(instance, error))

    @staticmethod
    def _check(instance: ModelInstance, returned: Any) -> None:
        if returned is not None:
            raise RefusedError(
                f"Python model '{instance.name}' is using the decoupled mode and the execute "
                "function must return None."
            )

    def as_response(
        self, request: InferenceRequest, response: InferenceResponse | None, final: bool
    ) -> Response:
        """Return a response of the model as the server takes it."""
        if response is None:
            return Response(None, final=final)
        error = response.error()
        if error is not None:
            return Response(None, ResponseError(error.code().name, error.message()), final)
        wanted = request.requested_output_names()
        outputs = {
            tensor.name(): self._value(tensor)
            for tensor in response.output_tensors()
            if tensor.name() in wanted
        }
        return Response(outputs, None, final, response.parameter_values)

    def send(self, handle: int | None, response: Response) -> None:
        """Send a response to the client of a request; to none for a sample of a warm-up."""
        server = self._context.server
        if server is not None and handle is not None:
            server.respond(handle, response)


class _Sender(InferenceResponseSender):
    """Sends the responses to one request of a decoupled model."""

    __slots__ = ("_backend", "_handle", "_request")

    def __init__(
        self, backend: TritonPythonDecoupled, request: InferenceRequest, handle: int | None
    ) -> None:
        super().__init__(self._respond, request.is_cancelled, decoupled=True)
        self._backend = backend
        self._request = request
        self._handle = handle

    def _respond(self, response: InferenceResponse | None, final: bool) -> None:
        self._backend.send(self._handle, self._backend.as_response(self._request, response, final))

    def fail(self, text: str) -> None:
        """End the answer by an error."""
        self._backend.send(self._handle, Response(None, ResponseError("INTERNAL", text)))
