"""Answers as Server-Sent Events, for clients that accept `text/event-stream`: one event a part.

The `data:` of an event is a plain answer. The last event is `end`, or `error` with a problem; a
connection that ends without either has broken. An error before the first part is an ordinary answer
with its status.

The next part is requested after the server has taken the previous one; it takes none while the
client isn't reading. So the pipeline goes as fast as its reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from starlette.types import Send

from penstock.backends.errors import forget_frames
from penstock.backends.item import Item
from penstock.backends.memory import Reservation
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.runs.stream import Parts
from penstock.pipelines.runs.trace import Trace

from ..history.record import CLIENT_LEFT_STATUS, Failure
from .errors import failure_of, log_failure, problem_object
from .render import write_item

logger = logging.getLogger("penstock.http")

EVENTS_MEDIA_TYPE = "text/event-stream"
ENDLESS = "penstock.endless"
"""Set in the ASGI scope of a request whose events end only when its client leaves. A server that
drains need not wait until such a client has read them.
"""
EVENT_HEADERS = [
    (b"content-type", EVENTS_MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # otherwise nginx would collect the events first
]


def wants_events(accept: bytes) -> bool:
    """Return whether an `Accept` header (RFC 9110, 12.5.1) asks for events.

    It must name them (a wildcard is not enough), with a higher `q` than JSON: generated clients
    list every media type that they know of.
    """
    if b"event-stream" not in accept.lower():
        return False
    ranges = dict(_quality(media_range) for media_range in accept.lower().split(b","))
    return ranges.get(b"text/event-stream", 0.0) > ranges.get(b"application/json", 0.0)


def _quality(media_range: bytes) -> tuple[bytes, float]:
    """Split a media range into its type and its `q`, 1 if that is missing or malformed."""
    name, *parameters = media_range.split(b";")
    for parameter in parameters:
        key, _, value = parameter.partition(b"=")
        if key.strip() == b"q":
            try:
                return name.strip(), float(value)
            except ValueError:
                break
    return name.strip(), 1.0


class EventStream:
    """The events of one request. The caller calls `run.leave` when they have ended.

    Subclasses say what the events hold.
    """

    headers: Sequence[tuple[bytes, bytes]] = EVENT_HEADERS

    def __init__(self, run: Submission, pipeline: Pipeline, request_id: str) -> None:
        self._pipeline = pipeline
        self._request_id = request_id
        self._read = Parts(run)
        self._ended = False
        self.parts = 0
        self.status = CLIENT_LEFT_STATUS  # until the last event is sent
        self.failure: Failure | None = None  # what the last event says

    async def answer(self, send: Send, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Wait for the first part, then send the head with `headers` added, and all events.

        Raises what fails before the head is sent.
        """
        event = await self._next_part()
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [*self.headers, *headers],
                }
            )
            while not self._ended:
                await send({"type": "http.response.body", "body": event, "more_body": True})
                event = await self._next_event()
            self.status = 200
            await send({"type": "http.response.body", "body": event})
        except OSError:
            return  # the client has left: servers of ASGI 2.4 report it like this
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the server, or a host, cancels the request itself
            # Otherwise the client has left, and the watch has dropped the item.

    async def _next_part(self) -> bytes:
        """Return the event of the next part, or what ends the stream."""
        async for part in self._read:
            self.parts += 1
            return await self._event(part)
        self._ended = True
        return self._end()

    async def _next_event(self) -> bytes:
        """Do as `_next_part`. If the request fails, return the event that says so."""
        try:
            return await self._next_part()
        except Exception as error:
            log_failure(error, self._request_id, self._pipeline.name)
            self._ended = True
            self.failure = failure_of(error)
            last = self._failed(error)
            forget_frames(error)
            return last

    async def _event(self, part: Item) -> bytes:
        """Return the event of a part. Raises the error of one that can't be written."""
        raise NotImplementedError

    def _failed(self, error: Exception) -> bytes:
        """Return the event that ends a stream that has failed."""
        raise NotImplementedError

    def _end(self) -> bytes:
        """Return the event that ends a stream, b"" if none does."""
        return b""


class PredictEvents(EventStream):
    """The events of a predict request."""

    def __init__(
        self,
        run: Submission,
        pipeline: Pipeline,
        request_id: str,
        trace: Trace | None,
        memory: Reservation,
    ) -> None:
        """`trace`, if any, goes into the last event. `memory` is the request's."""
        super().__init__(run, pipeline, request_id)
        self._run = run
        self._memory = memory
        self._held = memory.size
        self._trace = trace

    async def _event(self, part: Item) -> bytes:
        # One line: line breaks inside JSON strings are escaped.
        self._memory.resize(self._held, "an answer")  # the last part has been sent
        return event_of(await write_item(part, self._run, self._pipeline, self._memory))

    def _failed(self, error: Exception) -> bytes:
        return self._last("error", problem_object(error, self._request_id))

    def _end(self) -> bytes:
        return self._last("end", {"parts": self.parts})

    def _last(self, name: str, fields: dict[str, Any]) -> bytes:
        if self._trace is not None:
            fields["trace"] = self._trace.steps
        return b"event: %s\n%s" % (name.encode(), event_of(orjson.dumps(fields)))


def event_of(text: bytes) -> bytes:
    """Return an event that holds a line of JSON."""
    return b"data: %s\n\n" % text
