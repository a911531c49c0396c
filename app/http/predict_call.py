"""`PredictCall`: one predict request, without what carries it.

Every rule of a predict request is here once: keys, limits, deadlines, budget, priorities, trace,
the answer and its errors. What carries the bytes calls the steps in order: `begin` with the head,
`takes_long` and `read` with the body, `ready`, `submit`, then `write` or `failure`. `Predict`
(predict.py) does so as an ASGI app, `DirectPredict` (direct_predict.py) from a connection's
callbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from penstock.backends.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    UnsupportedMedia,
    forget_frames,
)
from penstock.backends.item import Item
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.cache.request import cached
from penstock.pipelines.node.queue import Batch
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.passed import Passed
from penstock.pipelines.runs.run import Run, Submission
from penstock.pipelines.runs.trace import Trace
from penstock.pipelines.sequences.step import Step, steps_of

from ..history.record import CLIENT_LEFT_STATUS, Door, Failure
from ..history.ring import History
from ..settings import Settings
from ..trace.tracing import ROUTES, Tracing
from .auth import check_trace
from .body import reserve_body, small_body
from .compression import window_of
from .errors import Problem, log_failure, problem
from .events import wants_events
from .inputs.form_body import form_of
from .inputs.json_body import Link
from .inputs.media import Media
from .inputs.reader import InputReader
from .json_text import JsonLimits
from .render import write_item, write_small
from .request_id import choose_request_id, new_request_id
from .restriction import restriction_of
from .sequence_query import step_of

JSON_HEADER = (b"content-type", b"application/json")


class Pipelines(Protocol):
    """The pipelines by name, such as a `Repository`."""

    @property
    def pipelines(self) -> dict[str, Pipeline]: ...
    def get(self, name: str) -> Pipeline: ...


Fetch = Callable[[str, float | None, Reservation], Awaitable[bytes]]
"""Fetches the image at a URL within a number of seconds, and reserves its memory (`fetch.py`)."""


class PredictRules:
    """The settings and helpers that all predict requests of an app share.

    `fetch`: None if images by URL are not allowed. `history`: None if no requests are remembered.
    `tracing`: None if none are traced. `notes`: at least one of the two is there.
    """

    __slots__ = (
        "_readers",
        "fetch",
        "has_key",
        "history",
        "json",
        "max_body",
        "max_images",
        "notes",
        "pipelines",
        "remember",
        "restriction",
        "settings",
        "tracing",
    )

    def __init__(
        self,
        pipelines: Pipelines,
        settings: Settings,
        fetch: Fetch | None,
        history: History | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.pipelines = pipelines
        self.history = history
        self.tracing = tracing
        self.notes = history is not None or tracing is not None
        # A slot that is looked up and called at once would cost 300 instructions more.
        self.remember = None if history is None else history.append
        self.settings = settings
        # Looked up in `settings` they would cost each request some hundred nanoseconds (pydantic).
        self.max_body = settings.max_body
        self.max_images = settings.max_images
        self.has_key = settings.api_key is not None
        self.fetch = fetch
        self.restriction = restriction_of(settings.restricted_api) or None
        self.json = JsonLimits(settings.max_json_depth, settings.max_json_values)
        # Weak: a pipeline that was unloaded lets go of its models.
        self._readers: WeakKeyDictionary[Pipeline, InputReader] = WeakKeyDictionary()

    def reader_of(self, pipeline: Pipeline) -> InputReader:
        """Return the reader of a pipeline's bodies, made once.

        Raises `NotReady` for a pipeline that is not: only loading tells what its engines take.
        """
        reader = self._readers.get(pipeline)
        if reader is None:
            if pipeline.state != "ready":
                raise NotReady(f"pipeline {pipeline.name!r} is {pipeline.state}")
            reader = self._readers[pipeline] = InputReader(pipeline)
        return reader


class PredictHead:
    """The head of a predict request. Read-only: requests with the same head share it.

    `small_body`: the size of a small body, 0 if it is not small or not known.
    """

    __slots__ = (
        "accept",
        "content_type",
        "deadline",
        "encoding",
        "fields",
        "length",
        "many",
        "name",
        "priority",
        "query",
        "request_id",
        "small_body",
        "trace",
        "traceparent",
        "tracestate",
    )

    def __init__(
        self, name: str, many: bool, fields: Sequence[tuple[bytes, bytes]], query: bytes = b""
    ) -> None:
        """`many`: of several images, each gets a result or a problem."""
        self.query = query
        self.name = name
        self.many = many
        self.fields = fields
        # If a header is repeated, the last one counts.
        get = dict(fields).get
        self.content_type = get(b"content-type")
        self.length = get(b"content-length")
        self.small_body = small_body(self.length)
        self.encoding = get(b"content-encoding")
        self.deadline = get(b"penstock-deadline-ms")
        self.accept = get(b"accept")
        self.trace = get(b"penstock-trace")
        self.priority = get(b"penstock-priority")
        self.request_id = get(b"x-request-id")
        self.traceparent = get(b"traceparent")
        self.tracestate = get(b"tracestate")

    @property
    def asks_for_events(self) -> bool:
        return self.accept is not None and self.accept != b"*/*" and wants_events(self.accept)


class PredictCall(Run):
    """A predict request, and how far it has come. In a chain it is also its run.

    `first_byte` is when that came, on the loop's clock, in seconds. The fields of a run are set by
    `submit`, but for `context`, `request_id`, `trace` and `wanted`.
    """

    __slots__ = (
        "first_byte",
        "head",
        "media",
        "memory",
        "pipeline",
        "reader",
        "rules",
        "timeout",
        "window",
    )

    def __init__(
        self,
        rules: PredictRules,
        head: PredictHead,
        first_byte: float,
        client: str | None,
        request_id: str = "",
    ) -> None:
        """`client`: who sent it, as `client_of` says."""
        self.rules = rules
        self.head = head
        self.first_byte = first_byte
        self.client = client
        self.wanted = None
        self.trace = None
        self.context = None
        self.memory = Reservation(budget)
        self.request_id = request_id or (
            new_request_id() if head.request_id is None else choose_request_id(head.request_id)
        )

    def begin(self) -> None:
        """Check what the head asks for, and reserve the memory of the body.

        Raises the error of a request that has to be refused; so do the other steps.
        """
        rules, head = self.rules, self.head
        if rules.restriction is not None:
            rules.restriction.check("inference", {"headers": head.fields})
        name = head.name
        pipelines = rules.pipelines
        self.pipeline = pipeline = pipelines.pipelines.get(name) or pipelines.get(name)
        if (tracing := rules.tracing) is not None:
            sampler = tracing.settings.shared
            if sampler.left > 1 and head.traceparent is None:  # as `sample`, without a call
                sampler.left -= 1
            else:
                self.context = tracing.sample(pipeline.name, head.traceparent, head.tracestate)
        self.reader = rules.reader_of(pipeline)
        self.media = self._media()
        self.window = 0 if head.encoding is None else _window(head.encoding)
        self.timeout = None if head.deadline is None else seconds_left(head.deadline, 0.0)
        if head.priority is not None:
            self.wanted = priority_of(head.priority)
        if head.trace is not None:
            self.trace = self._trace(head.trace)
        pipeline.check_admission(self.timeout, self.wanted, self.client)
        size = head.small_body
        if head.length is None or pipeline.stream_input is not None:
            pass
        elif 0 < size <= rules.max_body:  # as `reserve_body`, without its calls
            budget.reserve(size, "a body")
            self.memory.size = size
        else:
            reserve_body(head.length, rules.max_body, self.memory)

    def takes_long(self, body: bytes) -> bool:
        """Return whether the body, which is here, has to be read on a helper thread."""
        if self.pipeline.state != "ready":  # replaced during the upload: the new one answers
            self.pipeline = self.rules.pipelines.get(self.head.name)
            self.reader = self.rules.reader_of(self.pipeline)
            self.media = self._media()
        return self.reader.takes_long(body, self.media)

    def _media(self) -> Media:
        content_type = self.head.content_type
        if self.head.many:
            return self.reader.media_of_several(content_type)
        return self.reader.media_of(content_type)

    def read(self, body: bytes) -> Item:
        """Read the item of a request that has one, after `takes_long` was asked."""
        rules = self.rules
        item = self.reader.read(body, self.media, self.memory, rules.json, rules.max_images)
        if self.reader.takes_headers:
            item["headers"] = self._headers()
            if self.media.form == "raw":
                most = rules.max_images
                item["form"] = form_of(body, self.head.content_type, self.memory, most)
        return item

    def read_many(self, body: bytes) -> list[Item]:
        """Read the items of a request that has several."""
        rules = self.rules
        items = self.reader.read_many(body, self.media, self.memory, rules.json, rules.max_images)
        if self.reader.takes_headers:
            headers = self._headers()
            for of_the_body in ("content-type", "content-length"):  # no item is the body
                headers.pop(of_the_body, None)
            for item in items:
                item["headers"] = dict(headers)
        return items

    def _headers(self) -> dict[str, str]:
        """Return the headers for a backend that reads them, names in lower case."""
        fields = self.head.fields
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}

    def link_in(self, item: Item) -> Link | None:
        """Return the URL that stands for the image of an item, if one does.

        Raises `InvalidRequest` for one if the app fetches none.
        """
        link = self.reader.link_in(item)
        if link is not None and self.rules.fetch is None:
            raise InvalidRequest(
                "images by URL are off: the operator has not allowed them (allow_url); "
                "send the image itself"
            )
        return link

    def ready(self, now: float) -> None:
        """Bring up to date what may have changed while the body was read: the time that is left,
        and the pipeline.
        """
        deadline = self.head.deadline
        if deadline is not None:
            self.timeout = seconds_left(deadline, now - self.first_byte)
        if self.pipeline.state != "ready":  # replaced while a helper thread read
            self.pipeline = self.rules.pipelines.get(self.head.name)

    def submit(self, item: Item, future: asyncio.Future[Item] | None = None) -> Submission:
        """Submit the item of a request that has one."""
        if self.head.query:
            return self._submit_step(item, future)
        return self.pipeline.submit_nowait(
            item,
            self.timeout,
            self.wanted,
            future,
            self.request_id,
            self.trace,
            self,
            self.client,
            None,
            None,
            self.context,
            True,  # it only reads the answer; by names these would cost more
        )

    def submit_passed(
        self, passed: Passed, future: asyncio.Future[Item] | None = None
    ) -> Submission:
        """Submit a request that has passed the front nodes in a front process, after `begin`."""
        return self.pipeline.submit_passed(
            passed, self.wanted, future, self.request_id, self, self.client, self.context
        )

    def _submit_step(self, item: Item, future: asyncio.Future[Item] | None) -> Submission:
        """Submit an item that may be a step of a sequence, with a run of its own.

        A step waits for its turn, so what is known of requests that are their own run would be
        wrong of it.
        """
        return self.pipeline.submit_nowait(
            item,
            self.timeout,
            self.wanted,
            future,
            self.request_id,
            self.trace,
            client=self.client,
            sequence=self.step(),
            context=self.context,
            reads_only=True,
        )

    def step(self) -> Step | None:
        """Return the step of a sequence that the request is, if it is one."""
        return step_of(self.head.query)

    def steps(self, count: int) -> Sequence[Step | None]:
        """Return the steps of a request of `count` items, in their order."""
        step = self.step()
        if step is None:
            return [None] * count
        return steps_of(count, step.id, step.start, step.end)

    def write(self, item: Item, run: Submission) -> bytes | None:
        """Write the body of the answer from the final item; None if `write_large` has to.

        Raises the item's error, if it has one. `success` makes the answer from the body.
        """
        if "error" in item:
            raise item["error"]
        return write_small(item, run, self.pipeline, self.memory, self.trace)

    async def write_large(self, item: Item, run: Submission) -> bytes:
        """Write the same on a helper thread."""
        return await write_item(item, run, self.pipeline, self.memory, self.trace)

    def failure(self, error: BaseException) -> Problem:
        """Make the answer to a request that ended with `error`, and log it if it is ours."""
        log_failure(error, self.request_id, self.head.name)
        more = {} if self.trace is None else {"trace": self.trace.steps}
        answer = problem(error, self.request_id, **more)
        forget_frames(error)
        return answer

    def pipeline_name(self) -> str | None:
        """Return the pipeline's name, for the log; None if there is none of the asked name."""
        pipeline: Pipeline | None = getattr(self, "pipeline", None)
        return None if pipeline is None else pipeline.name

    def remember(
        self,
        door: Door,
        status: int,
        failure: Failure | None,
        runs: Sequence[Submission],
    ) -> None:
        """Put the request, which ends now, into the history and into its trace, if there are any.

        A request without a good key leaves none.
        """
        if self.context is not None:
            self.end_trace(door, status, failure, runs)
        history = self.rules.history
        if history is not None and status != 401:
            pipeline: Pipeline | None = getattr(self, "pipeline", None)
            pace = None if pipeline is None else pipeline.pace
            history.add(
                self.request_id,
                pace,
                door=door,
                status=status,
                failure=failure,
                started=self.first_byte,
                runs=runs,
            )

    def end_trace(
        self, door: Door, status: int, failure: Failure | None, runs: Sequence[Submission]
    ) -> None:
        """Hand over the request, which ends now, if it is traced."""
        context, self.context = self.context, None
        tracing = self.rules.tracing
        if tracing is not None and context is not None:
            tracing.end(
                context,
                ROUTES[door],
                self.request_id,
                self.pipeline.pace,
                door=door,
                status=status,
                failure=failure,
                started=self.first_byte,
                runs=runs,
            )

    def _trace(self, wanted: bytes) -> Trace | None:
        """Make the request's trace; None if `wanted`, its Penstock-Trace, is 0.

        Raises `Forbidden` or `Unauthorized` if the client may not see one, `InvalidRequest`.
        """
        if wanted == b"0":
            return None
        check_trace({"headers": self.head.fields}, self.rules.settings)
        if wanted != b"1" or self.head.many:
            raise InvalidRequest(
                "Penstock-Trace is malformed: expected 0, or 1 with a request of one item"
            )
        return Trace()


