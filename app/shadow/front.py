"""The protocol over HTTP while Triton answers: all paths below /v2, forwarded until the switch.

It stands where the protocol's own app stands otherwise, behind the checks of hosts and keys. The
other paths of the server are not touched.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
from collections import deque

from starlette.types import Receive, Scope, Send

from penstock.backends.errors import PenstockError

from ..http.body import must_close
from ..http.paths import path_of
from ..http.request_id import request_id_of
from ..v2.call import ProtocolAnswer, error_answer, error_with
from ..v2.routes import respond
from .forwarding import Forwarding, ForwardingRules, NotForwardedError
from .model import ShadowedModel
from .options import MAX_FORWARDED
from .replay import replay
from .upstream import Upstream

logger = logging.getLogger("penstock.shadow")

KEPT_FAILURES = 10

INFER_VERBS = frozenset({"infer", "generate", "generate_stream"})

_MODEL_PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/[^/]+)?(?:/(?P<verb>[^/]+))?")

_REPEATED = re.compile(
    r"/v2/(?:systemsharedmemory|cudasharedmemory)(?:/region/[^/]+)?/(?:register|unregister)"
    r"|/v2/repository/models/[^/]+/(?:load|unload)"
)
"""Requests that change a server. They are repeated here once Triton has followed them."""


class HttpFront:
    """ASGI app for all paths below /v2."""

    def __init__(self, rules: ForwardingRules) -> None:
        self.not_repeated: deque[str] = deque(maxlen=KEPT_FAILURES)
        """Changes of Triton that could not be repeated here, the last few."""
        self._rules = rules
        self.protocol = rules.protocol
        self._switch = rules.switch
        self._in_flight = 0
        self._repeating = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = path_of(scope)
        name, verb = asked_for(scope["method"], path)
        model = None
        if name is not None:
            # Only requests that run a model make its counts.
            model = self._switch.model(name) if verb else self._switch.models.get(name)
        is_here = self._switch.is_done if model is None else model.is_here
        if is_here and not (verb and model is not None and self._has_steps(model)):
            await self.protocol(scope, receive, send)
            return
        try:
            self.protocol.check(scope)
            upstream = self._upstream()
            self._in_flight += 1
            try:
                await self._forward(
                    upstream, scope, receive, send, model=model if verb else None, verb=verb
                )
            finally:
                self._in_flight -= 1
        except NotForwardedError as error:
            logger.warning(
                "%s %s: %s",
                scope["method"],
                path,
                error,
                extra={"request_id": request_id_of(scope)},
            )
            await self._refuse(scope, send, error_with(error.status, str(error)))
        except PenstockError as error:
            await self._refuse(scope, send, error_answer(error))

    def _upstream(self) -> Upstream:
        upstream = self._rules.upstream
        if upstream is None:
            raise NotForwardedError(
                502, "Triton's HTTP port is not known: start penstock shadow with --from http://…"
            )
        if self._in_flight >= MAX_FORWARDED:
            raise NotForwardedError(
                503, f"Exceeds maximum queue size: {MAX_FORWARDED} requests wait for Triton"
            )
        return upstream

    def _has_steps(self, model: ShadowedModel) -> bool:
        """Return whether a request of a switched model must be read to know where it goes."""
        return bool(model.sequences) or self._rules.comparisons.has_steps(model.name)

    async def _forward(
        self,
        upstream: Upstream,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        model: ShadowedModel | None,
        verb: str,
    ) -> None:
        path = path_of(scope)
        repeats = scope["method"] == "POST" and _REPEATED.fullmatch(path) is not None
        forwarding = Forwarding(self._rules, upstream, scope, receive, send, model=model, verb=verb)
        await forwarding.run()
        if repeats and forwarding.status == 200:
            task = asyncio.create_task(
                self._repeat(scope, path, forwarding.small_body()), context=contextvars.Context()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refuse(self, scope: Scope, send: Send, answer: ProtocolAnswer) -> None:
        await respond(scope, send, answer, close=must_close(scope))

    async def _repeat(self, scope: Scope, path: str, body: bytes | None) -> None:
        """Do here what Triton has done: register shared memory, load a model and the like."""
        if body is None:
            reason = "its body is too large"
        else:
            async with self._repeating:  # in their order
                raw = await replay(self.protocol, scope, body)
            if raw.status < 400:
                return
            reason = raw.body.decode("utf-8", "replace")[:200]
        text = f"POST {path} was not repeated here: {reason}"
        logger.warning("%s", text, extra={"request_id": request_id_of(scope)})
        self.not_repeated.append(text)


def asked_for(method: str, path: str) -> tuple[str | None, str]:
    """Return the model that a request names, None for none, and which of `INFER_VERBS` it is, or
    "".
    """
    match = _MODEL_PATH.fullmatch(path)
    if match is None or match["model"] == "stats":
        return None, ""
    verb = match["verb"]
    return match["model"], verb if method == "POST" and verb in INFER_VERBS else ""
