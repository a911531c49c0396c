"""The infer route: read a request, submit it as one item, wait, write the answer.

Slow uploads and clients that leave are noticed as they are for predict requests
(`app/http/exchange.py`).
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from penstock.backends.errors import DeadlineExceeded, InvalidRequest
from penstock.pipelines.runs.run import Submission

from ...http.body import ClientLeft
from ...http.compression import choose_encoding, deflate, inflate, window_of
from ...http.exchange import Exchange, Watch, leave
from ...http.helper_thread import on_helper_thread
from ...http.json_text import JsonLimits, parse_json, parsed_bytes
from ...http.request_id import choose_request_id, is_fit
from ...settings import Settings
from ..call import ProtocolAnswer, ProtocolCall, ProtocolError, Route, read_body, split
from ..models.model import Model, Models
from ..shared_memory import SharedMemory
from ..tensors import COPY_OFF_LOOP_BYTES
from .layout import recall, remember
from .request import InferRequest, held_bytes, parse, parse_raw
from .response import Headers, choose, takes_long, write

READ_OFF_LOOP_BYTES = 1 << 17
"""JSON, or tensors that are not read in place, of this size take milliseconds to read.

More is read on a helper thread. So is a request that may copy `COPY_OFF_LOOP_BYTES` out of shared
memory.
"""

JSON_LENGTH_HEADER = b"inference-header-content-length"


class Infer:
    """The handler of infer requests."""

    def __init__(self, models: Models, settings: Settings, regions: SharedMemory) -> None:
        self._models = models
        self._settings = settings
        self._regions = regions
        self._json = JsonLimits(settings.max_json_depth, settings.max_json_values)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = Watch(settings.body_timeout)

    @property
    def routes(self) -> tuple[Route, ...]:
        pattern = "/v2/models/{model}[/versions/{version}]/infer"
        return (Route("POST", pattern, "inference", self.infer),)

    async def infer(self, call: ProtocolCall) -> ProtocolAnswer:
        """Answer one request. Every failure is raised, for the route to answer."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # an app is served by one loop at a time
            self._loop = loop
            self._watch = Watch(self._settings.body_timeout)
        exchange = Exchange(
            call.receive, cast("asyncio.Task[None]", asyncio.current_task(loop)), loop.time()
        )
        self._watch.begin(exchange, loop)
        request = InferRequest(call.memory, self._json)
        try:
            # One pass. If a header is repeated, the last one counts.
            headers: dict[bytes, bytes] = dict(call.scope["headers"])
            if "penstock.request_id" not in call.scope:
                call.scope["penstock.request_id"] = choose_request_id(headers.get(b"x-request-id"))
            model = self._model(call)
            submission, model, reading = await self._submit(call, request, model, headers)
            exchange.runs = (submission,)
            if exchange.helper is not None:
                exchange.listen()
            item = await submission.future
            if "error" in item:
                raise item["error"]
            answered = time.monotonic()
            statistics = model.pipeline.statistics
            try:
                chosen = choose(request, model, item)
                fields, body = (
                    await on_helper_thread(write, request, model, chosen)
                    if takes_long(chosen)
                    else write(request, model, chosen)
                )
            except Exception:
                statistics.take_back(submission.rows)
                raise
            statistics.reading += reading
            statistics.writing += time.monotonic() - answered
            if b"accept-encoding" in headers:
                body = await _compressed(body, fields, headers[b"accept-encoding"])
            return ProtocolAnswer(200, fields, body)
        except asyncio.CancelledError:
            if exchange.timed_out and not exchange.task.uncancel():
                raise call.too_late() from None
            if exchange.task.cancelling():
                raise  # the server, or a host app, cancels the request itself
            raise ClientLeft from None  # the watch has dropped the item
        finally:
            self._watch.end(exchange)
            leave(exchange.runs, call.memory)
            request.release()

    def _model(self, call: ProtocolCall) -> Model:
        """Return the model that the call names.

        Raises `InvalidRequest` for a pipeline that streams: an infer request has one answer, with
        the outputs that the model describes, which a list of parts does not have.
        """
        model = self._models.get(call.names["model"], call.names["version"])
        if model.streams:
            raise InvalidRequest(
                "HTTP end point doesn't support models with decoupled transaction policy: model "
                f"'{model.name}' answers in parts, which POST /predict/{model.name} sends"
            )
        return model

    async def _submit(
        self,
        call: ProtocolCall,
        request: InferRequest,
        model: Model,
        headers: dict[bytes, bytes],
    ) -> tuple[Submission, Model, float]:
        """Read the request and submit it to its pipeline.

        Returns the submission, the model that answers it, and the seconds that reading the tensors
        took.
        """
        settings = self._settings
        model.pipeline.check_admission()
        encoding = headers.get(b"content-encoding")
        window = 0 if encoding is None else _window(encoding)
        size = _json_length(headers)
        began = time.monotonic()
        text, blobs = await read_body(
            call, headers.get(b"content-length"), None if window else size
        )
        call.body_was_read = True
        if window:
            text = await inflate(text, window, settings.max_inflated, call.memory)
            text, blobs = split(text, size, call.memory)
        arrived = time.monotonic()
        # If the pipeline was replaced while the body arrived, the new one reads the request.
        if model.pipeline.state != "ready":
            model = self._model(call)
        if not recall(request, text, blobs, model, self._regions):
            if self._reading_takes_long(text, blobs, model):
                await on_helper_thread(self._read, request, text, blobs, model, size == 0)
            else:
                self._read(request, text, blobs, model, size == 0)
        timeout = request.timeout
        if timeout is not None:
            timeout -= time.monotonic() - began
            if timeout <= 0:
                raise DeadlineExceeded("the timeout passed before the body had arrived")
        # The protocol's own id, if there is one and it is fit for logs: backends get that one.
        request_id = call.scope["penstock.request_id"]
        if request.id is not None and is_fit(request.id):
            request_id = request.id
            if b"x-request-id" not in headers:
                call.scope["penstock.request_id"] = request_id
        # If it was replaced while a helper thread read the request, the new one answers.
        if model.pipeline.state != "ready":
            model = self._model(call)
        reading = time.monotonic() - arrived
        submission = model.pipeline.submit_nowait(
            request.item,
            timeout,
            request.priority,
            request_id=request_id,
        )
        return submission, model, reading

    def _reading_takes_long(self, text: bytes, blobs: memoryview, model: Model) -> bool:
        """Return whether reading this on the event loop would delay other requests notably."""
        shared = self._regions.largest
        if len(text) >= READ_OFF_LOOP_BYTES or shared > COPY_OFF_LOOP_BYTES:
            return True
        return max(len(blobs), shared) >= READ_OFF_LOOP_BYTES and not all(
            tensor.datatype is not None and tensor.datatype.in_place for tensor in model.inputs
        )

    def _read(
        self, request: InferRequest, text: bytes, blobs: memoryview, model: Model, raw: bool
    ) -> None:
        if raw:
            parse_raw(request, blobs, model)
            return
        memory = request.memory
        before = memory.size
        document = parse_json(text, self._json, memory)
        parsed = memory.size - before
        parse(request, document, blobs, model, self._regions)
        remember(request, document, text, blobs, model)
        # Of what was parsed, only texts and arrays stay.
        texts = parsed_bytes(text) - len(text)
        kept = min(parsed, texts + held_bytes(request.item))
        memory.resize(memory.size - parsed + kept, "a parsed body")


async def _compressed(body: bytes, fields: Headers, accepted: bytes) -> bytes:
    """Compress the body if the client accepts it and it gets smaller; `fields` then say so."""
    encoding = choose_encoding(accepted, len(body), len(fields) > 1)
    smaller = body if encoding is None else await deflate(body, encoding)
    if encoding is None or len(smaller) >= len(body):
        return body
    fields.append((b"content-encoding", encoding))
    return smaller


def _window(encoding: bytes) -> int:
    """Return zlib's `wbits` for a Content-Encoding. Raises `ProtocolError` (501)."""
    try:
        return window_of(encoding)
    except KeyError as error:
        raise ProtocolError(
            501,
            f"Unsupported content encoding: {error.args[0]}",
            ((b"accept-encoding", b"gzip, deflate"),),
        ) from None


def _json_length(headers: dict[bytes, bytes]) -> int | None:
    """Return the bytes of JSON before the tensors; None if the whole body is JSON."""
    value = headers.get(JSON_LENGTH_HEADER)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 19:
        raise InvalidRequest(
            "inference header size should be in range (0, size of the body), got: "
            f"{value[:40].decode('latin-1')}"
        )
    return int(value)
