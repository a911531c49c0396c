"""OpenTelemetry's spans of a traced request: of the request, of its nodes, and of its batches.

A batch runs for several requests, so it belongs to no trace of them. It is a span in a trace of its
own, with links to the nodes' spans that it ran for, and they have links to it.

Names follow the semantic conventions where they fit: `http.…`, `rpc.…`, `error.type`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

MAX_OPEN_BATCHES = 1024
"""The most batches that wait for more of their requests."""

MAX_LINKS = 128
"""The most requests that a batch's span links to, as OpenTelemetry's default is."""

SAMPLED = TraceFlags(TraceFlags.SAMPLED)

GRPC_CODES = {
    200: 0,
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    409: 6,
    413: 8,
    422: 3,
    429: 14,
    499: 1,
    501: 12,
    503: 14,
    504: 4,
}
"""gRPC's status codes by the protocol's HTTP statuses; 13 (internal) for any other."""

GOOD_OUTCOMES = ("ok", "bad input", "left")
"""Outcomes that are no error of the server's."""


class Run(NamedTuple):
    """What ran for a visit. `parts` are visits.

    `why`: executor, device, rule and most rows of its batch, and when that started, by the clock of
    records. None if it was no batch: a composite's.
    """

    started: int
    ended: int
    rows: int
    why: list[Any] | None
    parts: list[list[Any]]


