"""Requests that the connection itself submits and answers, past ASGI.

No task, no scope, no coroutine: the run takes the call as its future, so the outcome comes as a
callback, and the answer leaves in it. What a predict or infer request is, and how it is answered,
is in `PredictCall` and `InferCall`, for this way and for ASGI. `Connection` decides which requests
come here: small ones without anything unusual.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.backends.item import Item
from penstock.backends.memory import Reservation
from penstock.pipelines.runs.run import Submission

from ..history.record import CLIENT_LEFT_STATUS, Door, Failure
from ..http.access import Access
from ..http.auth import check_key, client_of
from ..http.errors import Problem, Unauthorized
from ..http.predict_call import client_left
from ..v2.call import BodyParts
from ..v2.infer.response import Headers
from .asgi import JOIN_BELOW_BYTES, STATUS_LINES, Wire

logger = logging.getLogger("penstock.http")


class Direct:
    """One request. The connection sees it as it sees an `AsgiRequest`, its run as a future.

    `wire` is None once the answer is written or the client has left: a late outcome must not answer
    the connection's next request. The call is the future of its run, and a predict request is that
    run itself. So it lets go of both when it is answered: else every request would be a cycle.
    """

    if not TYPE_CHECKING:  # mypy takes these for all slots, but the subclasses have more
        __slots__ = ()

    body = b""
    """What the connection holds for the request: nothing, the body is counted in `memory`."""
    http_1_0 = False
    started = False
    """An answer leaves in one piece."""
    failed = None
    streamed = False
    door: Door

    # Fields of the subclasses: of several bases only one may have slots.
    _access: Access | None
    _cancelled: bool
    _default_head: bytes
    _done: bool
    _pieces: list[bytes] | BodyParts | None
    _run: Submission | None
    _work: asyncio.Task[None] | None  # waits for a helper thread
    client: Any  # that of the subclass
    head: Any  # that of the subclass
    keep_alive: bool
    memory: Reservation
    request_id: str
    rules: Any  # those of the subclass
    wire: Wire | None

    def attach(
        self, wire: Wire, default_head: bytes, keep_alive: bool, access: Access | None
    ) -> None:
        self.wire = wire
        self.keep_alive = keep_alive
        self._default_head = default_head
        self._access = access
        self._run = None
        self._pieces = None
        self._work = None
        self._done = self._cancelled = False

    @abstractmethod
    def _begin(self) -> None:
        """Check what the head asks for, and reserve the memory of the body."""

    @abstractmethod
    def _wait(self) -> list[bytes] | BodyParts:
        """Return what the pieces of the body are appended to: it comes in pieces."""

    @abstractmethod
    def _submit(self, body: bytes) -> Submission | None:
        """Submit the request, with itself as the future. None: a task does it."""

    @abstractmethod
    def _submit_pieces(self, pieces: Any) -> Submission | None:
        """Submit the request, all pieces of whose body have come."""

    @abstractmethod
    def _finish(self, item: Item, run: Submission) -> None:
        """Answer the request by its final item, by `_send_lines`. May raise."""

    @abstractmethod
    def failure(self, error: BaseException) -> Problem:
        """Make the answer to a request that ended with `error`."""

    @abstractmethod
    def failure_of(self, error: BaseException) -> Failure:
        """Return what the history says of a request that ended with `error`."""

    @abstractmethod
    def remember(
        self, door: Door, status: int, failure: Failure | None, runs: Sequence[Submission]
    ) -> None:
        """Put the request, which ends now, into the history and into its trace."""

    @abstractmethod
    def pipeline_name(self) -> str | None:
        """Return the name of the pipeline that was asked; None if none was found."""

    def _release(self, runs_on: bool = False) -> None:
        """Let go of what the request holds besides memory. `runs_on`: its run has not ended,
        because equal requests wait for it too.
        """

    # From the connection.

    @property
    def body_timeout(self) -> float:
        timeout: float = self.rules.settings.body_timeout
        return timeout

    def start(self, body: bytes | None = None) -> None:
        """Begin the request, and submit it if its body is here. Answers one that is refused.

        None: the body will come by `feed`.
        """
        try:
            if self.rules.has_key:
                scope: dict[str, Any] = {"headers": self.head.fields}
                check_key(scope, self.rules.settings)
                self.client = client_of(scope)
        except Unauthorized as error:
            self.fail_body(error)  # closes, as `refuse` does
            return
        try:
            self._begin()
            if body is None:
                self._pieces = self._wait()
            else:
                self._run = self._submit(body)
        except Exception as error:
            self._fail(error)

    def feed(self, piece: bytes) -> None:
        """Add a piece of the body, whose memory is reserved."""
        if (pieces := self._pieces) is not None:
            pieces.append(piece)

    def feed_end(self) -> None:
        """Submit the request: its body is complete."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:  # answered
            return
        try:
            self._run = self._submit_pieces(pieces)
        except Exception as error:
            self._fail(error)

    def fail_body(self, error: Exception) -> None:
        """Answer by `error`: the rest of the body will not be read."""
        self._pieces = None
        self.keep_alive = False
        self._fail(error)

    def abandon(self, status: int = CLIENT_LEFT_STATUS) -> None:
        """End the work for a client that has left, or was refused with another status.

        If a batch runs already, it holds the run and so `memory` until it lets go of its items.
        """
        self.wire = self._pieces = None
        run, self._run = self._run, None
        if self._access is not None:
            self._log_access(status, 0, run)
        if self.rules.notes:
            self._remember(status, None, run)
        if run is not None:
            run.leave()
            self._release(getattr(run, "admission", None) is not None)

    # From the run, to which this is a future. None of these raises: it would disturb the delivery
    # of the other items of the batch.

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancelled

    def exception(self) -> None:
        """An answer is made only from a result."""

    def set_result(self, item: Item, /) -> None:
        self._done = True
        run = self._run
        assert run is not None
        try:
            self._finish(item, run)
        except Exception as error:
            self._fail(error)

    def set_exception(self, error: BaseException, /) -> None:
        self._fail(error)

    def cancel(self) -> bool:
        if self._done:
            return False
        self._done = self._cancelled = True
        self._send(client_left())
        return True

    def _fail(self, error: BaseException) -> None:
        self._done = True
        failure = self.failure_of(error) if self.rules.notes else None
        self._send(self.failure(error), failure)

    def _send(self, answer: Problem, failure: Failure | None = None) -> None:
        status, headers, body = answer
        self._send_lines(status, lines_of(headers), body, failure=failure)

    def _send_lines(
        self,
        status: int,
        lines: bytes,
        body: bytes,
        blobs: Sequence[bytes | memoryview] = (),
        failure: Failure | None = None,
    ) -> None:
        """Send the answer. `lines` are its own headers. The body goes on with `blobs`."""
        if self.rules.notes and self.wire is not None:
            self._remember(status, failure, self._run)
        head = b"%b%b%bx-request-id: %b\r\n" % (
            STATUS_LINES[status],
            self._default_head,
            lines,
            self.request_id.encode(),
        )
        self._send_head(status, head, body, blobs)

    def _send_head(
        self, status: int, head: bytes, body: bytes, blobs: Sequence[bytes | memoryview] = ()
    ) -> None:
        """Write the answer, once, unless the client has left. `head` lacks its last line.

        The caller has remembered the request.
        """
        wire, self.wire = self.wire, None
        run, self._run = self._run, None
        if wire is None:
            return
        self.memory.close()
        try:
            self._release()
            keep_alive = self.keep_alive and wire.may_stay_open()
            end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
            if self._access is not None:
                self._log_access(status, len(body) + sum(map(len, blobs)), run)
            if len(body) < JOIN_BELOW_BYTES and not blobs:
                wire.write(head + end + body)
            else:
                wire.write_pieces(head + end, body, *blobs)
            wire.answered(keep_alive)
        except Exception:
            logger.exception("request %s could not be answered", self.request_id)
            wire.break_off()

    def _remember(self, status: int, failure: Failure | None, run: Submission | None) -> None:
        """Put the request, which ends now, into the history."""
        self.remember(self.door, status, failure, () if run is None else (run,))

    def _log_access(self, status: int, size: int, run: Submission | None) -> None:
        access, self._access = self._access, None
        if access is None:
            return
        access.follow(self, tuple if run is None else lambda: (run,))
        access.log(status, size, self.request_id)


def lines_of(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


SLOTS = (
    "_access",
    "_cancelled",
    "_default_head",
    "_done",
    "_pieces",
    "_run",
    "_work",
    "keep_alive",
    "wire",
)
"""Those of a subclass: of several bases only one may have slots."""
