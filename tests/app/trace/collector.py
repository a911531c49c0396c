"""A collector: an OTLP receiver over HTTP that keeps what it gets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_SECONDS = 60


class Span:
    """A span as it came, with its attributes as a dict."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.name: str = span.name
        self.trace_id: str = span.trace_id.hex()
        self.span_id: str = span.span_id.hex()
        self.parent_id: str = span.parent_span_id.hex()
        self.state: str = span.trace_state
        self.kind: int = span.kind
        self.start: int = span.start_time_unix_nano
        self.end: int = span.end_time_unix_nano
        self.attributes = _dict_of(span.attributes)
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.error: bool = span.status.code == 2
        self.message: str = span.status.message
        self.resource = resource

    @property
    def place(self) -> tuple[str, str]:
        return self.trace_id, self.span_id


class Collector:
    """The spans that came. `answer` is the status of the next answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []
        self.answer = 200
        self.headers: dict[str, str] = {}
        self.changed = threading.Condition()

    def add(self, body: bytes, headers: dict[str, str]) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.changed:
            self.headers = headers
            for of_resource in request.resource_spans:
                resource = _dict_of(of_resource.resource.attributes)
                for scope in of_resource.scope_spans:
                    self.spans += [Span(span, resource) for span in scope.spans]
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Wait until what `condition` returns is true, and return it."""
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_SECONDS), [one.name for one in self.spans]
            return condition()

    def of(self, request_id: str) -> list[Span]:
        """Wait for the spans of a request: its own first, then those of its nodes as they began."""

        def found() -> list[Span]:
            for one in self.spans:
                if one.attributes.get("penstock.request_id") == request_id:
                    same = [other for other in self.spans if other.trace_id == one.trace_id]
                    return [one, *sorted((s for s in same if s is not one), key=lambda s: s.start)]
            return []

        spans: list[Span] = self.wait_for(found)
        return spans


def _dict_of(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in attributes}


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """Run a collector."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if collector.answer == 200:
                collector.add(body, dict(self.headers))
            self.send_response(collector.answer)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None: ...  # noqa: A002

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
