"""Response senders: how a model answers a request by hand, with one response or with many."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .error import TritonModelException
from .response import InferenceResponse

FINAL = 1
"""The flag of the last response."""

Send = Callable[[InferenceResponse | None, bool], None]
"""Takes a response, or None for a flag alone, and whether it is the last one."""


class InferenceResponseSender:
    """Sends the responses to one request. It may be used on any thread, also after `execute`."""

    __slots__ = ("_closed", "_count", "_decoupled", "_is_cancelled", "_lock", "_send")

    def __init__(
        self,
        send: Send | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        *,
        decoupled: bool = False,
    ) -> None:
        """`send`: where the responses go; None: nowhere, the request is one to another model."""
        self._send = send
        self._is_cancelled = is_cancelled
        self._decoupled = decoupled
        self._lock = threading.Lock()
        self._closed = False
        self._count = 0

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response. `flags`: TRITONSERVER_RESPONSE_COMPLETE_FINAL with or after the last.

        Of a decoupled model it waits while the client has too much to read. Raises
        TritonModelException for what Triton refuses.
        """
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(
                f"send: response is an InferenceResponse, found {type(response).__name__}"
            )
        if flags not in {0, FINAL}:
            raise _refused("Unsupported flag provided.")
        if not flags and response is None:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        send = self._send
        if send is None:
            raise _refused("Response sender has no reference to the decoupled state of the model.")
        with self._lock:
            if not self._decoupled and response is not None and self._count:
                raise _refused("Non-decoupled model cannot send more than one response.")
            if not self._decoupled and response is None and not self._count:
                raise _refused(
                    "Non-decoupled model cannot send complete final before sending a response."
                )
            if self._closed:
                raise _refused("Response sender has been closed.")
            self._closed = flags == FINAL
            self._count += 1
        send(response, flags == FINAL)

    def is_cancelled(self) -> bool:
        """Return whether the client of the request has left."""
        return self._is_cancelled()


def _refused(why: str) -> TritonModelException:
    return TritonModelException(f"Unable to send response. {why}")


class OneResponseSender(InferenceResponseSender):
    """The sender of a model that is not decoupled. It keeps the one response until `get`."""

    __slots__ = ("_incomplete", "response")

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        super().__init__(self._keep, is_cancelled)
        self.response: InferenceResponse | None = None
        self._incomplete = threading.Lock()  # until the model has sent it; cheaper than an event
        self._incomplete.acquire()

    def get(self) -> InferenceResponse:
        """Wait until the model has sent the response, and return it."""
        with self._incomplete:
            pass
        assert self.response is not None  # `send` sees to it
        return self.response

    def _keep(self, response: InferenceResponse | None, final: bool) -> None:
        if response is not None:
            self.response = response
        if final:
            self._incomplete.release()
