"""ModelInfer: the steps of an infer request, as `app/v2/infer/handler.py` has them for HTTP."""

from __future__ import annotations

import time
from typing import Any

from penstock.backends.errors import PenstockError
from penstock.backends.item import Item
from penstock.backends.memory import Reservation
from penstock.pipelines.runs.run import Submission

from ..http.auth import client_of
from ..http.helper_thread import on_helper_thread
from ..v2.call import UNCOUNTED_COPY_BYTES, ProtocolError
from ..v2.infer.infer_call import InferCall, InferHead, InferRules
from ..v2.infer.layout import KEPT_JSON_BYTES, recall, remember
from ..v2.infer.request import parse
from ..v2.models.model import Model
from ..v2.tensors import COPY_OFF_LOOP_BYTES
from .request import joined, read_message
from .response import write_message
from .wire import CutMessage, cut

EMPTY_FINAL = "triton_enable_empty_final_response"
"""A parameter that asks a decoupled model for an answer without outputs after the last one."""

LAYOUT_PREFIX = b"\0grpc"
"""Sets layouts of messages apart from those of JSON."""

_TRACE_HEADERS = (b"traceparent", b"tracestate")

KEPT_LAYOUT_BYTES = KEPT_JSON_BYTES - len(LAYOUT_PREFIX)


class RpcInfer(InferCall):
    """An infer request that came as a message."""

    __slots__ = ("_cut", "_size", "identity", "in_stream", "wants_final")

    def __init__(
        self,
        rules: InferRules,
        message: bytes,
        memory: Reservation,
        scope: dict[str, Any],
        in_stream: bool = False,
    ) -> None:
        """`memory` has the message, and is closed by the caller. `in_stream`: it is one of many,
        and its answer may come in parts; reading then sets `wants_final`. `identity` is the
        message's `id`, known before it is read.

        Raises `InvalidRequest` for bytes that are not a message.
        """
        self._cut = cut(message)
        self._size = len(message)
        self.identity = self._cut.identity
        self.in_stream = in_stream
        self.wants_final = False
        names = {"model": self._cut.model, "version": self._cut.version}
        # An X-Request-Id is that of a call: in a stream it would be the same for all requests.
        wanted = _TRACE_HEADERS if in_stream else (*_TRACE_HEADERS, b"x-request-id")
        known = [field for field in scope["headers"] if field[0] in wanted]
        super().__init__(rules, InferHead(names, known), memory, client=client_of(scope))

    async def read_all(self, remaining: float | None) -> None:
        """Read the request, after `begin`. Raises what `parse` raises.

        `remaining`: seconds until the caller's deadline; None if it has none.
        """
        self._arrived = time.monotonic()
        parts = self._cut
        size = sum(map(len, parts.contents))
        if size > COPY_OFF_LOOP_BYTES or self._takes_long(len(parts.text), size):
            await on_helper_thread(self._read_parts, parts)
        else:
            self._read_parts(parts)
        self.request.id = parts.identity or None
        del self._cut  # only the tensors are needed from now on
        if self._size > UNCOUNTED_COPY_BYTES:
            self.memory.resize(self.memory.size - self._size, "tensors")
        if remaining is not None:
            own = self.request.timeout
            self.request.timeout = remaining if own is None else min(own, remaining)

    def _read_parts(self, parts: CutMessage) -> None:
        """Read the request, on whatever thread."""
        request, model, regions = self.request, self.model, self.rules.regions
        # A layout has no room for `wants_final`.
        keeps = len(parts.layout) <= KEPT_LAYOUT_BYTES and EMPTY_FINAL.encode() not in parts.text
        layout = LAYOUT_PREFIX + parts.layout if keeps else b""
        blobs = joined(request, parts.contents)
        if keeps and recall(request, layout, blobs, model, regions):
            return
        before = request.memory.size
        document, contents = read_message(request, parts, model.name)
        parsed = request.memory.size - before
        self.wants_final = document["parameters"].pop(EMPTY_FINAL, False) is True
        if not parts.contents:
            blobs = joined(request, contents)
        request.binary = True
        parse(request, document, blobs, model, regions)
        if keeps and (parts.contents or not contents):
            remember(request, document, layout, blobs, model)
        # Of what was parsed, only texts stay. Arrays have been counted by themselves.
        kept = min(parsed, len(parts.text))
        request.memory.resize(request.memory.size - parsed + kept, "a parsed message")

    async def answer(self, item: Item, run: Submission, **parameters: bool) -> bytes:
        """Return the serialised answer for the final item of `run`, or for one of its parts.

        Raises the item's error.
        """
        if "error" in item:
            raise item["error"]
        return await self.write_part(
            item,
            run,
            lambda chosen: write_message(self.request, self.model, chosen, **parameters),
        )

    def final_answer(self) -> bytes:
        """Return the serialised answer without outputs that ends a decoupled request."""
        return write_message(self.request, self.model, [], triton_final_response=True)

    def _in_parts(self, model: Model) -> PenstockError:
        return ProtocolError(
            501,
            "ModelInfer RPC doesn't support models with decoupled transaction policy: model "
            f"'{model.name}' answers in parts, which ModelStreamInfer sends",
        )
