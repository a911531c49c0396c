"""Lets the code of a backend call other models of the server, load them, and answer a request in
parts.

A `Server` is one instance's side. It works the same on an executor's thread and in a child process:
only the `Connection` that it speaks through differs (`process/connection.py`, and
`pipelines/model_calls`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

from .errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    MemoryFull,
    ModelError,
    NotFound,
    NotReady,
    Overloaded,
    QueueFull,
)
from .item import Item
from .text import message_of

HANDLE = "handle"
"""The key of an item, of a backend that `takes_server`, that names its request to the server."""

MAX_UNREAD_RESPONSES = 64
MAX_UNREAD_BYTES = 16 << 20
"""So much of one request's responses may wait for its client. One more waits in `respond`.

One response may be larger than that: it waits until all before it have been read.
"""


CODES = {
    "UNKNOWN": ("unknown", 400),
    "INTERNAL": ("model_error", 500),
    "NOT_FOUND": ("not_found", 404),
    "INVALID_ARG": ("invalid_input", 400),
    "UNAVAILABLE": ("unavailable", 503),
    "UNSUPPORTED": ("unsupported", 501),
    "ALREADY_EXISTS": ("already_exists", 400),
    "CANCELLED": ("cancelled", 400),
}
"""For each code of Triton's, that of our error and its status of HTTP."""

_NAMES = {code: name for name, (code, _) in CODES.items()}


class ResponseError(NamedTuple):
    """A failure, with the name of Triton's code for it, one of `CODES`."""

    code: str
    message: str

    def as_exception(self) -> ModelError:
        """Return what fails a request as the error says."""
        failure = ModelError(self.message)
        failure.code, failure.status = CODES[self.code]
        return failure


@dataclass(slots=True)
class ModelCall:
    """A request to a model of the same server.

    `version`: "" for the newest. `inputs`: arrays by name. `outputs`: the names of those that are
    wanted. `correlation_id`: that of a sequence, 0 or "" for none. `timeout`: microseconds, 0 for
    none. `parents`: the handles of the requests on whose behalf it is made: it ends when all of
    these have ended. `streams`: the caller takes any number of responses, one after another.
    """

    model: str
    version: str
    inputs: dict[str, Any]
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    correlation_id: int | str = 0
    starts: bool = False
    ends: bool = False
    timeout: int = 0
    priority: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    parents: tuple[int, ...] = ()
    streams: bool = False


@dataclass(slots=True)
class ModelOrder:
    """An order to the server's repository: `action` is `load`, `unload` or `ready`.

    `config` is the model's configuration as JSON, "" for its own; `files` are those of the model by
    their path (`file:1/model.onnx`). `ready` answers with an output `ready`, True or False.
    """

    action: str
    model: str
    version: str = ""
    config: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    unload_dependents: bool = False


class Response(NamedTuple):
    """One response: arrays by name, or an error.

    None of both: it has nothing to say but, if `final`, that no other follows.
    """

    outputs: dict[str, Any] | None
    error: ResponseError | None = None
    final: bool = True
    parameters: Mapping[str, Any] | None = None
    bfloat16: frozenset[str] = frozenset()
    """The outputs that are BF16. Their arrays are float32, as NumPy has no such type."""

    @property
    def size(self) -> int:
        """The bytes of its outputs."""
        return sum(map(size_of, (self.outputs or {}).values()))


def failed(error: BaseException) -> Response:
    """Return the last response of a call that failed."""
    words = message_of(error)
    if isinstance(error, DeadlineExceeded):
        words = f"Request timeout expired: {words}"  # as Triton says it
    elif isinstance(error, (QueueFull, Overloaded)):
        words = f"Exceeds maximum queue size: {words}"
    return Response(None, ResponseError(code_of(error), words))


def code_of(error: BaseException) -> str:
    """Return the name of Triton's code for an error."""
    if (name := _NAMES.get(getattr(error, "code", ""))) is not None:  # a model may have said so
        return name
    if isinstance(error, NotFound):
        return "NOT_FOUND"
    if isinstance(error, (QueueFull, Overloaded, NotReady, MemoryFull, DeadlineExceeded)):
        return "UNAVAILABLE"
    if isinstance(error, (InvalidInput, InvalidRequest)):
        return "INVALID_ARG"
    return "INTERNAL"


