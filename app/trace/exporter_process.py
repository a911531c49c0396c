"""The child that makes OpenTelemetry's spans of traced requests and exports them (exporter.py).

It is the only process that has OpenTelemetry's SDK. The standard variables OTEL_EXPORTER_OTLP_…,
OTEL_BSP_SCHEDULE_DELAY, OTEL_BSP_MAX_EXPORT_BATCH_SIZE, OTEL_RESOURCE_ATTRIBUTES and
OTEL_SERVICE_NAME hold.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import orjson
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from .spans import SpanMaker

MAX_MESSAGE_BYTES = 1 << 20

DELAY_MS = 5000
BATCH_SPANS = 512
"""Spans are exported after so long, or when there are so many, unless the environment says so."""


class Export:
    """Gathers the spans of requests, and exports them together."""

    def __init__(self, told: socket.socket, start: dict[str, Any]) -> None:
        self._told = told
        self._delay = _variable("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS) / 1000
        self._most = _variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS)
        self._last_message = _LastMessage()
        logging.getLogger().addHandler(self._last_message)
        self._exporter = OTLPSpanExporter(endpoint=start["url"])
        resource = {"service.name": "penstock", **_of_environment(), **start["resource"]}
        self._maker = SpanMaker(Resource.create(resource), start["version"])
        self._spans: list[ReadableSpan] = []
        self._requests = 0
        self._due = 0.0

    def wait_seconds(self) -> float | None:
        """Return how long to wait for more; None for ever."""
        if not self._spans and not self._maker.batches:
            return None
        return max(0.0, self._due - time.monotonic())

    def add(self, message: Any) -> None:
        if self.wait_seconds() is None:
            self._due = time.monotonic() + self._delay
        self._spans += self._maker.spans_of(message)
        self._requests += 1
        if len(self._spans) >= self._most:
            self.send()

    def send(self, *, last: bool = False) -> None:
        """Export what there is. `last`: also batches of which more requests may come."""
        spans = [*self._spans, *self._maker.batches_before(None if last else self._delay)]
        requests, self._spans, self._requests = self._requests, [], 0
        self._due = time.monotonic() + self._delay
        if not spans:
            return
        self._last_message.text = ""
        try:
            good = self._exporter.export(spans) is SpanExportResult.SUCCESS
            error = self._last_message.text or "the collector refuses them"
        except Exception as raised:
            good, error = False, f"{type(raised).__name__}: {raised}"
        told = [requests, 0, ""] if good else [0, requests, error[:500]]
        self._told.send(orjson.dumps(told))


class _LastMessage(logging.Handler):
    """Keeps what the exporter logged last: it tells no one else why an export failed."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) else default


def _of_environment() -> dict[str, str]:
    """Return the service's name that the environment gives: ours is only the default."""
    if name := os.environ.get("OTEL_SERVICE_NAME"):
        return {"service.name": name}
    for entry in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = entry.partition("=")
        if key.strip() == "service.name":
            return {"service.name": value.strip()}
    return {}


def main(arguments: Sequence[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ends it, by closing the socket
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(arguments[0])) as server:
        try:
            export = Export(server, orjson.loads(server.recv(MAX_MESSAGE_BYTES)))
            while True:
                readable, _, _ = select.select([server], [], [], export.wait_seconds())
                if not readable:
                    export.send()
                elif message := server.recv(MAX_MESSAGE_BYTES):
                    export.add(orjson.loads(message))
                else:
                    export.send(last=True)
                    return
        except OSError:  # the server has gone
            return


if __name__ == "__main__":
    main(sys.argv[1:])
