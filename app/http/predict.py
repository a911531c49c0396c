"""The hot routes: `/predict/{pipeline}` and `/predict/{pipeline}/batch`, and all of `/v2` (v2/), as plain ASGI.

`HotRoutes` stands innermost among the app's middleware, in front of FastAPI's exception middleware and router only: whatever middleware
the app or its host has sees these requests like all others, and the router's reflection does not touch them. `Predict` is also what the
ordinary routes of `create_router` exchange.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.backends.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PenstockError,
    UnsupportedMedia,
)
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Run, Submission
from penstock.pipelines.runs.trace import Trace

from ..settings import Settings
from .auth import check_trace
from .body import ClientLeft, Link, check_length, form_of, images_of, must_close, read_rest, sniff
from .errors import problem
from .events import EventStream, wants_events
from .exchange import Exchange, Watch
from .paths import is_protocol, path_of
from .render import to_json, write_item
from .request_id import choose_request_id

logger = logging.getLogger("penstock.http")

PREDICT_PREFIX = "/predict/"
_JSON = (b"content-type", b"application/json")
_CLIENT_LEFT_STATUS = 499
"""nginx's status for it. Nobody reads the answer; but a host's middleware that waits for one would take none for a failure."""


class Pipelines(Protocol):
    """Where pipelines are found by name (`repository.py`)."""

    @property
    def pipelines(self) -> dict[str, Pipeline]: ...
    def get(self, name: str) -> Pipeline: ...


Fetch = Callable[[str, float | None], Awaitable[bytes]]
"""Fetches an image by its URL, within so many seconds (`fetch.py`)."""


class HotRoutes:
    """ASGI middleware: predict requests go to `predict`, those below /v2 to `protocol`, all else to `app`."""

    def __init__(self, app: ASGIApp, predict: Predict, protocol: ASGIApp) -> None:
        self.app = app
        self.predict = predict
        self.protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = predict_route(scope)
        if found is not None:
            await self.predict(scope, receive, send, *found)
        elif is_protocol(scope):
            await self.protocol(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def predict_route(scope: Scope) -> tuple[str, bool] | None:
    """The pipeline that a predict request names, and whether it brings several images; None for every other request."""
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
    return None if "/" in name else (name, many)


class _PredictExchange(Exchange):
    """A predict request: what the watch knows of it, and what its headers say."""

    __slots__ = ("accept", "content_type", "deadline", "length", "priority", "request_id", "traced")

    def __init__(self, scope: Scope, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        # Exchange's fields are set here, not by a call: this is the hot path
        self.receive = receive
        self.task = cast("asyncio.Task[None]", asyncio.current_task(loop))
        self.started = loop.time()
        self.runs = ()
        self.timed_out = False
        self.helper = None
        headers: dict[bytes, bytes] = dict(
            scope["headers"]
        )  # one pass; of a repeated one the last counts
        get = headers.get
        self.content_type = get(b"content-type")
        self.length = get(b"content-length")
        self.deadline = get(b"penstock-deadline-ms")
        self.priority = get(b"penstock-priority")
        self.accept = get(b"accept")
        self.traced = get(b"penstock-trace")
        self.request_id: str = scope.get("penstock.request_id") or choose_request_id(
            get(b"x-request-id")
        )


class Predict:
    """Answers predict requests: reads the body, submits, waits, renders. Every failure is answered by the table in `errors.py`."""

    def __init__(
        self, pipelines: Pipelines, settings: Settings, fetch: Fetch | None = None
    ) -> None:
        """`fetch`: None where images by URL are not allowed."""
        self._pipelines = pipelines
        self._settings = settings
        self._fetch = fetch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = Watch(settings.body_timeout)

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, name: str, many: bool
    ) -> None:
        """One request. `many`: several images, each answered by a result or a problem."""
        loop = asyncio.get_running_loop()
        if (
            loop is not self._loop
        ):  # an app is served by one loop at a time; what an earlier one left has ended with it
            self._loop = loop
            self._watch = Watch(self._settings.body_timeout)
        exchange = _PredictExchange(scope, receive, loop)
        self._watch.begin(exchange, loop)
        status = 200
        unread = True
        trace: Trace | None = None
        try:
            pipeline = self._pipelines.pipelines.get(name) or self._pipelines.get(name)
            form = form_of(exchange.content_type)
            limit = self._settings.max_body
            if exchange.length is not None:
                check_length(exchange.length, limit)
            timeout = None if exchange.deadline is None else _seconds_left(exchange.deadline, 0.0)
            priority = None if exchange.priority is None else _priority(exchange.priority)
            if exchange.traced is not None:
                trace = self._trace(scope, exchange.traced, many)
            pipeline.check_admission(timeout, priority)
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body") or message["type"] != "http.request" or len(body) > limit:
                body = await read_rest(message, receive, limit)
            unread = False
            if form == "sniff":
                form = sniff(body, exchange.content_type)
            if form == "raw":
                images: Sequence[bytes] = (_whole(body, many),)
            else:
                found = await images_of(
                    body,
                    form,
                    exchange.content_type or b"",
                    many=many,
                    limit=self._settings.max_images,
                )
                images = (
                    (await self._fetched(found, pipeline, exchange, loop),)
                    if isinstance(found, Link)
                    else found
                )
            if exchange.deadline is not None:
                timeout = _seconds_left(exchange.deadline, loop.time() - exchange.started)
            if pipeline.state != "ready":  # replaced while the body came: the new one answers
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
                    events = EventStream(run, pipeline, exchange.request_id, trace)
                    await events.answer(
                        send, [(b"x-request-id", exchange.request_id.encode("ascii"))]
                    )
                    return
                item = await run.future
                if "error" in item:
                    raise item["error"]
                answer = write_item(item, run, pipeline, trace)
                headers = [
                    _JSON,
                    (b"content-length", b"%d" % len(answer)),
                    (b"server-timing", server_timing(run)),
                ]
        except asyncio.CancelledError:
            if exchange.timed_out and not exchange.task.uncancel():
                late = InvalidRequest(
                    f"the body did not arrive within {self._settings.body_timeout:g} s (body_timeout)"
                )
                status, headers, answer = problem(late, exchange.request_id)
            elif exchange.task.cancelling():
                raise  # the server, or a host, cancels the request itself
            else:  # the watch dropped the items
                status, headers, answer = _CLIENT_LEFT_STATUS, [(b"content-length", b"0")], b""
        except ClientLeft:
            status, headers, answer = _CLIENT_LEFT_STATUS, [(b"content-length", b"0")], b""
        except Exception as error:
            if not isinstance(error, PenstockError):
                logger.exception(
                    "request %s failed",
                    exchange.request_id,
                    extra={"request_id": exchange.request_id, "pipeline": name},
                )
            more = {} if trace is None else {"trace": trace.steps}
            status, headers, answer = problem(error, exchange.request_id, **more)
        finally:  # before anything but events is sent: a client that reads slowly is not one that uploads slowly
            self._watch.end(exchange)
            for work in exchange.runs:
                work.leave()
        headers.append((b"x-request-id", exchange.request_id.encode("ascii")))
        if unread and (exchange.timed_out or must_close(scope)):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _trace(self, scope: Scope, wanted: bytes, many: bool) -> Trace | None:
        """Where the request's steps are noted, if its Penstock-Trace says so and whoever sent it may see them."""
        if wanted == b"0":
            return None
        check_trace(scope, self._settings)
        if wanted != b"1" or many:
            raise InvalidRequest("Penstock-Trace is 1, for a request of one image, or 0")
        return Trace()

    async def _fetched(
        self,
        url: Link,
        pipeline: Pipeline,
        exchange: _PredictExchange,
        loop: asyncio.AbstractEventLoop,
    ) -> bytes:
        """What a URL leads to. It takes of the deadline that the client asked for, as an upload does, and ends when the client leaves."""
        if self._fetch is None:
            raise InvalidRequest(
                "images by URL are not taken here: the operator has not allowed them (allow_url)"
            )
        left = pipeline.config.timeout
        if exchange.deadline is not None:
            left = min(left, _seconds_left(exchange.deadline, loop.time() - exchange.started))
        fetching = _Fetching(self._fetch(url, left))
        exchange.runs = (fetching,)
        if exchange.helper is not None:  # the body came slowly; its timer is not for this
            exchange.listen()
        return await fetching.task

    async def _answer_many(
        self,
        pipeline: Pipeline,
        images: Sequence[bytes],
        timeout: float | None,
        priority: int | None,
        exchange: _PredictExchange,
    ) -> bytes:
        """Each image is an item of its own: what is refused or fails is a problem in its place.

        Where no image was let in, the request is: raises why.
        """
        outcomes: list[Submission | Exception] = []
        runs: list[Submission] = []
        exchange.runs = runs  # whatever happens from here on, they are left
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
        results: list[orjson.Fragment] = []
        for outcome in outcomes:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                item: Item = await outcome.future
                if "error" in item:
                    raise item["error"]
                results.append(orjson.Fragment(write_item(item, outcome, pipeline)))
            except PenstockError as error:
                results.append(orjson.Fragment(problem(error, exchange.request_id)[2]))
        return to_json({"results": results})


