"""Single flight: of equal requests that are under way, one runs and the others wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from copy import copy
from typing import Any, Protocol

from penstock.backends.errors import DeadlineExceeded, Overloaded, QueueFull
from penstock.backends.item import Item

from ..node.statistics import kind_of_failure
from ..runs.admission import Admission
from ..runs.inside import Inside
from ..runs.run import Submission, as_future
from .answer import Answer
from .kept import Key
from .request import AnsweredFrom, CachedRequest

OF_ITS_OWN = (DeadlineExceeded, Overloaded, QueueFull)
"""How a run fails for the sake of the request that it runs for: the others need not fail with it.
"""


class Home(Protocol):
    """The cache of the pipeline, as its flights use it."""

    name: str
    admission: Admission
    clock: Callable[[], float]
    loop: asyncio.AbstractEventLoop

    def start(self, request: CachedRequest, flight: Flight) -> Submission: ...
    def land(self, flight: Flight) -> None: ...
    def keep(
        self, flight: Flight, item: Item, asked: Item, *, whatever_size: bool
    ) -> Answer | None: ...


class Flight:
    """Equal requests that wait for the same answer, and the run that makes it. Their run uses it as
    its future.

    The first of the `members` is the one for which the run counts in admission and in statistics.
    The others count as requests in flight that hold no rows. Whoever leaves, the run goes on for
    those who stay.
    """

    __slots__ = (
        "_adopted",
        "_home",
        "_item",
        "_run",
        "ended",
        "is_kept",
        "key",
        "leader_id",
        "members",
    )

    def __init__(self, home: Home, key: Key | None, first: CachedRequest, is_kept: bool) -> None:
        """`key`: None if no other request can join. `is_kept`: keep the answer."""
        self._home = home
        self.key = key
        self.is_kept = is_kept
        self.members: dict[CachedRequest, None] = {first: None}
        first.place = self
        self.leader_id = first.request_id
        self.ended = False
        self._item: Item | None = None  # what the run was made for
        self._run: Submission | None = None  # None: it has not started
        self._adopted = False  # True: the run started without the flight

    def __repr__(self) -> str:
        return f"<Flight of {len(self.members)}, {'runs' if self._run else 'runs not yet'}>"

    # members

    def join(self, request: CachedRequest) -> None:
        """Let a request wait too. The caller has counted it."""
        home = self._home
        self.is_kept = True  # it is the second one
        self.members[request] = None
        request.place = self
        request.joined = self.leader_id
        left = max(0.0, request.deadline - home.clock())
        request.waits_for = home.loop.call_later(left, self._expire, request)

    def forget(self, request: CachedRequest, failure: str) -> None:
        runs_for_it = next(iter(self.members)) is request and self._run is not None
        del self.members[request]
        if runs_for_it and not self.members:
            self._end()
            run, self._run = self._run, None
            assert run is not None
            run.leave(failure)  # counts it
            return
        # If a run goes on, it counts for the next member, which then waits no more.
        self._count_failure(request, failure)
        if not self.members:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._home.land(self)

    def _expire(self, request: CachedRequest) -> None:
        if request.place is self:
            request.end()
            self.forget(request, "expired")
            request.fail(
                DeadlineExceeded(
                    f"pipeline {self._home.name!r}: the deadline passed while it waited for the "
                    "answer of an equal request"
                )
            )

    # the run

    def adopt(self, run: Submission) -> None:
        """Take the place of the first member's future, which is that of a run under way.

        The caller of that run knows nothing of the flight. When it leaves, the run asks
        `leader_leaves` whether it goes on.
        """
        first = next(iter(self.members))
        self._run, self._item, self._adopted = run, first.item, True
        run.future = as_future(self)

    def leader_leaves(self, failure: str) -> bool:
        """Let the caller of an adopted run leave. Return whether the run goes on for others."""
        if self.ended or not self._adopted:
            return False
        first = next(iter(self.members))
        if first.item is self._item:
            if len(self.members) == 1:
                self._hand_back()
                self._end()
                self.members.clear()
                first.end()
                return False
            first.end()
            self.forget(first, failure)
            first.future.cancel()
        return True

    def _hand_back(self) -> None:
        """Give an adopted run its future back."""
        first = next(iter(self.members))
        if self._adopted and self._run is not None and first.item is self._item:
            self._run.future = first.future
        self._adopted = False

    def __await__(self) -> Generator[Any, None, Item]:
        """Wait as the caller of an adopted run does, who takes this for the run's future."""
        return next(iter(self.members)).future.__await__()

    def start(self) -> None:
        """Start the run, for the first member. Raises what admission raises."""
        request = next(iter(self.members))
        self._item = request.item
        self._run = request.run = self._home.start(request, self)
        self.leader_id = request.request_id
        request.joined = ""
        request.rows = request.run.rows

    def start_waiting(self) -> None:
        """Start the run for the first member, all of which wait. Those that are refused fail."""
        while self.members:
            request = next(iter(self.members))
            self._home.admission.leave(0)  # the run counts for it
            try:
                self.start()
            except Exception as error:
                del self.members[request]
                request.fail(error)
            else:
                return
        if not self.ended:
            self._end()

    # what a run uses of a future

    @property
    def inside(self) -> Inside | None:
        """The composites around the request that the run was made for (inside.py)."""
        for request in self.members:
            return getattr(request.future, "inside", None)
        return None

    def done(self) -> bool:
        return self.ended

    def cancel(self) -> bool:
        return False

    def set_result(self, item: Item) -> None:
        self._hand_back()
        home, run, asked = self._home, self._run, self._item
        self._run = self._item = None  # the run refers to this
        self._end()
        first, *others = self.members
        self.members.clear()
        if "error" in item:
            errors = [_copy_of(item["error"]) for _ in others]
            first.succeed(item if first.item is asked else {**first.item, "error": item["error"]})
            for request, error in zip(others, errors, strict=True):
                self._count_failure(request, "soft")
                request.succeed({**request.item, "error": error})
            return
        assert run is not None and asked is not None
        answer = None
        if self.is_kept or others:
            answer = home.keep(self, item, asked, whatever_size=bool(others))
        if first.item is not asked:
            # The one that it ran for has left, so this one has the answer for itself.
            first.answered_from = "joined"
            first.rows = run.rows
            item = _answer_of_another(item, asked, first.item)
        first.succeed(item)
        for request in others:
            if answer is None:
                # It can't be copied, and two callers must not share it.
                alone = Flight(home, None, request, False)
                home.loop.call_soon(alone.start_waiting)
            else:
                self.answer(request, answer, "joined")

    def answer(self, request: CachedRequest, answer: Answer, source: AnsweredFrom) -> None:
        """Answer a request that waits, from a kept answer."""
        admission = self._home.admission
        admission.requests.answer_from_cache(request.came, joined=source == "joined")
        admission.leave(0)
        request.answered_from = source
        request.rows = 0
        request.succeed(answer.item(request.item, reads_only=request.reads_only))

    def answer_all(self, answer: Answer, source: AnsweredFrom) -> None:
        """Answer all members, which wait, from an answer of the second level."""
        self._end()
        members = list(self.members)
        self.members.clear()
        for request in members:
            self.answer(request, answer, source)

    def set_exception(self, error: BaseException) -> None:
        self._hand_back()
        asked, self._run, self._item = self._item, None, None
        first, *others = self.members
        if isinstance(error, OF_ITS_OWN) and (others or first.item is not asked):
            if first.item is asked:
                del self.members[first]
                first.fail(error)
            else:  # it failed for one that has left
                self._home.admission.door.requests += 1
            # Not now: the node that delivers this may be at work on its queue.
            self._home.loop.call_soon(self.start_waiting)
            return
        self._end()
        self.members.clear()
        errors = [_copy_of(error) for _ in others]
        first.fail(error)
        for request, own in zip(others, errors, strict=True):
            self._count_failure(request, kind_of_failure(own))
            request.fail(own)

    def _count_failure(self, request: CachedRequest, failure: str) -> None:
        """Count the failure of a request for which no run counts."""
        admission = self._home.admission
        admission.requests.fail(failure, request.came)
        admission.leave(0)


def _answer_of_another(item: Item, asked: Item, own: Item) -> Item:
    """Return the final item of the request `asked` as that of an equal one, whose item is `own`."""
    return {
        key: own[key] if key == "data" or (key in asked and value is asked[key]) else value
        for key, value in item.items()
    }


def _copy_of(error: BaseException) -> BaseException:
    """Copy an exception: one that several tasks raise would gather the frames of all of them."""
    try:
        own = copy(error)
    except Exception:  # its class makes it of other arguments
        return error
    own.__cause__, own.__suppress_context__ = error.__cause__, error.__suppress_context__
    return own
