"""Requests that the connection itself submits and answers, past ASGI.

No task, no scope, no coroutine: the run takes the call as its future, so the outcome comes as a
callback, and the answer leaves in it. What a predict or infer request is, and how it is answered,
is in `PredictCall` and `InferCall`, for this way and for ASGI. `Connection` decides which requests
come here: small ones without anything unusual.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from penstock.backends.errors import forget_frames
from penstock.backends.item import Item
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.runs.run import ENDED, Submission, as_future

from ..http.auth import check_key, client_of
from ..http.body import Link, parse_images, reserve_body
from ..http.compression import COMPRESS_OFF_LOOP_BYTES, deflate
from ..http.errors import Problem, Unauthorized, log_failure
from ..http.helper_thread import on_helper_thread
from ..http.predict import HotRoutes, route_of
from ..http.predict_call import (
    PredictCall,
    PredictHead,
    client_left,
    server_timing,
    urls_are_off,
)
from ..v2.call import BodyParts, error_answer, split
from ..v2.encoding import lasting
from ..v2.infer.infer_call import InferCall, InferHead
from ..v2.infer.response import Chosen, Headers, Written, takes_long
from ..v2.routes import ProtocolApp
from .asgi import JOIN_BELOW_BYTES, STATUS_LINES, AccessLine, Wire
from .head import RequestHead

logger = logging.getLogger("penstock.http")

_route_of_path = lru_cache(256)(route_of)


MOST_IMAGE_BYTES = 1 << 18
"""The largest body of a predict request that is taken here."""


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

    # Fields of the subclasses: of several bases only one may have slots.
    _access: AccessLine | None
    _cancelled: bool
    _default_head: bytes
    _done: bool
    _pieces: list[bytes] | BodyParts | None
    _run: Submission | None
    _work: asyncio.Task[None] | None  # waits for a helper thread
    _fields: Sequence[tuple[bytes, bytes]]  # of the head
    client: str | None
    keep_alive: bool
    memory: Reservation
    request_id: str
    rules: Any  # those of the subclass
    wire: Wire | None

    def _attach(
        self,
        wire: Wire,
        fields: Sequence[tuple[bytes, bytes]],
        default_head: bytes,
        keep_alive: bool,
        access: AccessLine | None,
    ) -> None:
        self.wire = wire
        self._fields = fields
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

    def _release(self) -> None:
        """Let go of what the request holds besides memory."""

    # From the connection.

    @property
    def body_timeout(self) -> float:
        timeout: float = self.rules.settings.body_timeout
        return timeout

    def start(self, body: bytes | None = None) -> None:
        """Begin the request, and submit it if its body is here. Answers one that is refused.

        None: the body will come by `feed`.
        """
        settings = self.rules.settings
        try:
            if settings.api_key is not None:
                scope: dict[str, Any] = {"headers": self._fields}
                check_key(scope, settings)
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

    def abandon(self) -> None:
        """End the work for a client that has left.

        If a batch runs already, it holds the run and so `memory` until it lets go of its items.
        """
        self.wire = self._pieces = None
        run, self._run = self._run, None
        if run is not None:
            run.leave()
            self._release()

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
        self._send(self.failure(error))

    def _send(self, answer: Problem) -> None:
        status, headers, body = answer
        self._send_lines(status, _lines(headers), body)

    def _send_lines(
        self, status: int, lines: bytes, body: bytes, blobs: Sequence[bytes | memoryview] = ()
    ) -> None:
        """Send the answer. `lines` are its own headers. The body goes on with `blobs`."""
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
        """Write the answer, once, unless the client has left. `head` lacks its last line."""
        wire, self.wire = self.wire, None
        self._run = None
        if wire is None:
            return
        self.memory.close()
        try:
            self._release()
            keep_alive = self.keep_alive and wire.may_stay_open()
            end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
            if self._access is not None:
                self._access.log(status)
            if len(body) < JOIN_BELOW_BYTES and not blobs:
                wire.write(head + end + body)
            else:
                wire.write_pieces(head + end, body, *blobs)
            wire.answered(keep_alive)
        except Exception:
            logger.exception("request %s could not be answered", self.request_id)
            wire.break_off()


@lru_cache(4)
def _head_of_json(default_head: bytes) -> bytes:
    """Return the beginning of an answer with JSON, up to its length."""
    return b"%b%bcontent-type: application/json\r\ncontent-length: " % (
        STATUS_LINES[200],
        default_head,
    )


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_SLOTS = (
    "_access",
    "_cancelled",
    "_default_head",
    "_done",
    "_fields",
    "_pieces",
    "_run",
    "_work",
    "keep_alive",
    "wire",
)


class DirectPredict(PredictCall, Direct):
    """A predict request with one image."""

    __slots__ = _SLOTS

    def _begin(self) -> None:
        self.begin()

    def _wait(self) -> list[bytes]:
        self.first_byte = asyncio.get_running_loop().time()
        return []

    def _submit_pieces(self, pieces: list[bytes]) -> Submission:
        self.ready(asyncio.get_running_loop().time())
        return self._submit(b"".join(pieces))

    def _submit(self, body: bytes) -> Submission:
        image = self.take(body)
        if image is None:
            image = self._parsed(body)
        return self.submit(image, self)  # type: ignore[arg-type]  # `as_future` without its call

    def _parsed(self, body: bytes) -> bytes:
        rules = self.rules
        content = parse_images(
            body,
            self.form,
            self.head.content_type,
            self.memory,
            many=False,
            limit=rules.settings.max_images,
            json=rules.json,
        )
        if isinstance(content, Link):
            raise urls_are_off()
        return content[0]

    def _finish(self, item: Item, run: Submission) -> None:
        body = self.write(item, run)
        if body is None:
            loop = asyncio.get_running_loop()
            self._work = loop.create_task(self._write_on_helper_thread(item, run))
        else:
            self._succeed(body, run)

    async def _write_on_helper_thread(self, item: Item, run: Submission) -> None:
        try:
            body = await self.write_large(item, run)
        except Exception as error:
            self._fail(error)
        else:
            self._succeed(body, run)
        finally:
            self._work = None  # the task holds the call

    def _succeed(self, body: bytes, run: Submission) -> None:
        head = b"%b%d\r\nserver-timing: %b\r\nx-request-id: %b\r\n" % (
            _head_of_json(self._default_head),
            len(body),
            server_timing(run),
            self.request_id.encode(),
        )
        self._send_head(200, head, body)

    def _release(self) -> None:
        self.future = ENDED


class DirectInfer(InferCall, Direct):
    """An infer request."""

    __slots__ = (*_SLOTS, "_protocol")

    def __init__(self, protocol: ProtocolApp, head: InferHead, client: str | None) -> None:
        super().__init__(protocol.infer.rules, head, Reservation(budget), client=client)
        self._protocol = protocol

    def _begin(self) -> None:
        self._protocol.guard("inference", {"headers": self._fields})
        self.begin()
        length = cast("bytes", self.head.length)  # a request without a body goes to the app
        reserve_body(length, self.rules.settings.max_body, self.memory)

    def _wait(self) -> BodyParts:
        return BodyParts(self.size, self.memory.size)

    def _submit_pieces(self, pieces: BodyParts) -> Submission | None:
        if pieces.joins_at_once:
            return self._submit_parts(*pieces.join(self.memory))
        self._work = asyncio.get_running_loop().create_task(self._join_later(pieces))
        return None

    def _submit(self, body: bytes) -> Submission | None:
        return self._submit_parts(*split(body, self.size, self.memory))

    def _submit_parts(self, text: bytes, blobs: memoryview) -> Submission | None:
        if self.take(text, blobs):
            return self.submit(as_future(self))
        self._work = asyncio.get_running_loop().create_task(self._read_later(text, blobs))
        return None

    def _finish(self, item: Item, run: Submission) -> None:
        if "error" in item:
            raise item["error"]
        answered = time.monotonic()
        try:
            chosen = self.choose(item)
            if takes_long(chosen):
                loop = asyncio.get_running_loop()
                self._work = loop.create_task(self._write_later(chosen, answered))
                return
            written = self.write(chosen)
        except Exception:
            self.take_back()
            raise
        self.count(answered)
        encoding = self.encoding(written)
        if encoding is None:
            self._send_written(written)
        elif written.size < COMPRESS_OFF_LOOP_BYTES:
            self._send_smaller(written, encoding, deflate(written.joined(), encoding))
        else:
            loop = asyncio.get_running_loop()
            self._work = loop.create_task(self._compress_later(written, encoding))

    # What takes long is done on a helper thread, for which a task waits. The task holds the call.

    async def _join_later(self, pieces: BodyParts) -> None:
        try:
            text, blobs = await on_helper_thread(pieces.join, self.memory)
            if not self.take(text, blobs):
                await on_helper_thread(self.read, text, blobs)
            self._go_on()
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    async def _read_later(self, text: bytes, blobs: memoryview) -> None:
        try:
            await on_helper_thread(self.read, text, blobs)
            self._go_on()
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    def _go_on(self) -> None:
        """Submit the request, unless its client left while it was read."""
        if self.wire is not None:
            self._run = self.submit(as_future(self))

    async def _write_later(self, chosen: Chosen, answered: float) -> None:
        try:
            try:
                written = await on_helper_thread(self.write, chosen)
            except Exception:
                self.take_back()
                raise
            self.count(answered)
            if (encoding := self.encoding(written)) is None:
                self._send_written(written)
            else:
                await self._compress_later(written, encoding)
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    async def _compress_later(self, written: Written, encoding: bytes) -> None:
        try:
            body = await on_helper_thread(lambda: deflate(written.joined(), encoding))
            self._send_smaller(written, encoding, body)
        except Exception as error:
            self._fail(error)
        finally:
            self._end_work()

    def _end_work(self) -> None:
        self._work = None
        if self.wire is None and self._run is None:  # answered, or the client has left
            self.request.release()

    def _send_smaller(self, written: Written, encoding: bytes, body: bytes) -> None:
        """Write the answer as `body`, which is compressed, if that is smaller."""
        if len(body) >= written.size:
            self._send_written(written)
            return
        headers = [*written.headers(), (b"content-encoding", encoding)]
        headers.append((b"content-length", b"%d" % len(body)))
        self._send_lines(200, _lines(headers), body)

    def _send_written(self, written: Written) -> None:
        if written.size < JOIN_BELOW_BYTES:
            self._send_lines(200, written.lines(), written.joined())
        else:
            blobs = [lasting(blob) for blob in written.blobs]
            self._send_lines(200, written.lines(), written.text, blobs)

    def failure(self, error: BaseException) -> Problem:
        log_failure(error, self.request_id, self.head.names["model"])
        answer = error_answer(error)
        forget_frames(error)
        length = (b"content-length", b"%d" % len(answer.body))
        return answer.status, [*answer.headers, length], answer.body

    def _release(self) -> None:
        if self._work is None:  # a helper thread may be using the shared memory
            self.request.release()


class DirectRoutes:
    """The routes of an app whose requests a connection may answer itself."""

    def __init__(self, hot: HotRoutes) -> None:
        rules = hot.predict.rules
        # The fetch of an image by URL is a task, and which request needs one only its body says.
        self._rules = rules
        self._fetches = rules.fetch is not None
        self._protocol = cast("ProtocolApp", hot.protocol)

    def call_of(
        self,
        head: RequestHead,
        wire: Wire,
        *,
        client: str | None,
        default_head: bytes,
        keep_alive: bool,
        access: AccessLine | None,
    ) -> DirectPredict | DirectInfer | None:
        """Make the call of a request that has a body. None if the app has to answer it.

        `client`: the address that it comes from.
        """
        route = head.direct
        if route is None:
            route = head.direct = self._route_of(head)
        call: DirectPredict | DirectInfer
        if type(route) is PredictHead:
            call = DirectPredict(self._rules, route, 0.0, client=client)
        elif type(route) is InferHead:
            call = DirectInfer(self._protocol, route, client)
        else:
            return None
        call._attach(wire, head.fields, default_head, keep_alive, access)
        return call

    def _route_of(self, head: RequestHead) -> PredictHead | InferHead | str:
        """Return what a head asks for; "" if the app has to answer it."""
        path = head.path.decode("ascii")
        if "%" in path:
            return ""
        if (route := _route_of_path(path)) is not None:
            asked = PredictHead(*route, head.fields)
            unusual = (
                asked.many
                or asked.encoding is not None
                or asked.asks_for_events
                or head.length > MOST_IMAGE_BYTES
            )
            return "" if unusual or self._fetches else asked
        if head.method == b"POST" and path.startswith("/v2/models/"):
            names = self._protocol.names_of_infer(path)
            if names is not None:
                infer = InferHead(names, head.fields)
                return infer if infer.encoding is None else ""
        return ""


def routes_of(app: Any) -> DirectRoutes | None:
    """Return the routes of an app that a connection may answer itself: those that nothing of it
    stands before. None for an app that is not ours.
    """
    find = getattr(app, "hot_routes", None)
    hot = cast("HotRoutes | None", find()) if find is not None else None
    return None if hot is None else DirectRoutes(hot)
