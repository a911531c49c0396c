"""Predict requests, and the short way to them.

`/predict/{pipeline}`, `/predict/{pipeline}/batch` and all of `/v2` (v2/) are plain ASGI.
`HotRoutes` is the innermost middleware of the app: only FastAPI's exception middleware and router
are inside it. So the middleware of the app and of its host see these requests like all others, and
the reflection of the router does not touch them. The ordinary routes of `create_router` call
`Predict` too.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.backends.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PenstockError,
    UnsupportedMedia,
    forget_frames,
)
from penstock.backends.item import Item
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Run, Submission
from penstock.pipelines.runs.trace import Trace

from ..settings import Settings
from .auth import check_trace
from .body import (
    ClientLeft,
    Link,
    form_of,
    images_of,
    must_close,
    read_rest,
    reserve_body,
    sniff,
)
from .compression import inflate, window_of
from .errors import Problem, log_failure, problem
from .events import EventStream, wants_events
from .exchange import Exchange, Watch, leave
from .json_text import JsonLimits
from .paths import is_protocol, path_of
from .render import write_item
from .request_id import choose_request_id
from .restriction import restriction_of

logger = logging.getLogger("penstock.http")

PREDICT_PREFIX = "/predict/"
_VERSIONED = re.compile(r"[^/]+/versions/[^/]+")
_JSON = (b"content-type", b"application/json")
_CLIENT_LEFT_STATUS = 499
"""nginx's status for a client that left.

