"""`PassingCall`: a request whose front nodes run here, before it crosses."""

from __future__ import annotations

import logging

from penstock.backends.memory import Reservation
from penstock.backends.text import message_of
from penstock.pipelines.runs.passed import Passed, pack

from ...history.record import CLIENT_LEFT_STATUS
from ...http.predict_call import PredictHead
from ...server.direct_routes import MOST_BODY_BYTES
from ...server.head import RequestHead
from ..messages import PASSED, Body
from ..packets import INLINE_BYTES
from .call import CrossingCall
from .link import FrontLink, Links
from .nodes import FrontPipeline, FrontRun

logger = logging.getLogger("penstock.processes")


class PassingCall(CrossingCall):
    """A predict request that passes front nodes. A body that they do not take crosses whole."""

    __slots__ = ("_front", "_passed", "_run", "_share")

    def __init__(
        self,
        links: Links,
        head: RequestHead,
        text: bytes,
        memory: Reservation | None,
        *,
        front: FrontPipeline,
        share: str | None,
    ) -> None:
        """`share`: the client whose share of the front nodes it takes."""
        super().__init__(links, head, text, memory)
        self._front: FrontPipeline | None = front
        self._share = share
        self._run: FrontRun | None = None
        self._passed = False

    def _cross(self, body: bytes) -> None:
        front, link = self._front, self._link
        if front is not None and front.under_pressure and not self._asked and link is not None:
            self._ask(link)
        super()._cross(body)

    def _send_body(self) -> None:
        front = self._front
        if front is not None:
            self._front = None  # once
            head = self._head.direct
            assert isinstance(head, PredictHead)
            self._run = front.submit(
                head, self._body, self._first_byte, self._share, self._on_passed
            )
            if self._run is not None:
                return
        self._send_whole()

    def _send_whole(self) -> None:
        """Send the request with its body."""
        if self._head.length > MOST_BODY_BYTES:
            self._tunnel(self._body)
        else:
            super()._send_body()

    def _on_passed(self, passed: Passed) -> None:
        self._run = None
        link = self._link
        if self.wire is None or link is None:
            return
        self._passed = self._send_passed(link, passed)
        if not self._passed:
            self._send_whole()

    def _send_passed(self, link: FrontLink, passed: Passed) -> bool:
        """Send what the front nodes have made of the request. False: it can't be sent."""
        try:
            payload, buffers = pack(passed)
        except Exception as error:
            logger.warning(
                "what the front nodes have made of a request can't cross, so they run again in "
                "the model process: %s: %s",
                type(error).__name__,
                message_of(error),
            )
            return False
        small = len(payload) + sum(map(len, buffers)) <= INLINE_BYTES
        bodies: list[Body] = []
        contents: list[bytes | memoryview] = [payload, *buffers]
        for content in contents:
            body = bytes(content) if small else link.extent(content)
            if body is None:
                link.free(bodies)
                return False
            bodies.append(body)
        link.send(
            PASSED,
            self._number,
            self._text,
            bodies[0],
            bodies[1:],
            self._client,
            self._first_byte,
            self.keep_alive,
        )
        return True

    def resend(self) -> None:
        if self._passed:  # the pipeline was replaced meanwhile
            self._passed = self._asked = False
            self._send_whole()
        else:
            super().resend()

    def abandon(self, status: int = CLIENT_LEFT_STATUS) -> None:
        run, self._run = self._run, None
        if run is not None and (left := run.left()) is not None and self._link is not None:
            self._send_passed(self._link, left)  # so that it is counted
        super().abandon(status)

    def _let_go(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.left()
        super()._let_go()