class SpanMaker:
    """Makes spans of messages (`exporter.message_of`).

    `batches` has those that wait for more of their requests.
    """

    def __init__(self, resource: Resource, version: str) -> None:
        self.batches: dict[tuple[str, float], _OpenBatch] = {}
        self._resource = resource
        self._scope = InstrumentationScope("penstock", version)
        self._random = Random()
        self._key = self._random.randbytes(16)

    def spans_of(self, message: list[Any]) -> Iterator[ReadableSpan]:
        """Yield the spans of a request and of its nodes, and note its batches."""
        (
            trace_id,
            span_id,
            parent_id,
            tracestate,
            route,
            request_id,
            pipeline,
            version,
            status,
            outcome,
            failure,
            started,
            ended,
            rows,
            visits,
            more,
            answered_from,
            turn_ms,
        ) = message
        state = TraceState.from_header([tracestate]) if tracestate else None
        context = SpanContext(int(trace_id, 16), int(span_id, 16), False, SAMPLED, state)
        attributes: dict[str, Any] = {
            **_of_route(route, status),
            "penstock.pipeline": pipeline,
            "penstock.version": version,
            "penstock.request_id": request_id,
            "penstock.rows": rows,
        }
        if more:
            attributes["penstock.more_visits"] = more
        if answered_from:
            attributes["penstock.answered_from"] = answered_from
        if turn_ms is not None:
            attributes["penstock.turn_ms"] = turn_ms
        told = None
        if outcome not in GOOD_OUTCOMES:
            code, detail = failure or (outcome, "")
            told = Status(StatusCode.ERROR, detail or code)
        if outcome != "ok":
            attributes["error.type"] = failure[0] if failure else outcome
        parent = None
        if parent_id:
            parent = SpanContext(context.trace_id, int(parent_id, 16), True, SAMPLED, state)
        yield self._span(
            route,
            context,
            parent,
            (started, ended),
            attributes,
            kind=SpanKind.SERVER,
            status=told,
        )
        yield from self._nodes(visits, context, ended, pipeline)

    def _nodes(
        self, visits: list[list[Any]], parent: SpanContext, ended: int, pipeline: str
    ) -> Iterator[ReadableSpan]:
        """Yield the spans of nodes; those of parts are children of their composite's."""
        many = any(visit[0] for visit in visits)
        for item, node, enqueued, *ran in visits:
            context = self._child_of(parent)
            attributes: dict[str, Any] = {"penstock.pipeline": pipeline, "penstock.node": node}
            if many:
                attributes["penstock.item"] = item
            if not ran:
                attributes["penstock.unfinished"] = True
                yield self._span(node, context, parent, (enqueued, ended), attributes)
                continue
            run = Run(*ran)
            started = max(run.started, enqueued)
            attributes["penstock.queue_ms"] = (started - enqueued) / 1e6
            links: list[Link] = []
            events: list[Event] = []
            if run.why is not None:
                attributes |= _of_batch(run)
                links.append(Link(self._batch(node, run, run.why, context)))
                events.append(Event("run", timestamp=started))
            yield self._span(
                node,
                context,
                parent,
                (enqueued, run.ended),
                attributes,
                links=links,
                events=events,
            )
            if run.parts:
                yield from self._nodes(run.parts, context, ended, pipeline)

    def _batch(self, node: str, run: Run, why: list[Any], link: SpanContext) -> SpanContext:
        """Note a batch that ran for the span `link`, and return the batch's context."""
        key = why[0], why[-1]
        batch = self.batches.get(key)
        if batch is None:
            batch = self.batches[key] = _OpenBatch(self._context_of(key), node, run)
        if len(batch.links) < MAX_LINKS:
            batch.links.append(Link(link))
        return batch.context

    def batches_before(self, seconds: float | None) -> Iterator[ReadableSpan]:
        """Yield the spans of batches that have waited for so long; None: all. They wait no more."""
        until = float("inf") if seconds is None else time.monotonic() - seconds
        while self.batches:
            key = next(iter(self.batches))
            batch = self.batches[key]
            if batch.since > until and len(self.batches) <= MAX_OPEN_BATCHES:
                return
            del self.batches[key]
            run = batch.run
            yield self._span(
                f"batch {batch.node}",
                batch.context,
                None,
                (run.started, run.ended),
                {"penstock.node": batch.node, **_of_batch(run)},
                links=batch.links,
            )

    def _context_of(self, key: tuple[str, float]) -> SpanContext:
        """Make the context of a batch's span, the same for all that know the batch."""
        digest = blake2b(f"{key[0]}/{key[1]}".encode(), key=self._key, digest_size=24).digest()
        trace_id, span_id = int.from_bytes(digest[:16]), int.from_bytes(digest[16:])
        return SpanContext(trace_id or 1, span_id or 1, False, SAMPLED)

    def _child_of(self, parent: SpanContext) -> SpanContext:
        span_id = self._random.getrandbits(64) or 1
        return SpanContext(parent.trace_id, span_id, False, SAMPLED, parent.trace_state)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        times: tuple[int, int],
        attributes: dict[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        events: Sequence[Event] = (),
        status: Status | None = None,
    ) -> ReadableSpan:
        """`times`: begin and end, nanoseconds since 1970."""
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            events=events,
            links=links,
            kind=kind,
            status=status or Status(),
            start_time=times[0],
            end_time=max(times),
            instrumentation_scope=self._scope,
        )


class _OpenBatch:
    """A batch, and links to the spans of nodes that it ran for. `since`: when it was noted."""

    def __init__(self, context: SpanContext, node: str, run: Run) -> None:
        self.context = context
        self.node = node
        self.run = run
        self.links: list[Link] = []
        self.since = time.monotonic()


def _of_batch(run: Run) -> dict[str, Any]:
    executor, device, rule, most, _ = run.why or ("", "", "", 0, 0.0)
    attributes: dict[str, Any] = {
        "penstock.instance": executor,
        "penstock.batch.rows": run.rows,
        "penstock.batch.max": most,
        "penstock.batch.rule": rule,
    }
    return attributes | ({"penstock.device": device} if device else {})


def _of_route(route: str, status: int) -> dict[str, Any]:
    """Return the attributes of the semantic conventions."""
    method, _, path = route.partition(" ")
    if path:
        return {
            "http.request.method": method,
            "http.route": path,
            "http.response.status_code": status,
        }
    service, _, name = route.rpartition("/")
    return {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": name,
        "rpc.grpc.status_code": GRPC_CODES.get(status, 13),
    }