The client reads no answer, but a host's middleware may wait for one, and would take its absence for
a failure.
"""


class Pipelines(Protocol):
    """The pipelines by name, such as a `Repository`."""

    @property
    def pipelines(self) -> dict[str, Pipeline]: ...
    def get(self, name: str) -> Pipeline: ...


Fetch = Callable[[str, float | None, Reservation], Awaitable[bytes]]
"""Fetches the image at a URL within a number of seconds, and reserves its memory (`fetch.py`)."""


class HotRoutes:
    """ASGI middleware for the routes that need no router.

    Predict requests go to `predict`, those below /v2 to `protocol`, and all others to `app`.
    """

    def __init__(self, app: ASGIApp, predict: Predict, protocol: ASGIApp) -> None:
        self.app = app
        self.predict = predict
        self.protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = predict_route(scope)
        if route is not None:
            await self.predict(scope, receive, send, *route)
        elif is_protocol(scope):
            await self.protocol(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def predict_route(scope: Scope) -> tuple[str, bool] | None:
    """Return the name of a predict request's pipeline, and whether it brings several images.

    A version belongs to the name: `digits/versions/2`. None for every other request.
    """
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
        return None
    path: str = scope["path"]
    if scope.get("root_path"):
        path = path_of(scope)
    if not path.startswith(PREDICT_PREFIX):
        return None
    name = path[len(PREDICT_PREFIX) :]
    many = name.endswith("/batch")
    if many:
        name = name[:-6]
    return None if "/" in name and not _VERSIONED.fullmatch(name) else (name, many)


class _PredictExchange(Exchange):
    """A predict request as the watch knows it, with the values of its headers."""

    __slots__ = (
        "accept",
        "content_type",
        "deadline",
        "encoding",
        "length",
        "memory",
        "priority",
        "request_id",
        "traced",
    )

    def __init__(self, scope: Scope, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        # The fields of Exchange are set here, not by a call: this is the hot path.
        self.receive = receive
        self.task = cast("asyncio.Task[None]", asyncio.current_task(loop))
        self.started = loop.time()
        self.runs = ()
        self.timed_out = False
        self.helper = None
        # One pass. If a header is repeated, the last one counts.
        headers: dict[bytes, bytes] = dict(scope["headers"])
        get = headers.get
        self.content_type = get(b"content-type")
        self.length = get(b"content-length")
        self.encoding = get(b"content-encoding")
        self.deadline = get(b"penstock-deadline-ms")
        self.priority = get(b"penstock-priority")
        self.accept = get(b"accept")
        self.traced = get(b"penstock-trace")
        self.memory = Reservation(budget)
        self.request_id: str = scope.get("penstock.request_id") or choose_request_id(
            get(b"x-request-id")
        )


class Predict:
    """Answers predict requests: reads the body, submits, waits, renders.

    The table in `errors.py` decides how a failure is answered.
    """

    def __init__(
        self, pipelines: Pipelines, settings: Settings, fetch: Fetch | None = None
    ) -> None:
        """`fetch`: None if images by URL are not allowed."""
        self._pipelines = pipelines
        self._settings = settings
        self._fetch = fetch
        self._restriction = restriction_of(settings.restricted_api)
        self._json = JsonLimits(settings.max_json_depth, settings.max_json_values)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = Watch(settings.body_timeout)

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, name: str, many: bool
    ) -> None:
        """Answer one request. `many`: of several images, each gets a result or a problem."""
        # Another frame, so that what it holds is gone while the answer is sent.
        answer = await self._answer(scope, receive, send, name, many)
        if answer is not None:
            status, headers, body = answer
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, name: str, many: bool
    ) -> Problem | None:
        """Return the answer to one request; None if it has been sent, as events."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # One loop at a time serves an app. What an earlier one left has ended with it.
            self._loop = loop
            self._watch = Watch(self._settings.body_timeout)
        exchange = _PredictExchange(scope, receive, loop)
        self._watch.begin(exchange, loop)
        status = 200
        unread = True
        trace: Trace | None = None
        try:
            if self._restriction:
                self._restriction.check("inference", scope)
            pipeline = self._pipelines.pipelines.get(name) or self._pipelines.get(name)
            form = form_of(exchange.content_type)
            limit = self._settings.max_body
            window = 0 if exchange.encoding is None else _window(exchange.encoding)
            timeout = None if exchange.deadline is None else _seconds_left(exchange.deadline, 0.0)
            priority = None if exchange.priority is None else _priority(exchange.priority)
            if exchange.traced is not None:
                trace = self._trace(scope, exchange.traced, many)
            pipeline.check_admission(timeout, priority)
            memory = exchange.memory
            if exchange.length is not None:
                reserve_body(exchange.length, limit, memory)
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body") or message["type"] != "http.request" or len(body) > limit:
                body = await read_rest(message, receive, limit, memory)
            elif exchange.length is None:
                memory.cover(len(body), "a body")
            unread = False
            if window:
                body = await inflate(body, window, self._settings.max_inflated, memory)
            if form == "sniff":
                form = sniff(body, exchange.content_type)
            if form == "raw":
                images: Sequence[bytes] = (_whole(body, many),)
            else:
                content = await images_of(
                    body,
                    form,
                    exchange.content_type,
                    memory,
                    many=many,
                    limit=self._settings.max_images,
                    json=self._json,
                )
                images = (
                    (await self._fetched(content, pipeline, exchange, loop),)
                    if isinstance(content, Link)
                    else content
                )
            if exchange.deadline is not None:
                timeout = _seconds_left(exchange.deadline, loop.time() - exchange.started)
            if pipeline.state != "ready":  # replaced during the upload: the new one answers
                pipeline = self._pipelines.get(name)
            if many:
                answer = await self._answer_many(pipeline, images, timeout, priority, exchange)
                headers = [_JSON, (b"content-length", b"%d" % len(answer))]
            else:
                run = pipeline.submit_nowait(
                    {"data": images[0]},
                    timeout,
                    priority,
                    trace=trace,
                    request_id=exchange.request_id,
                )
                exchange.runs = (run,)
                if exchange.helper is not None:
                    exchange.listen()
                if (
                    exchange.accept is not None
                    and exchange.accept != b"*/*"
                    and wants_events(exchange.accept)
                ):
                    events = EventStream(run, pipeline, exchange.request_id, trace, memory)
                    await events.answer(
                        send, [(b"x-request-id", exchange.request_id.encode("ascii"))]
                    )
                    return None
                item = await run.future
                if "error" in item:
                    raise item["error"]
                answer = await write_item(item, run, pipeline, memory, trace)
                headers = [
                    _JSON,
                    (b"content-length", b"%d" % len(answer)),
                    (b"server-timing", server_timing(run)),
                ]
        except asyncio.CancelledError:
            if exchange.timed_out and not exchange.task.uncancel():
                late = InvalidRequest(
                    f"the body did not arrive within {self._settings.body_timeout:g} s "
                    "(body_timeout)"
                )
                status, headers, answer = problem(late, exchange.request_id)
            elif exchange.task.cancelling():
                raise  # the server, or a host, cancels the request itself
            else:  # the watch dropped the items
                status, headers, answer = _CLIENT_LEFT_STATUS, [(b"content-length", b"0")], b""
        except ClientLeft:
            status, headers, answer = _CLIENT_LEFT_STATUS, [(b"content-length", b"0")], b""
        except Exception as error:
            log_failure(error, exchange.request_id, name)
            more = {} if trace is None else {"trace": trace.steps}
            status, headers, answer = problem(error, exchange.request_id, **more)
            forget_frames(error)
        finally:
            # Before anything except events is sent: reading slowly is not uploading slowly.
            self._watch.end(exchange)
            leave(exchange.runs, exchange.memory)
        headers.append((b"x-request-id", exchange.request_id.encode("ascii")))
        if unread and (exchange.timed_out or must_close(scope)):
            headers.append((b"connection", b"close"))
        return status, headers, answer

    def _trace(self, scope: Scope, wanted: bytes, many: bool) -> Trace | None:
        """Make the request's trace; None if `wanted`, its Penstock-Trace, is 0.

        Raises `Forbidden` or `Unauthorized` if the client may not see one, `InvalidRequest`.
        """
        if wanted == b"0":
            return None
        check_trace(scope, self._settings)
        if wanted != b"1" or many:
            raise InvalidRequest(
                "Penstock-Trace is malformed: expected 0, or 1 with a request of one image"
            )
        return Trace()

    async def _fetched(
        self,
        url: Link,
        pipeline: Pipeline,
        exchange: _PredictExchange,
        loop: asyncio.AbstractEventLoop,
    ) -> bytes:
        """Fetch the image at a URL.

        The time counts towards the client's deadline, as that of an upload does. The fetch ends
        when the client leaves.
        """
        if self._fetch is None:
            raise InvalidRequest(
                "images by URL are off: the operator has not allowed them (allow_url); "
                "send the image itself"
            )
        left = pipeline.config.timeout
        if exchange.deadline is not None:
            left = min(left, _seconds_left(exchange.deadline, loop.time() - exchange.started))
        fetching = _Fetching(self._fetch(url, left, exchange.memory))
        exchange.runs = (fetching,)
        if exchange.helper is not None:  # a timer of a slow upload, which is over
            exchange.listen()
        return await fetching.future

    async def _answer_many(
        self,
        pipeline: Pipeline,
        images: Sequence[bytes],
        timeout: float | None,
        priority: int | None,
        exchange: _PredictExchange,
    ) -> bytes:
        """Answer several images.

        Each is an item of its own; if it is refused or fails, a problem stands in its place. Raises
        the error of the first image if none was admitted.
        """
        outcomes: list[Submission | Exception] = []
        runs: list[Submission] = []
        exchange.runs = runs  # so that the caller leaves them, whatever happens from here on
        for index, image in enumerate(images):
            try:
                run = pipeline.submit_nowait(
                    {"data": image}, timeout, priority, request_id=f"{exchange.request_id}/{index}"
                )
            except PenstockError as error:
                outcomes.append(error)
            else:
                runs.append(run)
                outcomes.append(run)
        if not runs and isinstance(outcomes[0], Exception):
            raise outcomes[0]
        if exchange.helper is not None:
            exchange.listen()
        results: list[bytes] = []
        size = 0
        for outcome in outcomes:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                item: Item = await outcome.future
                if "error" in item:
                    raise item["error"]
                written = await write_item(item, outcome, pipeline, exchange.memory)
            except PenstockError as error:
                log_failure(error, exchange.request_id, pipeline.name)
                written = problem(error, exchange.request_id)[2]
                forget_frames(error)
            size += len(written)
            results.append(written)
        exchange.memory.resize(exchange.memory.size + size, "an answer")  # they are joined
        return b'{"results":[%b]}' % b",".join(results)