class _Fetching:
    """The fetching of an image, as what the watch drops when the client leaves: a task of its own, for the request's goes on to say so."""

    def __init__(self, fetching: Awaitable[bytes]) -> None:
        self.task = asyncio.ensure_future(fetching)

    def leave(self) -> None:
        self.task.cancel()


def _whole(body: bytes, many: bool) -> bytes:
    """The body as it is, for one image."""
    if many:
        raise UnsupportedMedia(
            "several images come as multipart/form-data (field 'images') or as JSON {\"images\": [base64, …]}"
        )
    if not body:
        raise InvalidRequest("the body is empty; it should be the image")
    return body


def _seconds_left(deadline: bytes, elapsed: float) -> float:
    """Of a Penstock-Deadline-Ms that counts from the request's first byte."""
    try:
        milliseconds = float(deadline)
    except ValueError:
        milliseconds = -1.0
    if not 0 < milliseconds < float("inf"):
        raise InvalidRequest("Penstock-Deadline-Ms is a positive number of milliseconds")
    seconds = milliseconds / 1000 - elapsed
    if seconds <= 0:
        raise DeadlineExceeded("the deadline passed before the body had arrived")
    return seconds


def _priority(value: bytes) -> int:
    if not value.isdigit() or len(value) > 9:
        raise InvalidRequest("Penstock-Priority is a whole number, 1 is the highest")
    return int(value)


def server_timing(run: Submission) -> bytes:
    """The `Server-Timing` header: for each node the milliseconds in its queue and on its executor, and the rows of the batch."""
    if (
        type(run) is Run and run.stages is None and (batch := run.batch) is not None
    ):  # one node: no list, no tuple
        return _timing(
            batch.node, batch.started - run.enqueued, batch.ended - batch.started, batch.size
        )
    return b", ".join([_timing(*stage) for stage in run.timings()])


def _timing(node: str, queue: float, seconds: float, size: int) -> bytes:
    return f'queue.{node};dur={queue * 1000:.3f}, run.{node};dur={seconds * 1000:.3f};desc="batch {size}"'.encode(
        "latin-1", "replace"
    )
