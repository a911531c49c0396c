"""Predict requests, and the short way to them.

`/predict/{pipeline}`, `/predict/{pipeline}/batch` and all of `/v2` (v2/) are plain ASGI.
`HotRoutes` is the innermost middleware of the app: only FastAPI's exception middleware and router
are inside it. So the middleware of the app and of its host see these requests like all others, and
the reflection of the router does not touch them. The ordinary routes of `create_router` call
`Predict` too.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Sequence
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.backends.errors import InvalidRequest, PenstockError, forget_frames
from penstock.backends.item import Item
from penstock.pipelines.runs.run import Submission

from ..history.record import CLIENT_LEFT_STATUS, Door, Failure
from ..history.ring import History
from ..settings import Settings
from ..trace.tracing import Tracing
from .access import follow
from .auth import client_of
from .body import ClientLeft, must_close, read_rest
from .compression import inflate
from .errors import Problem, failure_of, log_failure, problem
from .events import PredictEvents
from .exchange import Exchange, Watch, leave
from .helper_thread import on_helper_thread
from .inputs.json_body import Link
from .paths import is_protocol, path_of
from .predict_call import (
    JSON_HEADER,
    Fetch,
    Pipelines,
    PredictCall,
    PredictHead,
    PredictRules,
    client_left,
    seconds_left,
    server_timing,
    success,
)
from .render import write_item
from .stream_socket import StreamSockets, stream_name
from .upload import answer_streamed

logger = logging.getLogger("penstock.http")

PREDICT_PREFIX = "/predict/"
_VERSIONED = re.compile(r"[^/]+/versions/[^/]+")


class HotRoutes:
    """ASGI middleware for the routes that need no router.

    Predict requests go to `predict`, those below /v2 to `protocol`, and all others to `app`.
    """

    def __init__(self, app: ASGIApp, predict: Predict, protocol: ASGIApp) -> None:
        self.app = app
        self.predict = predict
        self.protocol = protocol
        self._sockets = StreamSockets(predict.rules)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = predict_route(scope)
        if route is not None:
            await self.predict(scope, receive, send, *route)
        elif is_protocol(scope):
            await self.protocol(scope, receive, send)
        elif scope["type"] == "websocket" and (name := stream_name(scope)) is not None:
            await self._sockets(scope, receive, send, name)
        else:
            await self.app(scope, receive, send)


def predict_route(scope: Scope) -> tuple[str, bool] | None:
    """Return the name of a predict request's pipeline, and whether it brings several items.

    A version belongs to the name: `digits/versions/2`. None for every other request.
    """
    if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
        return None
    return route_of(path_of(scope) if scope.get("root_path") else scope["path"])


def route_of(path: str) -> tuple[str, bool] | None:
    """Return the same for the path of a POST or PUT."""
    if not path.startswith(PREDICT_PREFIX):
        return None
    name = path[len(PREDICT_PREFIX) :]
    many = name.endswith("/batch")
    if many:
        name = name[:-6]
    return None if "/" in name and not _VERSIONED.fullmatch(name) else (name, many)


class Predict:
    """Answers predict requests: reads the body, submits, waits, renders.

    The table in `errors.py` decides how a failure is answered.
    """

    def __init__(
        self,
        pipelines: Pipelines,
        settings: Settings,
        fetch: Fetch | None = None,
        history: History | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`fetch`: None if images by URL are not allowed. `history`: None if none is kept.

        `tracing`: None if no requests are traced.
        """
        self.rules = PredictRules(pipelines, settings, fetch, history, tracing)
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch = Watch(settings.body_timeout)

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, name: str, many: bool
    ) -> None:
        """Answer one request. `many`: of several items, each gets a result or a problem."""
        # Another frame, so that what it holds is gone while the answer is sent.
        answer = await self._answer(scope, receive, send, name, many)
        if answer is not None:
            status, headers, body = answer
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, name: str, many: bool
    ) -> Problem | None:
        """Return the answer to one request; None if it has been sent, as events."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # One loop at a time serves an app. What an earlier one left has ended with it.
            self._loop = loop
            self._watch = Watch(self._settings.body_timeout)
        task = cast("asyncio.Task[None]", asyncio.current_task(loop))
        exchange = Exchange(receive, task, loop.time())
        self._watch.begin(exchange, loop)
        call = PredictCall(
            self.rules,
            PredictHead(name, many, scope["headers"], scope.get("query_string", b"")),
            exchange.started,
            client=client_of(scope),
            request_id=scope.get("penstock.request_id", ""),
        )
        memory = call.memory
        follow(scope, call, exchange)
        door: Door = "batch" if many else "predict"
        status: int = CLIENT_LEFT_STATUS
        failure: Failure | None = None
        try:
            call.begin()
            if (streamed := call.pipeline.stream_input) is not None:
                self._watch.end(exchange)  # it has a timer of its own
                door = "stream"
                status, failure, answer = await answer_streamed(
                    call, streamed, exchange, scope, send
                )
                if answer is not None:
                    answer[1].append((b"x-request-id", call.request_id.encode("ascii")))
                return answer
            message = await receive()
            body: bytes = message.get("body", b"")
            limit = self._settings.max_body
            if message.get("more_body") or message["type"] != "http.request" or len(body) > limit:
                body = await read_rest(message, receive, limit, memory)
            elif call.head.length is None:
                memory.cover(len(body), "a body")
            exchange.unread = False
            if call.window:
                body = await inflate(body, call.window, self._settings.max_inflated, memory)
            takes_long = call.takes_long(body)
            if many:
                items = (
                    await on_helper_thread(call.read_many, body)
                    if takes_long
                    else call.read_many(body)
                )
                del body, message  # `memory` has the items alone
                call.ready(loop.time())
                text, failure = await self._answer_many(call, items, exchange)
                answer = 200, [JSON_HEADER, (b"content-length", b"%d" % len(text))], text
            else:
                read = await on_helper_thread(call.read, body) if takes_long else call.read(body)
                del body, message
                if (link := call.link_in(read)) is not None:
                    image = await self._fetched(link, call, exchange, loop)
                    read = call.reader.with_image(read, image)
                call.ready(loop.time())
                run = call.submit(read)
                exchange.runs = (run,)
                if exchange.helper is not None:
                    exchange.listen()
                if call.head.asks_for_events:
                    door = "stream"
                    events = PredictEvents(run, call.pipeline, call.request_id, call.trace, memory)
                    await events.answer(send, [(b"x-request-id", call.request_id.encode("ascii"))])
                    status, failure = events.status, events.failure
                    return None
                item = await run.future
                written = call.write(item, run)
                if written is None:
                    written = await call.write_large(item, run)
                answer = success(written, server_timing(run))
            status = answer[0]
        except asyncio.CancelledError:
            if exchange.timed_out and not exchange.task.uncancel():
                late = InvalidRequest(
                    f"the body did not arrive within {self._settings.body_timeout:g} s "
                    "(body_timeout)"
                )
                failure = failure_of(late)
                answer = problem(late, call.request_id)
                status = answer[0]
            elif exchange.task.cancelling():
                raise  # the server, or a host, cancels the request itself
            else:  # the watch dropped the items
                answer = client_left()
        except ClientLeft:
            answer = client_left()
        except Exception as error:
            failure = failure_of(error)
            answer = call.failure(error)
            status = answer[0]
        finally:
            # Before anything except events is sent: reading slowly is not uploading slowly.
            self._watch.end(exchange)
            leave(exchange.runs, memory)
            if self.rules.notes:
                runs = [run for run in exchange.runs if not isinstance(run, _Fetching)]
                call.remember(door, status, failure, cast("list[Submission]", runs))
        headers = answer[1]
        headers.append((b"x-request-id", call.request_id.encode("ascii")))
        if exchange.unread and (exchange.timed_out or must_close(scope)):
            headers.append((b"connection", b"close"))
        return answer

    async def _fetched(
        self,
        url: Link,
        call: PredictCall,
        exchange: Exchange,
        loop: asyncio.AbstractEventLoop,
    ) -> bytes:
        """Fetch the image at a URL.

        The time counts towards the client's deadline, as that of an upload does. The fetch ends
        when the client leaves.
        """
        fetch = self.rules.fetch
        assert fetch is not None
        left = call.pipeline.config.timeout
        if call.head.deadline is not None:
            left = min(left, seconds_left(call.head.deadline, loop.time() - call.first_byte))
        fetching = _Fetching(fetch(url, left, call.memory))
        exchange.runs = (fetching,)
        if exchange.helper is not None:  # a timer of a slow upload, which is over
            exchange.listen()
        return await fetching.future

    async def _answer_many(
        self, call: PredictCall, items: Sequence[Item], exchange: Exchange
    ) -> tuple[bytes, Failure | None]:
        """Answer several items. Return the body, and what the first that failed failed with.

        If one is refused or fails, a problem stands in its place. Raises the error of the first if
        none was admitted.
        """
        failed = 0
        first: Failure | None = None
        outcomes: list[Submission | Exception] = []
        runs: list[Submission] = []
        exchange.runs = runs  # so that the caller leaves them, whatever happens from here on
        steps = call.steps(len(items))
        for index, (given, step) in enumerate(zip(items, steps, strict=True)):
            try:
                run = call.pipeline.submit_nowait(
                    given,
                    call.timeout,
                    call.wanted,
                    client=call.client,
                    request_id=f"{call.request_id}/{index}",
                    context=call.context,
                    sequence=step,
                    reads_only=True,
                )
            except PenstockError as error:
                outcomes.append(error)
            else:
                runs.append(run)
                outcomes.append(run)
        if not runs and isinstance(outcomes[0], Exception):
            raise outcomes[0]
        if exchange.helper is not None:
            exchange.listen()
        results: list[bytes] = []
        size = 0
        for outcome in outcomes:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                item: Item = await outcome.future
                if "error" in item:
                    raise item["error"]
                written = await write_item(item, outcome, call.pipeline, call.memory)
            except PenstockError as error:
                failed += 1
                first = first or failure_of(error)
                log_failure(error, call.request_id, call.pipeline.name)
                written = problem(error, call.request_id)[2]
                forget_frames(error)
            size += len(written)
            results.append(written)
        call.memory.resize(call.memory.size + size, "an answer")  # they are joined
        if first is not None:
            first = Failure(first.code, f"{failed} of {len(items)} items: {first.detail}")
        return b'{"results":[%b]}' % b",".join(results), first


class _Fetching:
    """The fetch of an image, as work that the watch drops when the client leaves.

    It is a task of its own, because the request's task goes on to answer.
    """

    def __init__(self, fetching: Awaitable[bytes]) -> None:
        self.future = asyncio.ensure_future(fetching)

    def leave(self) -> None:
        self.future.cancel()
