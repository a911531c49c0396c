"""A request to a pipeline that has a cache, as its caller holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Literal, Protocol, TypeAlias

from penstock.backends.item import Item

from ..node.queue import Visit
from ..runs.run import Stage, Submission
from ..trace_context import TraceContext

AnsweredFrom: TypeAlias = Literal["", "cache", "redis", "joined"]
"""What answered a request: nodes that ran for it, an answer that was kept here or in Redis, or an
equal request that came before it."""


class Place(Protocol):
    """Where a request waits."""

    def forget(self, request: CachedRequest, failure: str) -> None:
        """Count the end of a request that left, or came to its deadline, and wait no more."""


class CachedRequest:
    """A `Submission`. It waits at its `place`; None: it has ended.

    `waits_for`: what is cancelled when it ends: the timer of its deadline, or the hashing of its
    item. `run` is what runs for it. `joined`: the id of the request whose answer it got.
    """

    __slots__ = (
        "answered_from",
        "came",
        "client",
        "context",
        "deadline",
        "future",
        "item",
        "joined",
        "place",
        "priority",
        "reads_only",
        "request_id",
        "rows",
        "run",
        "timeout",
        "until",
        "waits_for",
    )

    def __init__(
        self,
        item: Item,
        future: asyncio.Future[Item],
        came: float,
        deadline: float,
        *,
        timeout: float | None,
        priority: int | None,
        client: Hashable,
        request_id: str,
        until: float | None,
        context: TraceContext | None,
        reads_only: bool,
    ) -> None:
        """`came`, `deadline` and `until` are on the pipeline's clock. `reads_only`: its caller does
        not change the answer.
        """
        self.item = item
        self.future = future
        self.came = came
        self.deadline = deadline
        self.timeout = timeout
        self.priority = priority
        self.client = client
        self.request_id = request_id
        self.until = until
        self.context = context
        self.reads_only = reads_only
        self.place: Place | None = None
        self.run: Submission | None = None
        self.waits_for: asyncio.TimerHandle | asyncio.Future[Any] | None = None
        self.answered_from: AnsweredFrom = ""
        self.joined = ""
        self.rows = 0

    def __repr__(self) -> str:
        state = "ended" if self.place is None else f"waits at {self.place!r}"
        return f"<CachedRequest {self.request_id!r}: {state}>"

    def end(self) -> None:
        """Wait for nothing any more. The future is set by the caller."""
        self.place = None
        if self.waits_for is not None:
            self.waits_for.cancel()
            self.waits_for = None

    def succeed(self, item: Item) -> None:
        self.end()
        if not self.future.done():
            self.future.set_result(item)

    def fail(self, error: BaseException) -> None:
        self.end()
        if not self.future.done():
            self.future.set_exception(error)

    # as a submission

    def leave(self, failure: str = "cancelled") -> None:
        place = self.place
        if place is not None:
            self.end()
            place.forget(self, failure)
            self.future.cancel()

    def drop(self) -> None:
        self.leave()

    def visits(self) -> list[Visit]:
        return [] if self.run is None else self.run.visits()

    def timings(self) -> list[Stage]:
        return [] if self.run is None else self.run.timings()

    def spent(self) -> tuple[float, float]:
        return (0.0, 0.0) if self.run is None else self.run.spent()


def cached(submission: Any) -> CachedRequest | None:
    """Return the submission if no node ran for it, because another one's answer was its own."""
    if type(submission) is CachedRequest and submission.answered_from:
        return submission
    return None
