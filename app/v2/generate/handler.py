"""The generate routes: an infer request as a plain JSON object, and its answers as such objects.

`/generate` answers with one object, `/generate_stream` with a Server-Sent Event for each part of
the answer. An error before the first part is an ordinary answer with its status; a later one is an
event, and the last.
"""

from __future__ import annotations

import time

import orjson

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import Item
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.runs.stream import Parts

from ...http.events import EVENT_HEADERS, EventStream, event_of
from ...http.json_text import parse_json, parsed_bytes
from ..call import JSON_HEADER, ProtocolAnswer, ProtocolCall, Route, Sent, error_answer
from ..infer.handler import Infer
from ..infer.infer_call import READ_OFF_LOOP_BYTES, InferCall
from ..infer.request import held_bytes, parse
from ..models.description import MODEL_PATH
from .mapping import check_repeated, infer_document, write_object

WRONG_COUNT = (
    "generate expects model to produce exactly 1 response, use generate stream for model that "
    "generates various number of responses"
)

LOAD_FORMAT_HEADER = b"endpoint-load-metrics-format"
LOAD_HEADER = b"endpoint-load-metrics"


class GenerateCall(InferCall):
    """A generate request."""

    __slots__ = ()

    in_stream = True

    def take(self, text: bytes, blobs: memoryview) -> bool:
        self._arrived = time.monotonic()
        if len(text) >= READ_OFF_LOOP_BYTES or self.model.decodes:
            return False
        self.read(text, blobs)
        return True

    def read(self, text: bytes, blobs: memoryview) -> None:
        request, model, memory = self.request, self.model, self.memory
        before = memory.size
        document = parse_json(text or b"{}", self.rules.json, memory)
        parsed = memory.size - before
        check_repeated(text, model)
        parse(request, infer_document(document, model), blobs, model, self.rules.regions)
        request.binary = False  # answers are JSON, whatever a parameter says
        kept = min(parsed, parsed_bytes(text) - len(text) + held_bytes(request.item))
        memory.resize(memory.size - parsed + kept, "a parsed body")

    async def answer(self, item: Item, run: Submission) -> bytes:
        """Return the JSON object of the final item of `run`, or of one of its parts."""
        return await self.write_part(
            item, run, lambda chosen: write_object(self.request, self.model, chosen)
        )


class Generate:
    """The handlers of generate requests."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self.routes = (
            Route("POST", f"{MODEL_PATH}/generate", "inference", self.generate),
            Route("POST", f"{MODEL_PATH}/generate_stream", "inference", self.generate_stream),
        )

    async def generate(self, call: ProtocolCall) -> ProtocolAnswer:
        """Answer with one object. Raises `InvalidRequest` if the answer has not just one part."""

        async def answer(generate: GenerateCall, run: Submission) -> ProtocolAnswer:
            text: bytes | None = None
            async for part in Parts(run):
                if text is not None:
                    run.leave("unwritten")
                    raise InvalidRequest(WRONG_COUNT)
                text = await generate.answer(part, run)
            if text is None:
                generate.take_back(run)
                raise InvalidRequest(WRONG_COUNT)
            return ProtocolAnswer(200, (JSON_HEADER, *load_headers(generate)), text)

        return await self._infer.serve(call, GenerateCall, "generate", answer)

    async def generate_stream(self, call: ProtocolCall) -> Sent:
        """Send an event for each part of the answer."""

        async def answer(generate: GenerateCall, run: Submission) -> Sent:
            events = GenerateEvents(generate, run)
            identity = (b"x-request-id", generate.request_id.encode("latin-1"))
            await events.answer(call.send, [identity, *load_headers(generate)])
            return Sent(events.status, events.failure)

        return await self._infer.serve(call, GenerateCall, "generate", answer)


class GenerateEvents(EventStream):
    """The events of a generate request. Unlike those of `/predict`, none says that it was the last.

    The end of the body does.
    """

    headers = ((b"content-type", b"text/event-stream; charset=utf-8"), *EVENT_HEADERS[1:])

    def __init__(self, call: GenerateCall, run: Submission) -> None:
        super().__init__(run, call.model.pipeline, call.request_id)
        self._call = call
        self._run = run
        self._held = call.memory.size

    async def _event(self, part: Item) -> bytes:
        self._call.memory.resize(self._held, "an answer")  # the last part has been sent
        return event_of(await self._call.answer(part, self._run))

    def _failed(self, error: Exception) -> bytes:
        return event_of(error_answer(error).body)


def load_headers(call: GenerateCall) -> list[tuple[bytes, bytes]]:
    """Return the header that tells a load balancer how busy the model is, if it asks for it.

    The forms are those of ORCA's load reports
    (https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto).
    """
    asked = dict(call.head.fields).get(LOAD_FORMAT_HEADER)
    pipeline = call.model.pipeline
    inside = pipeline.in_flight
    used = round(inside / pipeline.config.max_requests, 4)
    if asked == b"json":
        report = {"application_utilization": used, "named_metrics": {"requests_in_flight": inside}}
        return [(LOAD_HEADER, b"JSON " + orjson.dumps(report))]
    if asked == b"text":
        text = f"application_utilization={used}, named_metrics.requests_in_flight={inside}"
        return [(LOAD_HEADER, b"TEXT " + text.encode())]
    return []