def size_of(value: Any) -> int:
    """Count the bytes of an array, a text or bytes, and of those in lists, dicts and object arrays.

    A text counts as a byte for each character.
    """
    if isinstance(value, (bytes, str)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(size_of, value)) + sum(map(size_of, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size_of, value))
    size: int = getattr(value, "nbytes", 0)
    if getattr(value, "dtype", None) == "O":
        size += sum(len(element) for element in value.flat if isinstance(element, (bytes, str)))
    return size


class Listener(Protocol):
    """The side of the backend, as the server's side knows it. Called on any thread; never waits."""

    def answered(self, number: int, response: Response) -> None:
        """Take a response to the call or order of this number."""

    def taken(self, handle: int, size: int) -> None:
        """Learn that the client of a request has taken a response of `size` bytes."""

    def ended(self, handle: int) -> None:
        """Learn that a request has ended: it needs no more responses."""


class Connection(Protocol):
    """The side of the server, as a backend knows it. Called on any thread."""

    def start(self, number: int, call: ModelCall | ModelOrder) -> None:
        """Start a call or order. Its answers come to `Listener.answered`, the last one is final."""

    def more(self, number: int) -> None:
        """Ask for the next response of a call that streams."""

    def cancel(self, number: int) -> None:
        """End a call. Its last response may still come."""

    def respond(self, handle: int, response: Response) -> None:
        """Send a response to the client of a request. Dropped if the request has ended."""

    def is_cancelled(self, handle: int) -> bool:
        """Return whether a request has ended before its answer: its client left, or it is late."""
        ...

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of a module in the process of the server. Return or raise what it does.

        It must be quick: nothing else of this backend is heard meanwhile.
        """
        ...

    def close(self) -> None:
        """End all calls: the backend has gone."""


Connect = Callable[[Listener], Connection]


class Call:
    """A call as its caller holds it: the responses that have come."""

    __slots__ = ("_asked", "_condition", "_on_response", "_responses", "_server", "number")

    def __init__(
        self, server: Server, number: int, on_response: Callable[[], object] | None
    ) -> None:
        self.number = number
        self._server = server
        self._on_response = on_response
        self._condition = threading.Condition()
        self._responses: deque[Response] = deque()
        self._asked = True  # a response is under way, or the last one has come

    def get(self) -> Response:
        """Wait for the next response and return it. Call it once after the final one at most."""
        with self._condition:
            self._condition.wait_for(lambda: self._responses)
            return self._taken()

    def get_nowait(self) -> Response | None:
        """Return the next response, or None if it has not come."""
        with self._condition:
            return self._taken() if self._responses else None

    def ask(self) -> None:
        """Ask for the next response of a call that streams, if none is under way."""
        with self._condition:
            if self._asked:
                return
            self._asked = True
        self._server.connection.more(self.number)

    def cancel(self) -> None:
        """End the call."""
        self._server.cancel(self.number)

    def add(self, response: Response) -> None:
        with self._condition:
            self._responses.append(response)
            self._condition.notify_all()
        if self._on_response is not None:
            self._on_response()

    def _taken(self) -> Response:
        response = self._responses.popleft()
        self._asked = response.final
        return response


class _Unread:
    """The responses that the client of a request has not read yet: their number and bytes."""

    __slots__ = ("ended", "responses", "size")

    def __init__(self) -> None:
        self.responses = self.size = 0
        self.ended = False


class Server:
    """The server, as the objects of one backend instance use it. Safe from any thread."""

    def __init__(self, connect: Connect) -> None:
        self._lock = threading.Condition()
        self._numbers = count(1)
        self._calls: dict[int, Call] = {}
        self._unread: dict[int, _Unread] = {}
        self._running: tuple[int, ...] = ()
        self._running_thread: int | None = None  # None: calls from any thread are the batch's
        self._closed = False
        self.connection = connect(self)

    # for a backend

    @contextmanager
    def running(self, items: Sequence[Item], responds: bool = False) -> Iterator[None]:
        """Say that the backend works on these items.

        Calls made meanwhile are made on behalf of all of them. `responds`: they are answered by
        `respond`, until a final response or their end. Then only calls from this thread are made on
        their behalf: others may be for requests of before.
        """
        handles = tuple(item[HANDLE] for item in items if HANDLE in item)  # a warm-up has none
        with self._lock:
            self._running = handles
            self._running_thread = threading.get_ident() if responds else None
            if responds:
                for handle in handles:
                    self._unread[handle] = _Unread()
        try:
            yield
        except BaseException:
            for handle in handles:
                self.ended(handle)
            raise
        finally:
            self._running = ()

    def close(self) -> None:
        """End all calls and refuse new ones: the backend is about to close."""
        with self._lock:
            self._closed = True
            calls, self._calls = self._calls, {}
            for unread in self._unread.values():
                unread.ended = True
            self._unread.clear()
            self._lock.notify_all()
        self.connection.close()
        for call in calls.values():
            call.add(Response(None, CLOSED))

    # for the code of a model

    def is_cancelled(self, handle: int) -> bool:
        """Return whether a request has ended before its answer."""
        return self.connection.is_cancelled(handle)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a quick function of a module in the process of the server, and return its result."""
        return self.connection.run(function, *arguments)

    def start(
        self, call: ModelCall | ModelOrder, on_response: Callable[[], object] | None = None
    ) -> Call:
        """Start a call. A call that names no parents is made on behalf of the running batch.

        `on_response` is called, on another thread, when a response has come.
        """
        if (
            isinstance(call, ModelCall)
            and not call.parents
            and self._running_thread in {None, threading.get_ident()}
        ):
            call.parents = self._running
        made = Call(self, next(self._numbers), on_response)
        with self._lock:
            closed = self._closed
            if not closed:
                self._calls[made.number] = made
        if closed:
            made.add(Response(None, CLOSED))
            return made
        try:
            self.connection.start(made.number, call)
        except BaseException:  # what it holds can't be sent to another process
            self._calls.pop(made.number, None)
            raise
        return made

    def order(self, order: ModelOrder) -> Response:
        """Give the repository an order, and wait until it is carried out."""
        return self.start(order).get()

    def respond(self, handle: int, response: Response) -> None:
        """Send a response to the client of a request that a running batch had, `responds`.

        Waits while the client has too much to read. Does nothing if the request has ended.
        """
        size = response.size
        with self._lock:
            unread = self._unread.get(handle)
            if unread is None:
                return
            if response.outputs is not None:
                self._lock.wait_for(
                    lambda: (
                        unread.ended
                        or not unread.responses
                        or (
                            unread.responses < MAX_UNREAD_RESPONSES
                            and unread.size + size <= MAX_UNREAD_BYTES
                        )
                    )
                )
            if unread.ended:
                return
            unread.responses += 1
            unread.size += size
            if response.final:
                del self._unread[handle]
                unread.ended = True
                self._lock.notify_all()
        self.connection.respond(handle, response)

    # `Listener`

    def answered(self, number: int, response: Response) -> None:
        call = self._calls.get(number)
        if call is not None:
            if response.final:
                self._calls.pop(number, None)
            call.add(response)

    def taken(self, handle: int, size: int) -> None:
        with self._lock:
            if (unread := self._unread.get(handle)) is not None:
                unread.responses -= 1
                unread.size -= size
                self._lock.notify_all()

    def ended(self, handle: int) -> None:
        with self._lock:
            if (unread := self._unread.pop(handle, None)) is not None:
                unread.ended = True
                self._lock.notify_all()

    def cancel(self, number: int) -> None:
        """End the call of this number, if it has not ended."""
        if self._calls.get(number) is not None:
            self.connection.cancel(number)


CLOSED = ResponseError("UNAVAILABLE", "the model is being unloaded")