class _Fetching:
    """The fetch of an image, as work that the watch drops when the client leaves.

    It is a task of its own, because the request's task goes on to answer.
    """

    def __init__(self, fetching: Awaitable[bytes]) -> None:
        self.future = asyncio.ensure_future(fetching)

    def leave(self) -> None:
        self.future.cancel()


def _whole(body: bytes, many: bool) -> bytes:
    """Return the body as the one image. Raises `UnsupportedMedia`, `InvalidRequest`."""
    if many:
        raise UnsupportedMedia(
            "several images must come as multipart/form-data (field 'images') or as JSON "
            '{"images": [base64, …]}'
        )
    if not body:
        raise InvalidRequest("the body is empty: expected an image")
    return body


def _window(encoding: bytes) -> int:
    """Return zlib's `wbits` for a Content-Encoding. Raises `UnsupportedMedia`."""
    try:
        return window_of(encoding)
    except KeyError as error:
        raise UnsupportedMedia(
            f"the content encoding {error.args[0]!r} is not understood; send gzip, deflate or an "
            "uncompressed body"
        ) from None


def _seconds_left(deadline: bytes, elapsed: float) -> float:
    """Parse Penstock-Deadline-Ms, which counts from the first byte of the request.

    Returns the seconds that are left after `elapsed` seconds. Raises `InvalidRequest`,
    `DeadlineExceeded`.
    """
    try:
        milliseconds = float(deadline)
    except ValueError:
        milliseconds = -1.0
    if not 0 < milliseconds < float("inf"):
        raise InvalidRequest(
            "Penstock-Deadline-Ms is malformed: expected a positive number of milliseconds"
        )
    seconds = milliseconds / 1000 - elapsed
    if seconds <= 0:
        raise DeadlineExceeded("the deadline passed before the body arrived")
    return seconds


def _priority(value: bytes) -> int:
    if not value.isdigit() or len(value) > 9:
        raise InvalidRequest(
            "Penstock-Priority is malformed: expected a whole number, of which 1 is the highest"
        )
    return int(value)


def server_timing(run: Submission) -> bytes:
    """Make the `Server-Timing` header.

    It has, for each node, the milliseconds in its queue and on its executor, and the rows of the
    batch.
    """
    if type(run) is Run and run.stages is None and (batch := run.batch) is not None:
        # One node, the usual case: no list, no tuple.
        return _timing(
            batch.node, batch.started - run.enqueued, batch.ended - batch.started, batch.size
        )
    return b", ".join([_timing(*stage) for stage in run.timings()])


def _timing(node: str, queue: float, seconds: float, size: int) -> bytes:
    text = (
        f"queue.{node};dur={queue * 1000:.3f}, "
        f'run.{node};dur={seconds * 1000:.3f};desc="batch {size}"'
    )
    return text.encode("latin-1", "replace")
