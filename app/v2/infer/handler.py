"""The infer route: read a request, submit it as one item, wait, write the answer.

Slow uploads and clients that leave are noticed as they are for predict requests
(`app/http/exchange.py`).
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

import numpy as np

from penstock.backends.errors import DeadlineExceeded, InvalidRequest
from penstock.pipelines.runs.run import Submission

from ...http.body import ClientLeft, check_length
from ...http.exchange import Exchange, Watch
from ...http.request_id import choose_request_id, is_fit
from ...settings import Settings
from ..call import ProtocolAnswer, ProtocolCall, Route, read_pieces
from ..json_text import parse_json
from ..models.model import Model, Models
from ..shared_memory import SharedMemory
from ..tensors import COPY_OFF_LOOP_BYTES
from .compression import choose_encoding, deflate, inflate
from .layout import recall, remember
from .request import InferRequest, parse, parse_raw
from .response import Headers, choose, takes_long, write

_NOTHING = memoryview(b"")

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
        request = InferRequest()
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
                    await asyncio.to_thread(write, request, model, chosen)
                    if takes_long(chosen)
                    else write(request, model, chosen)
                )
            except Exception:
                statistics.take_back(request.rows)
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
            for run in exchange.runs:
                run.leave()
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
        length = headers.get(b"content-length")
        if length is not None:
            check_length(length, settings.max_body)
        model.pipeline.check_admission()
        encoding = headers.get(b"content-encoding")
        size = _json_length(headers)
        began = time.monotonic()
        pieces = await read_pieces(call.scope, call.receive, settings)
        call.body_was_read = True
        if encoding is not None:
            pieces = [await inflate(b"".join(pieces), encoding, settings.max_inflated)]
        arrived = time.monotonic()
        text, blobs = (b"".join(pieces), _NOTHING) if size is None else _split(pieces, size)
        # If the pipeline was replaced while the body arrived, the new one reads the request.
        if model.pipeline.state != "ready":
            model = self._model(call)
        if not recall(request, text, blobs, model, self._regions):
            if self._reading_takes_long(text, blobs, model):
                await asyncio.to_thread(self._read, request, text, blobs, model, size == 0)
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
        document = parse_json(text, self._settings.max_json_depth)
        parse(request, document, blobs, model, self._regions)
        remember(request, document, text, blobs, model)


async def _compressed(body: bytes, fields: Headers, accepted: bytes) -> bytes:
    """Compress the body if the client accepts it and it gets smaller; `fields` then say so."""
    encoding = choose_encoding(accepted, len(body), len(fields) > 1)
    smaller = body if encoding is None else await deflate(body, encoding)
    if encoding is None or len(smaller) >= len(body):
        return body
    fields.append((b"content-encoding", encoding))
    return smaller


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


def _split(pieces: list[bytes], size: int) -> tuple[bytes, memoryview]:
    """Split a body after its first `size` bytes.

    The rest is one piece of memory that may be written to and is aligned for every datatype.
    """
    total = sum(map(len, pieces))
    if size > total:
        raise InvalidRequest(f"inference header size should be in range (0, {total}), got: {size}")
    if len(pieces) == 1:
        return pieces[0][:size], memoryview(bytearray(memoryview(pieces[0])[size:]))
    blobs = np.empty(total - size, np.uint8).data
    text: list[bytes] = []
    position = -size  # of the next piece, in `blobs`
    for piece in pieces:
        end = position + len(piece)
        if position >= 0:
            blobs[position:end] = piece
        elif end <= 0:
            text.append(piece)
        else:
            text.append(piece[:-position])
            blobs[:end] = memoryview(piece)[-position:]
        position = end
    return b"".join(text), blobs
