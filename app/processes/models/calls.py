"""Predict and infer requests that a front process has brought: `CrossedPredict`, `CrossedInfer`.

They are the requests of a connection (`DirectPredict`, `DirectInfer`), but for where their body
comes from, and where their answer goes: the link of their front.
"""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, cast

from penstock.backends.errors import PenstockError
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.passed import Passed
from penstock.pipelines.runs.run import Submission

from ...history.record import CLIENT_LEFT_STATUS
from ...http.errors import problem
from ...server.asgi import STATUS_LINES, Wire
from ...server.direct import Direct, lines_of
from ...server.direct_infer import DirectInfer
from ...server.direct_predict import DirectPredict
from ...server.direct_routes import DirectRoutes
from ..arena import ALIGNMENT
from ..messages import Log
from ..packets import INLINE_BYTES
from .incoming import Extent

logger = logging.getLogger("penstock.http")

READ_IN_PLACE_BYTES = 1 << 16
"""Tensors of so many bytes stay in shared memory while their request runs. A copy of fewer takes
less time than to watch over their extent.
"""


class Link(Protocol):
    """The link that has brought a request. `calls`: the requests that wait, by their numbers.
    `logs`: the front writes an access log.
    """

    calls: dict[int, Crossed]
    logs: bool

    def answer(self, call: Crossed, status: int, head: bytes, body: bytes, log: Log) -> None:
        """Send a small answer to `call`."""

    def answer_in_pieces(
        self,
        call: Crossed,
        status: int,
        head: bytes,
        body: Sequence[bytes | memoryview],
        log: Log,
    ) -> None:
        """Send an answer of any size. The memory of `call` is let go once it is sent."""


class Crossed(Direct):
    """A request that has crossed, of either kind. `number`: that of the request on its link."""

    if not TYPE_CHECKING:  # as in `Direct`
        __slots__ = ()

    first_byte: float
    link: Link
    number: int

    def cross(
        self,
        link: Link,
        number: int,
        default_head: bytes,
        keep_alive: bool,
        first_byte: float,
    ) -> None:
        """Take the place of `attach`. `first_byte`: as in REQUEST."""
        self.link = link
        self.number = number
        self.first_byte = first_byte
        self.wire = cast("Wire", link)  # of which it only sees that it is there
        self.keep_alive = keep_alive
        self._default_head = default_head
        self._access = self._run = self._pieces = self._work = None
        self._done = self._cancelled = False

    def take_body(self, body: bytes | Extent) -> None:
        """Submit the request that `start` has begun: its body is here."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:  # answered
            if isinstance(body, Extent):
                body.let_go()
            return
        try:
            self._run = self._submit_late(body)
        except Exception as error:
            self._fail(error)

    def withdraw(self) -> None:
        """Forget the request: it comes again in another form."""
        del self.link.calls[self.number]
        self.wire = self._pieces = None
        self.memory.close()

    def _wait(self) -> Any:
        return []  # the body comes in one piece

    @abstractmethod
    def _submit_late(self, body: bytes | Extent) -> Submission | None:
        """Submit the request, whose body did not come whole, or came in an extent."""

    def abandon(self, status: int = CLIENT_LEFT_STATUS) -> None:
        self.link.calls.pop(self.number, None)
        super().abandon(status)

    def _send_head(
        self, status: int, head: bytes, body: bytes, blobs: Sequence[bytes | memoryview] = ()
    ) -> None:
        if self.wire is None:  # the client has left
            return
        self.wire = None
        run, self._run = self._run, None
        link = self.link
        del link.calls[self.number]
        try:
            self._release()
            log = self._log(run) if link.logs else None
            if blobs or len(body) > INLINE_BYTES:
                link.answer_in_pieces(self, status, head, (body, *blobs), log)
            else:
                link.answer(self, status, head, body, log)
        except Exception as error:
            logger.exception("request %s could not be answered", self.request_id)
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        """Answer by `error`, in the place of an answer that can't be sent."""
        status, headers, body = problem(error, self.request_id)
        head = STATUS_LINES[status] + self._default_head + lines_of(headers)
        self.keep_alive = False
        self.link.answer(self, status, head, body, None)

    def _log(self, run: Submission | None) -> Log:
        spent = getattr(run, "spent", None)
        queued, ran = (None, None) if spent is None else spent()
        return self.request_id, self.pipeline_name(), queued, ran


class CrossedPredict(Crossed, DirectPredict):
    """A predict request."""

    __slots__ = ("link", "number")

    _begin = DirectPredict._begin

    def _submit_late(self, body: bytes | Extent) -> Submission | None:
        if isinstance(body, Extent):
            body = body.copied()
        if self.first_byte:
            self.ready(monotonic())
        return self._submit(body)

    def current(self) -> Pipeline | None:
        """Return the pipeline that has the request's name now; None if none has or it can't run."""
        name, pipelines = self.head.name, self.rules.pipelines
        try:
            return pipelines.pipelines.get(name) or pipelines.get(name)
        except PenstockError:
            return None

    def take_passed(self, passed: Passed, pipeline: Pipeline) -> None:
        """Submit the request that `start` has begun: front nodes of `pipeline` have run."""
        pieces, self._pieces = self._pieces, None
        if pieces is None:  # answered
            return
        self.memory.close()  # the front counts what has crossed
        self.pipeline = pipeline
        self.request_id = passed.request_id
        try:
            self._run = self.submit_passed(passed, self)  # type: ignore[arg-type]  # as its future
        except Exception as error:
            self._fail(error)


class CrossedInfer(Crossed, DirectInfer):
    """An infer request."""

    __slots__ = ("first_byte", "link", "number")

    def _begin(self) -> None:
        super()._begin()
        if self.first_byte:
            self._began = self.first_byte

    def _submit_late(self, body: bytes | Extent) -> Submission | None:
        if not isinstance(body, Extent):
            return self._submit(body)
        size = self.size
        if (
            size is None
            or len(body.view) - size < READ_IN_PLACE_BYTES
            or (body.offset + size) % ALIGNMENT
            or self.model.pipeline.cache is not None  # which may keep what it is sent
        ):
            return self._submit(body.copied())
        content = body.in_place()
        self.memory.resize(size, "a body")  # the front counts the rest
        return self._submit_parts(bytes(content[:size]), content[size:])


class CrossedRoutes(DirectRoutes):
    """Makes the calls of crossed requests."""

    predict_type = CrossedPredict
    infer_type = CrossedInfer
    most_body = sys.maxsize  # a front sends no large one, only what its front nodes made of it
