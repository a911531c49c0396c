"""The answers of `/status`: JSON, or events for those who accept them."""

from __future__ import annotations

import asyncio
import contextvars

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.pipelines.repository import Repository

from ..history.ring import History
from ..http.errors import problem_response
from ..http.events import ENDLESS, EVENT_HEADERS, wants_events
from ..http.request_id import request_id_of
from ..settings import Settings
from .sampler import Sampler, TooManyWatchers, Watcher
from .snapshot import Snapshots


class Status:
    """Answers `/status` for one app."""

    def __init__(self, repository: Repository, settings: Settings, history: History | None) -> None:
        self._repository = repository
        self._snapshots = Snapshots(repository, settings, history)
        self.sampler = Sampler(repository, self._snapshots, settings.max_watchers)

    async def answer(self, scope: Scope) -> Response:
        """Return the answer to a GET or HEAD."""
        await self._repository.others.refresh()
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        if scope["method"] == "GET" and wants_events(accept):
            return StatusEvents(self.sampler)
        return Response(
            orjson.dumps(self._snapshots.whole()),
            headers={"cache-control": "no-store"},
            media_type="application/json",
        )


class StatusEvents(Response):
    """The events for one watcher, until it leaves or the server ends."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self._sampler = sampler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Here and not in `Status.answer`: nothing would remove a watcher whose request is cancelled
        # before this is called.
        try:
            watcher = self._sampler.join()
        except TooManyWatchers as error:
            await problem_response(error, request_id_of(scope))(scope, receive, send)
            return
        scope[ENDLESS] = True
        listening = asyncio.create_task(
            _end_with_client(receive, watcher), context=contextvars.Context()
        )
        try:
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
            while (event := await watcher.take()) is not None:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            return  # the client has left: servers of ASGI 2.4 report it like this
        finally:
            self._sampler.leave(watcher)
            listening.cancel()


async def _end_with_client(receive: Receive, watcher: Watcher) -> None:
    """End a watcher when its client leaves."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        watcher.end()
