"""A request that has ended, as the history remembers it.

A record holds times, names and texts. Of what ran it holds the `Batch`, which lets go of its items
and its executor when it has been delivered. So no image, model or pipeline stays in memory for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

from penstock.pipelines.cache.request import AnsweredFrom, CachedRequest
from penstock.pipelines.node.queue import Batch
from penstock.pipelines.runs.graph_run import GraphRun
from penstock.pipelines.runs.pace import Pace
from penstock.pipelines.runs.run import Run, Submission
from penstock.pipelines.sequences.tracked import StepTicket

Door: TypeAlias = Literal["predict", "batch", "v2", "grpc", "generate", "stream", "socket"]
Outcome: TypeAlias = Literal["ok", "failed", "refused", "expired", "left", "bad input"]

CLIENT_LEFT_STATUS = 499
"""nginx's status for a client that left.

The client reads no answer, but a host's middleware may wait for one, and would take its absence for
a failure.
"""

MAX_DETAIL_CHARACTERS = 500
MAX_CODE_CHARACTERS = 100
"""So much is kept of what a request failed with: a user's error may have any code."""

MAX_VISITS = 64
"""The most visits of nodes that a record has, of all its items together. The rest is counted."""

_new = tuple.__new__
"""Makes a named tuple. Its own constructor is Python, and costs twice as much."""

_REFUSED = frozenset({"queue_full", "overloaded", "memory_full", "not_ready"})


class Failure(NamedTuple):
    """What a request failed with: its code (docs/reference/http.md), and what its client got."""

    code: str
    detail: str


class ItemVisit(NamedTuple):
    """One item of a request at one node. Times are seconds of `time.monotonic()`.

    `item`: its position in the request, or in what `part_of` split. `part_of`: the composite that
    sent it to the node, if one did. `enqueued`: when it queued. `batch`: None if the request ended
    before the item had run here.
    """

    item: int
    part_of: str | None
    node: str
    enqueued: float
    batch: Batch | None


class Record(NamedTuple):
    """A request that has ended. Times are seconds of `time.monotonic()`.

    `pace`: the pipeline's name, version and mean time; None if it asked for none that there is.
    `started`: when its first byte came, or, if all of it came at once, when it was submitted.
    `ended`: when its answer was ready to be written. `rows`: as admission counts them, 0 if it was
    refused before. `slow`: it took more than `Pace.slow`. `usual`: the mean seconds of its
    pipeline's requests at that time, 0 if not known. `visits`: of its items, in order; `walk` has
    those of parts too. `more_visits`: how many are missing there. `turn`: of a step of a sequence
    that waited for its turn, from when until when. `answered_from`: the cache, if it answered and
    no node. `joined`: the id of the equal request for which it waited.
    """

    id: str
    pace: Pace | None
    door: Door
    status: int
    failure: Failure | None
    started: float
    ended: float
    rows: int
    slow: bool
    usual: float
    visits: Sequence[ItemVisit]
    more_visits: int
    turn: tuple[float, float] | None = None
    answered_from: AnsweredFrom = ""
    joined: str = ""

    @property
    def pipeline(self) -> str | None:
        return None if self.pace is None else self.pace.name

    @property
    def version(self) -> str | None:
        return None if self.pace is None else self.pace.version

    @property
    def code(self) -> str:
        return "" if self.failure is None else self.failure.code

    @property
    def detail(self) -> str:
        return "" if self.failure is None else self.failure.detail

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def outcome(self) -> Outcome:
        return outcome_of(self.status, self.failure)

    def walk(self) -> Iterator[ItemVisit]:
        """Yield all visits, those of the parts of a composite after its own."""
        for visit in self.visits:
            yield visit
            yield from _parts_of(visit)

    @property
    def more_parts(self) -> int:
        """The number of visited parts that nothing more is known of."""
        return sum(visit.batch.more_parts for visit in self.walk() if visit.batch is not None)


def outcome_of(status: int, failure: Failure | None) -> Outcome:
    """Return how a request ended. An answer of 200 may have failed: in parts, or on its way."""
    if status == CLIENT_LEFT_STATUS:
        return "left"
    if failure is None:
        return "ok" if status < 400 else "bad input" if status < 500 else "failed"
    if failure.code in _REFUSED:
        return "refused"
    if failure.code == "deadline_exceeded":
        return "expired"
    return "bad input" if 400 <= status < 500 else "failed"


def turn_of(run: Submission, now: float) -> tuple[float, float] | None:
    """Return when a step of a sequence waited for its turn; None if it did not.

    `now`: when the request has ended, for one that never had its turn.
    """
    ticket = run.ticket if isinstance(run, Run | GraphRun) else None
    if type(ticket) is not StepTicket or ticket.step.waited == 0.0:
        return None
    waited = ticket.step.waited
    return ticket.came, now if waited is None else ticket.came + waited


def visits_of(runs: Iterable[Submission]) -> tuple[list[ItemVisit], int]:
    """Return the first `MAX_VISITS` visits of a request's runs, and how many there are more."""
    visits: list[ItemVisit] = []
    for item, run in enumerate(runs):
        visits += [_new(ItemVisit, (item, None, *visit)) for visit in run.visits()]
    more = len(visits) - MAX_VISITS
    if more > 0:
        del visits[MAX_VISITS:]
        return visits, more
    return visits, 0


def record_of(
    request_id: str,
    pace: Pace | None,
    *,
    door: Door,
    status: int,
    failure: Failure | None,
    started: float,
    ended: float,
    runs: Sequence[Submission],
) -> Record:
    """Make the record of a request that has ended.

    `started`: 0 if it is not known; then it is the time when the first run was queued.
    """
    turn = turn_of(runs[0], ended) if len(runs) == 1 else None
    # A step that never had its turn has been at no node.
    visits, more = visits_of(() if turn is not None and turn[1] == ended else runs)
    answered_from: AnsweredFrom = ""
    joined = ""
    if len(runs) == 1 and isinstance(runs[0], CachedRequest):
        answered_from, joined = runs[0].answered_from, runs[0].joined
    if not started:
        started = turn[0] if turn else visits[0].enqueued if visits else ended
    is_slow = (
        pace is not None
        and ended - started > pace.slow
        and outcome_of(status, failure) != "refused"
    )
    if failure is not None:
        failure = Failure(
            failure.code[:MAX_CODE_CHARACTERS], failure.detail[:MAX_DETAIL_CHARACTERS]
        )
    return _new(
        Record,
        (
            request_id,
            pace,
            door,
            status,
            failure,
            started,
            ended,
            runs[0].rows if len(runs) == 1 else sum(run.rows for run in runs),
            is_slow,
            0.0 if pace is None else pace.mean,
            visits,
            more,
            turn,
            answered_from,
            joined,
        ),
    )


def _parts_of(visit: ItemVisit) -> Iterator[ItemVisit]:
    batch = visit.batch
    if batch is not None and batch.parts is not None:
        for part, visits in batch.parts:
            for passed in visits:
                inner = ItemVisit(part, visit.node, *passed)
                yield inner
                yield from _parts_of(inner)
