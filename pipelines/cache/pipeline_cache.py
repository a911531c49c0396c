"""The cache of one pipeline: every request comes through `submit`, from whatever door.

A request is looked up by the digest of its item. It is answered at once if the answer is kept, it
joins an equal one that is under way, or it runs. The answer is kept when its key is seen for the
second time: a key that comes once, as most do where inputs are photographs, takes no room.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol, TypeAlias
from weakref import ref

from penstock.backends.item import Item

from ..runs.admission import Admission
from ..runs.run import Run, Submission, as_future
from ..runs.trace import Trace
from ..sequences.step import Step
from ..trace_context import TraceContext
from .answer import Answer, UnkeptAnswerError
from .flight import Flight
from .kept import Key
from .keys import ON_LOOP_BYTES, LargeItemError, UnhashableItemError, digest_of, sketch_of
from .request import CachedRequest
from .responses import ResponseCache
from .wire import MalformedAnswerError, UnencodableAnswerError, decode, encode

logger = logging.getLogger("penstock.cache")

MAX_LOGGED = 10
"""So many different reasons why something is not cached are logged, of one pipeline."""

_loads = itertools.count(1)
"""Numbers of loads. Answers are kept by them, so that no load sees those of an earlier one."""


_Digests: TypeAlias = "tuple[bytes, _Leader | None]"


class Submit(Protocol):
    """`Pipeline.submit_nowait`."""

    def __call__(  # noqa: PLR0917  as that
        self,
        item: Item,
        timeout: float | None = None,
        priority: int | None = None,
        future: asyncio.Future[Item] | None = None,
        request_id: str = "",
        trace: Trace | None = None,
        run: Run | None = None,
        client: Hashable = None,
        until: float | None = None,
        sequence: Step | None = None,
        context: TraceContext | None = None,
        reads_only: bool = False,
        use_cache: bool = True,
    ) -> Submission: ...


class PipelineCache:
    """The cache of one pipeline that is loaded.

    `ttl`: the seconds for which an answer is kept; None: as long as there is room. `generation`:
    what tells the answers of this pipeline, as it is now, from those of others in a second level;
    None: it can't be told.
    """

    def __init__(
        self,
        name: str,
        *,
        submit: Submit,
        admission: Admission,
        responses: ResponseCache,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        limit: float,
        ttl: float | None,
        generation: bytes | None = None,
    ) -> None:
        """`limit`: the seconds until the deadline of a request that sets none."""
        responses.open()
        self.name = name
        self.admission = admission
        self.clock = clock
        self.loop = loop
        self._submit = submit
        self._responses = responses
        self._limit = limit
        self._ttl = ttl
        self._load = next(_loads)
        self._generation = generation
        self._salt = b"" if generation is None else generation
        self._flights: dict[Key, Flight] = {}
        self._leaders: dict[int, _Leader] = {}  # by their sketches
        self._logged: set[str] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<PipelineCache of {self.name}: {len(self._flights)} flights>"

    @property
    def size(self) -> tuple[int, int]:
        """How many of its answers are kept, and about their bytes."""
        return (0, 0) if self._closed else self._responses.of(self._load)

    def submit(  # noqa: PLR0917  as `Pipeline.submit_nowait`, which passes its own
        self,
        item: Item,
        timeout: float | None,
        priority: int | None,
        future: asyncio.Future[Item] | None,
        request_id: str,
        run: Run | None,
        client: Hashable,
        until: float | None,
        context: TraceContext | None,
        reads_only: bool,
    ) -> Submission:
        """Do as `Pipeline.submit_nowait` does, or answer the request without running it."""
        came = self.clock()
        responses, statistics = self._responses, self.admission.requests
        as_it_is = (
            *(item, timeout, priority, future, request_id, None, run, client, until),
            *(None, context, False, False),
        )
        try:
            sketch = sketch_of(item)
        except UnhashableItemError as error:
            self._note("a request can't be answered from the cache", error)
            statistics.uncached += 1
            return self._submit(*as_it_is)
        is_new = sketch is None or not responses.see(sketch ^ self._load)
        if is_new and sketch is not None and responses.second is None and until is None:
            # Its first time: there is no answer, and nobody asks for it as yet. This is the path of
            # most requests where few are equal.
            submission = self._submit(*as_it_is)
            leaders = self._leaders
            leader = leaders[sketch] = _Leader(submission, _forget)
            leader.came, leader.item, leader.leaders, leader.sketch = came, item, leaders, sketch
            statistics.misses += 1
            statistics.miss_seconds += self.clock() - came
            return submission
        limit = self._limit
        if timeout is not None and timeout < limit:
            limit = timeout
        deadline = came + limit if until is None else min(came + limit, until)
        request = CachedRequest(
            item,
            self.loop.create_future() if future is None else future,
            came,
            deadline,
            timeout=timeout,
            priority=priority,
            client=client,
            request_id=request_id,
            until=until,
            context=context,
            reads_only=reads_only,
        )
        known = None if sketch is None else self._leaders.get(sketch)
        try:
            digests = self._digests(item, known, ON_LOOP_BYTES)
        except UnhashableItemError as error:
            self._note("a request can't be answered from the cache", error)
            statistics.uncached += 1
            return self._submit(*as_it_is)
        except LargeItemError:
            self._wait(request)
            request.place = self
            hashing = self.loop.run_in_executor(None, self._digests, item, known)
            # Cancelled if it leaves: what clients that left had sent must not wait for a thread.
            request.waits_for = hashing
            hashing.add_done_callback(partial(self._hashed, request, is_new))
            return request
        self._enter(request, digests, is_new=is_new, waits=False)
        return request

    def _digests(self, item: Item, leader: _Leader | None, most: int | None = None) -> _Digests:
        """Return the digest of an item, and the leader whose item has the same one."""
        digest = digest_of(item, self._salt, most)
        if leader is not None and digest_of(leader.item, self._salt, most) != digest:
            leader = None
        return digest, leader

    def _wait(self, request: CachedRequest) -> None:
        """Count a request that waits for something else than nodes. Raises `QueueFull`."""
        self.admission.count_waiting(request.priority, self.clock())

    def _hashed(
        self, request: CachedRequest, is_new: bool, hashing: asyncio.Future[_Digests]
    ) -> None:
        if hashing.cancelled() or request.place is not self:  # it has left
            return
        request.waits_for = None
        error = hashing.exception()
        if error is None:
            self._enter(request, hashing.result(), is_new=is_new, waits=True)
            return
        self._note("a request can't be answered from the cache", error)
        self.admission.requests.uncached += 1
        Flight(self, None, request, False).start_waiting()

    def _enter(
        self, request: CachedRequest, digests: _Digests, *, is_new: bool, waits: bool
    ) -> None:
        """Answer a request, let it join an equal one, or start it.

        `waits`: it is counted as waiting, and its caller has it. So nothing is raised.
        """
        digest, leader = digests
        key = self._load, digest
        responses = self._responses
        answer = responses.get(key, self.clock())
        if answer is not None:
            request.place = self
            if not waits:
                self.admission.door.requests += 1
            # Not now: the caller has to know its submission before its future is done.
            self.loop.call_soon(self._answer, request, answer)
            return
        flight = self._flights.get(key)
        if flight is None and leader is not None:
            flight = self._flight_of(leader, key)
        second = responses.second if self._generation is not None else None
        if flight is not None or second is not None:
            if not waits:
                self._wait(request)
                waits = True
            if flight is not None:
                flight.join(request)
                return
        if is_new:
            is_new = not responses.see(hash(key))
        flight = self._flights[key] = Flight(self, key, request, is_kept=not is_new)
        if second is not None and second.look(digest, partial(self._looked, flight)):
            return
        if waits:
            flight.start_waiting()
            return
        try:
            flight.start()
        except BaseException:
            request.place = None
            self.land(flight)
            raise

    def _flight_of(self, leader: _Leader, key: Key) -> Flight | None:
        """Make a flight of a request under way, that was the first of its kind."""
        run = leader()
        if run is None or run.future.done():
            return None
        first = CachedRequest(
            leader.item,
            run.future,
            leader.came,
            float("inf"),
            timeout=None,
            priority=None,
            client=None,
            request_id=run.request_id,
            until=None,
            context=None,
            reads_only=False,
        )
        flight = self._flights[key] = Flight(self, key, first, is_kept=True)
        flight.adopt(run)
        return flight

    def _answer(self, request: CachedRequest, answer: Answer) -> None:
        if request.place is not self:
            return
        admission = self.admission
        admission.requests.answer_from_cache(request.came)
        admission.leave(0)
        request.answered_from = "cache"
        request.succeed(answer.item(request.item, reads_only=request.reads_only))

    def _looked(self, flight: Flight, content: bytes | None) -> None:
        """Go on after the second level was asked."""
        if flight.ended:
            return
        if content is not None and not self._closed:
            try:
                values, own = decode(content)
                asked = next(iter(flight.members)).item
                answer = Answer({**values, **{key: asked[key] for key in own}}, asked)
            except (MalformedAnswerError, UnkeptAnswerError, KeyError) as error:
                self._note("an answer from Redis is not used", error)
            else:
                self._put(flight.key, answer)
                flight.answer_all(answer, "redis")
                return
        flight.start_waiting()

    # as a place

    def forget(self, request: CachedRequest, failure: str) -> None:
        self.admission.requests.fail(failure, request.came)
        self.admission.leave(0)

    # as the home of flights

    def start(self, request: CachedRequest, flight: Flight) -> Submission:
        """Start the run for a request. Raises what admission raises."""
        statistics = self.admission.requests
        now = self.clock()
        passed = now - request.came
        timeout = request.timeout
        submission = self._submit(
            request.item,
            None if timeout is None else timeout - passed,
            request.priority,
            as_future(flight),
            request.request_id,
            None,
            None,
            request.client,
            request.deadline if timeout is None else request.until,
            None,
            request.context,
            False,
            False,
        )
        if flight.key is not None:
            statistics.misses += 1
            statistics.miss_seconds += passed
        return submission

    def land(self, flight: Flight) -> None:
        """Let no more requests join a flight."""
        if flight.key is not None and self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    def keep(
        self, flight: Flight, item: Item, asked: Item, *, whatever_size: bool
    ) -> Answer | None:
        """Keep an answer. Return a copy, to answer others from; None if it can't be copied.

        `whatever_size`: others wait, so copy it even if it is too large to be kept.
        """
        began = self.clock()
        most = float("inf") if whatever_size else self._responses.largest
        try:
            answer = Answer(item, asked, most)
        except UnkeptAnswerError as error:
            self._note("an answer is not kept", error)
            return None
        except Exception as error:  # of a user's class
            self._note("an answer is not kept", error)
            return None
        if flight.key is not None and not self._closed:
            self._put(flight.key, answer)
            second = self._responses.second
            if second is not None and self._generation is not None:
                try:
                    content = encode(item, answer.own)
                except UnencodableAnswerError as error:
                    self._note("an answer is not kept in Redis", error)
                else:
                    second.keep(flight.key[1], content, self._ttl)
        self.admission.requests.miss_seconds += self.clock() - began
        return answer

    def _put(self, key: Key | None, answer: Answer) -> None:
        if key is not None:
            if self._ttl is not None:
                answer.expires = self.clock() + self._ttl
            self._responses.put(key, answer)

    def close(self) -> None:
        """Let go of its answers, and keep no more."""
        if not self._closed:
            self._closed = True
            if self._responses.is_open:
                self._responses.forget(self._load)

    def _note(self, what: str, reason: BaseException) -> None:
        """Log once what is not cached, and why."""
        text = f"{what}: {reason}"
        if text not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(text)
            logger.warning("pipeline %s: %s", self.name, text, extra={"pipeline": self.name})


class _Leader(ref[Submission]):
    """A request whose item had not been here before, as long as it lives. Equal ones may join it.

    It holds nothing of the request but the item, which is gone with it. Its fields are set from
    outside: a constructor in Python would cost as much as all the rest of it.
    """

    __slots__ = ("came", "item", "leaders", "sketch")

    came: float
    item: Item
    leaders: dict[int, _Leader]
    sketch: int


def _forget(leader: Any) -> None:
    if leader.leaders.get(leader.sketch) is leader:
        del leader.leaders[leader.sketch]