def client_left() -> Problem:
    """Make the answer to a client that has left."""
    return CLIENT_LEFT_STATUS, [(b"content-length", b"0")], b""


def _window(encoding: bytes) -> int:
    """Return zlib's `wbits` for a Content-Encoding. Raises `UnsupportedMedia`."""
    try:
        return window_of(encoding)
    except KeyError as error:
        raise UnsupportedMedia(
            f"the content encoding {error.args[0]!r} is not understood; send gzip, deflate or an "
            "uncompressed body"
        ) from None


def seconds_left(deadline: bytes, elapsed: float) -> float:
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


def priority_of(value: bytes) -> int:
    """Parse Penstock-Priority. Raises `InvalidRequest`."""
    if not value.isdigit() or len(value) > 9:
        raise InvalidRequest(
            "Penstock-Priority is malformed: expected a whole number, of which 1 is the highest"
        )
    return int(value)


def success(body: bytes, timing: bytes) -> Problem:
    """Make the answer to a request of one image. `timing`: its `server_timing`."""
    headers = [
        JSON_HEADER,
        (b"content-length", b"%d" % len(body)),
        (b"server-timing", timing),
    ]
    return 200, headers, body


def server_timing(run: Submission) -> bytes:
    """Make the `Server-Timing` header.

    It has, for each node, the milliseconds in its queue and on its executor, and the rows of the
    batch. An answer from the cache has passed no node.
    """
    if cached(run) is not None:
        return b'cache;desc="hit"'
    return b", ".join([_timing(*stage) for stage in run.timings()])


def _timing(node: str, queue: float, seconds: float, size: int) -> bytes:
    before, after = _shared_timing(node, seconds, size)
    return b"%b%.3f%b" % (before, queue * 1000, after)


def timing_of_batch(batch: Batch) -> tuple[bytes, bytes]:
    """Return the `Server-Timing` of an item's only batch, before and after the milliseconds in the
    queue. The items of the batch share it.
    """
    if batch.memo is None:
        batch.memo = _shared_timing(batch.node, batch.ended - batch.started, batch.size)
    parts: tuple[bytes, bytes] = batch.memo
    return parts


def _shared_timing(node: str, seconds: float, size: int) -> tuple[bytes, bytes]:
    run = f'run.{node};dur={seconds * 1000:.3f};desc="batch {size}"'
    return (
        f"queue.{node};dur=".encode("latin-1", "replace"),
        f", {run}".encode("latin-1", "replace"),
    )
