"""The infer route: reads a request, submits it as one item, waits, writes the answer.

Slow uploads and clients that leave are watched as those of predict requests are (`watch.py`).
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

import numpy as np

from penstock.backends.errors import DeadlineExceeded, InvalidRequest
from penstock.pipelines.runs.run import Work

from ...http.body import ClientLeft, check_length
from ...http.exchange import Exchange, Watch
from ...http.request_id import choose_request_id
from ...settings import Settings
from ..call import Answer, Call, Route, read_pieces
from ..json_text import parse_json
from ..models.model import Model, Models
from ..shared_memory import SharedMemory
from ..tensors import HUGE
from .compression import chosen_encoding, deflate, inflate
from .layout import recall, remember
from .request import InferRequest, parse, parse_raw
from .response import Headers, choose, takes_long, write

_NOTHING = memoryview(b"")

LARGE = 1 << 17
"""Bytes of JSON, or of tensors that are not read in place, that are parsed in a few milliseconds: more of them on a helper thread, as are
`HUGE` ones that may be copied out of shared memory.
"""

HEADER = b"inference-header-content-length"


class Infer:
    """Answers infer requests."""

    def __init__(self, models: Models, settings: Settings, regions: SharedMemory) -> None:
        self._models = models
        self._settings = settings
        self._regions = regions
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = Watch(settings.body_timeout)

    @property
    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", "/v2/models/{model}[/versions/{version}]/infer", "inference", self.infer),
        )

    async def infer(self, call: Call) -> Answer:
        """One request. Raises what is answered instead."""
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
            headers: dict[bytes, bytes] = dict(
                call.scope["headers"]
            )  # one pass; of a repeated one the last counts
            if "penstock.request_id" not in call.scope:
                call.scope["penstock.request_id"] = choose_request_id(headers.get(b"x-request-id"))
            model = self._models.get(call.names["model"], call.names["version"])
            work, model, reading = await self._submit(call, request, model, headers)
            exchange.runs = (work,)
            if exchange.helper is not None:
                exchange.listen()
            item = await work.future
            if "error" in item:
                raise item["error"]
            answered = time.monotonic()
            statistics = model.pipeline.statistics
            try:
                chosen = choose(request, model, item)
                long = takes_long(chosen)
                fields, body = (
                    await asyncio.to_thread(write, request, model, chosen)
                    if long
                    else write(request, model, chosen)
                )
            except Exception:
                statistics.take_back(request.rows)
                raise
            statistics.reading += reading
            statistics.writing += time.monotonic() - answered
            if b"accept-encoding" in headers:
                body = await _compressed(body, fields, headers[b"accept-encoding"])
            return Answer(200, fields, body)
        except asyncio.CancelledError:
            if exchange.timed_out and not exchange.task.uncancel():
                raise call.too_late() from None
            if exchange.task.cancelling():
                raise  # the server, or a host, cancels the request itself
            raise ClientLeft from None  # the watch dropped the item
        finally:
            self._watch.end(exchange)
            for each in exchange.runs:
                each.leave()
            request.release()

    async def _submit(
        self, call: Call, request: InferRequest, model: Model, headers: dict[bytes, bytes]
    ) -> tuple[Work, Model, float]:
        """The request inside its pipeline, the model that answers it, and the seconds that reading its tensors took."""
        settings = self._settings
        length = headers.get(b"content-length")
        if length is not None:
            check_length(length, settings.max_body)
        model.pipeline.check_admission()
        encoding = headers.get(b"content-encoding")
        size = _header_length(headers)
        began = time.monotonic()
        pieces = await read_pieces(call.scope, call.receive, settings)
        call.read = True
        if encoding is not None:
            pieces = [await inflate(b"".join(pieces), encoding, settings.max_inflated)]
        arrived = time.monotonic()
        text, blobs = (b"".join(pieces), _NOTHING) if size is None else _split(pieces, size)
        if model.pipeline.state != "ready":  # replaced while the body came: the new one reads it
            model = self._models.get(model.name, call.names["version"])
        if not recall(request, text, blobs, model, self._regions):
            if self._takes_long(text, blobs, model):
                await asyncio.to_thread(self._read, request, text, blobs, model, size == 0)
            else:
                self._read(request, text, blobs, model, size == 0)
        timeout = request.timeout
        if timeout is not None:
            timeout -= time.monotonic() - began
            if timeout <= 0:
                raise DeadlineExceeded("the timeout passed before the body had arrived")
        if (
            model.pipeline.state != "ready"
        ):  # replaced while a helper thread read it: the new one answers
            model = self._models.get(model.name, call.names["version"])
        reading = time.monotonic() - arrived
        work = model.pipeline.submit_nowait(
            request.item, timeout, request.priority, None, None, call.scope["penstock.request_id"]
        )
        return work, model, reading

    def _takes_long(self, text: bytes, blobs: memoryview, model: Model) -> bool:
        """Whether other requests would feel it if this one were read on the event loop."""
        shared = self._regions.largest
        if len(text) >= LARGE or shared > HUGE:
            return True
        return max(len(blobs), shared) >= LARGE and not all(
            each.datatype is not None and each.datatype.in_place for each in model.inputs
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
    """The body as the client would have it, where that makes it smaller; `fields` get what says so."""
    encoding = chosen_encoding(accepted, len(body), len(fields) > 1)
    smaller = body if encoding is None else await deflate(body, encoding)
    if encoding is None or len(smaller) >= len(body):
        return body
    fields.append((b"content-encoding", encoding))
    return smaller


def _header_length(headers: dict[bytes, bytes]) -> int | None:
    """Bytes of JSON in front of the tensors; None: all of the body is."""
    value = headers.get(HEADER)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 19:
        raise InvalidRequest(
            f"inference header size should be in range (0, size of the body), got: {value[:40].decode('latin-1')}"
        )
    return int(value)


def _split(pieces: list[bytes], size: int) -> tuple[bytes, memoryview]:
    """The first `size` bytes, and all that follows, in one piece that is aligned for every datatype and may be written to."""
    total = sum(map(len, pieces))
    if size > total:
        raise InvalidRequest(f"inference header size should be in range (0, {total}), got: {size}")
    if len(pieces) == 1:
        return pieces[0][:size], memoryview(bytearray(memoryview(pieces[0])[size:]))
    blobs = memoryview(np.empty(total - size, np.uint8))  # type: ignore[arg-type]
    text: list[bytes] = []
    position = -size  # in `blobs`
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
