"""`InferenceRequest`: what a model is asked, and what it asks other models."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from ..item import SEQUENCE_END, SEQUENCE_START
from ..server import ModelCall, Server
from . import calls
from .error import TritonModelException
from .parameters import as_json, checked
from .senders import InferenceResponseSender
from .strings import as_text
from .tensor import Tensor

RELEASE_ALL, RELEASE_RESCHEDULE = 1, 2
"""The values that `set_release_flags` takes."""


class MemoryType(IntEnum):
    """Where a model that is called should put its outputs."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


class PreferredMemory:
    """Where a model wants the outputs of one that it calls. Outputs come in memory of the CPU."""

    __slots__ = ("preferred_device_id", "preferred_memory_type")

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceTrace:
    """Where a request stands in a distributed trace."""

    __slots__ = ("_context", "handle")

    def __init__(self, context: str = "", handle: int | None = None) -> None:
        """`handle`: that of the request, on whose behalf others with its trace are sent."""
        self._context = context
        self.handle = handle

    def get_context(self) -> str | None:
        """Return the headers of W3C Trace Context as a JSON text; None if it is in no trace."""
        return self._context or None


class InferenceRequest:
    """A request: input tensors, and what its client says of it."""

    __slots__ = (
        "_correlation_id",
        "_flags",
        "_handle",
        "_inputs",
        "_parameters",
        "_release_flags",
        "_request_id",
        "_requested_outputs",
        "_sender",
        "_server",
        "_timeout",
        "_trace",
        "model_name",
        "model_version",
        "preferred_memory",
        "sender_taken",
    )

    def __init__(  # noqa: PLR0917  Triton's, by position or by name
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] | None = None,
        requested_output_names: Sequence[str] | None = None,
        model_name: str | None = None,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        """`model_version`: -1 for the newest. `timeout`: microseconds, 0 for none.

        Raises TypeError if an argument is missing, and TritonModelException for a wrong one.
        """
        if inputs is None or requested_output_names is None or model_name is None:
            raise TypeError(
                "InferenceRequest needs inputs, requested_output_names and model_name, as in "
                'InferenceRequest(model_name="m", inputs=[tensor], requested_output_names=["OUT"])'
            )
        request_id = as_text(request_id, "InferenceRequest: request_id")
        model_name = as_text(model_name, "InferenceRequest: model_name")
        if isinstance(requested_output_names, str):
            raise TypeError("InferenceRequest: requested_output_names is a list of texts")
        what = "InferenceRequest: requested_output_names"
        requested_output_names = [as_text(name, what) for name in requested_output_names]
        if type(correlation_id) not in {int, str}:
            raise TritonModelException("Correlation ID must be integer or string")
        if any(tensor is None for tensor in inputs):
            raise TritonModelException(
                f"Input tensor for request with id '{request_id}' and model name '{model_name}' "
                "should not be empty."
            )
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    "InferenceRequest: inputs is a list of pb_utils.Tensor, found a "
                    f"{type(tensor).__name__} in it"
                )
        if "" in requested_output_names:
            raise TritonModelException(
                f"Requested output name for request with id '{request_id}' and model name "
                f"'{model_name}' should not be empty."
            )
        self.model_name = model_name
        self.model_version = model_version
        self.preferred_memory = preferred_memory
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._requested_outputs = set(requested_output_names)
        self._flags = flags
        self._timeout = timeout
        self._trace = InferenceTrace() if trace is None else trace
        self._parameters = checked(parameters)
        self._release_flags = RELEASE_ALL
        self._handle: int | None = None
        self._server: Server | None = None
        self._sender = InferenceResponseSender()
        self.sender_taken = False

    def __repr__(self) -> str:
        return f"<InferenceRequest {self._request_id} {self._inputs}>"

    def inputs(self) -> list[Tensor]:
        """Return the input tensors."""
        return self._inputs

    def request_id(self) -> str:
        """Return the id that the client gave it, or ""."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """Return the id of its sequence; 0 if it is a step of none."""
        return self._correlation_id

    def flags(self) -> int:
        """Return the flags: whether a sequence starts or ends."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Set the flags, before it is sent to another model."""
        self._flags = flags

    def timeout(self) -> int:
        """Return the microseconds after which its client does not want an answer; 0: any time."""
        return self._timeout

    def parameters(self) -> str:
        """Return the request's parameters as JSON."""
        return as_json(self._parameters)

    def trace(self) -> InferenceTrace:
        """Return its place in a distributed trace."""
        return self._trace

    def requested_output_names(self) -> set[str]:
        """Return the outputs that it asks for."""
        return self._requested_outputs

    def set_release_flags(self, flags: int) -> None:
        """Say what is done with the request after `execute`: RELEASE_ALL, or RELEASE_RESCHEDULE."""
        self._release_flags = flags

    @property
    def is_rescheduled(self) -> bool:
        """True if the model asks for another `execute` for it."""
        return self._release_flags == RELEASE_RESCHEDULE

    def get_response_sender(self) -> InferenceResponseSender:
        """Return what sends responses to this request."""
        self.sender_taken = True
        return self._sender

    @property
    def sender(self) -> InferenceResponseSender:
        """The sender that `get_response_sender` returns."""
        return self._sender

    def is_cancelled(self) -> bool:
        """Return whether its client has left."""
        if self._server is None or self._handle is None:
            return False
        return self._server.is_cancelled(self._handle)

    def came(
        self, server: Server | None, handle: int | None, sender: InferenceResponseSender
    ) -> None:
        """Say where it came from: a client of this model, not the model itself."""
        self._server = server
        self._handle = handle
        self._sender = sender

    def exec(self, decoupled: bool = False) -> Any:
        """Send it to another model, and return its response; an iterator of responses if
        `decoupled`.
        """
        return calls.run(self._call(decoupled))

    def async_exec(self, decoupled: bool = False) -> Any:
        """Do the same without blocking the event loop that runs: `await` what it returns."""
        return calls.run_async(self._call(decoupled))

    def _call(self, decoupled: bool) -> ModelCall:
        version, parent = self.model_version, self._trace.handle
        return ModelCall(
            self.model_name,
            str(version) if version > 0 else "",
            {tensor.name(): tensor.item_value() for tensor in self._inputs},
            tuple(sorted(self._requested_outputs)),
            self._request_id,
            self._correlation_id,
            starts=bool(self._flags & SEQUENCE_START),
            ends=bool(self._flags & SEQUENCE_END),
            timeout=self._timeout,
            parameters=self._parameters,
            parents=() if parent is None else (parent,),
            streams=decoupled,
        )
