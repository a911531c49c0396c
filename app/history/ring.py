"""The ring of the last requests of a server, of all its pipelines together.

What a usual request costs is one tuple and one `append` (`Quick`). Everything else is made when
somebody asks. docs/explanation/performance.md has the cost.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice, starmap
from time import monotonic
from typing import TypeAlias

from penstock.pipelines.cache.request import CachedRequest
from penstock.pipelines.node.queue import Batch
from penstock.pipelines.runs.graph_run import GraphRun
from penstock.pipelines.runs.pace import Pace
from penstock.pipelines.runs.run import Run, Submission

from .record import (
    MAX_VISITS,
    Door,
    Failure,
    ItemVisit,
    Record,
    record_of,
    turn_of,
)

MAX_KEPT = 200
"""So many slow requests are kept, and as many failed ones, however many quick ones follow."""

VISIT_BYTES = 800
"""About what a visit holds, if no other request was in its batch: the batch, its times, its texts.
"""

RECORD_BYTES = 600
"""About what a record holds besides."""

LEAST_SIZE = 4096
"""The room below is that of a ring of so many requests at least, because a few may be large."""

BYTES_PER_REQUEST = 1024
"""The room for requests that are neither `Quick` nor `Passed`."""

VISITS_PER_REQUEST = 1
"""The room for those that are `Passed`."""

KEPT_BYTES = 2 << 20
"""The most that slow requests may hold, and failed ones."""

Quick: TypeAlias = tuple[str, Pace, Door, float, float, float, Batch, int]
"""A good request that passed one node: id, pace, door, first byte (0: it came at once), when it was
queued, when its answer was ready, its batch and its rows."""


Trail: TypeAlias = Sequence[tuple[Batch, float]] | Sequence[tuple[str, float, Batch]]
"""The batches of a request, and when it was queued for each: as a run has them."""


Passed: TypeAlias = tuple[str, Pace, Door, float, float, int, Trail, float | None, int]
"""A good request that passed several nodes, not made a `Record` yet: id, pace, door, first byte,
when its answer was ready, its rows, its batches, if it was slow the mean at that time, and how many
visits are counted for it."""


class Shelf:
    """The newest records, at most `most` of them and of about `most_bytes` together."""

    __slots__ = ("_bytes", "_most", "_most_bytes", "_records")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._records: deque[tuple[int, Record | Passed]] = deque()
        self._bytes = 0
        self._most = most
        self._most_bytes = most_bytes

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records, the oldest first."""
        for _, record in self._records:
            yield _whole(record)

    def __reversed__(self) -> Iterator[Record]:
        for _, record in reversed(self._records):
            yield _whole(record)

    def copy(self) -> Shelf:
        copied = Shelf(self._most, self._most_bytes)
        copied._records = self._records.copy()
        return copied

    def add(self, record: Record | Passed, size: int) -> None:
        records = self._records
        records.append((size, record))
        self._bytes += size
        while len(records) > self._most or self._bytes > self._most_bytes:
            gone, _ = records.popleft()
            self._bytes -= gone


class History:
    """The last requests of a server.

    It remembers the last `size` of them, or fewer if they passed many nodes, and the last slow and
    failed ones. Use it on one event loop at a time.
    """

    __slots__ = (
        "_failed",
        "_most_visits",
        "_others",
        "_passed",
        "_quick",
        "_quick_slow",
        "_slow",
        "_visits",
        "append",
        "size",
    )

    def __init__(self, size: int) -> None:
        self.size = size
        self._quick: deque[Quick] = deque(maxlen=size)
        self._passed: deque[Passed] = deque()
        self._visits = 0  # of `_passed`
        self._most_visits = max(size, LEAST_SIZE) * VISITS_PER_REQUEST
        self._others = Shelf(size, max(size, LEAST_SIZE) * BYTES_PER_REQUEST)
        self._slow = Shelf(min(MAX_KEPT, size), KEPT_BYTES)
        self._failed = Shelf(min(MAX_KEPT, size), KEPT_BYTES)
        # With the mean of its pipeline's requests at that time.
        self._quick_slow: deque[tuple[Quick, float]] = deque(maxlen=min(MAX_KEPT, size))
        self.append: Callable[[Quick], None] = self._quick.append
        """Remember a request. One that was slow (`Pace.slow`) is passed to `add_slow` too."""

    def add_slow(self, quick: Quick) -> None:
        """Keep a request that was slow, after `append`."""
        self._quick_slow.append((quick, quick[1].mean))

    def add(
        self,
        request_id: str,
        pace: Pace | None,
        *,
        door: Door,
        status: int,
        failure: Failure | None,
        started: float,
        runs: Sequence[Submission],
    ) -> None:
        """Remember a request that ends now.

        `started`: 0 if it is not known; then it is the time when the first run was queued.
        """
        now = monotonic()
        if (
            failure is None
            and status == 200
            and len(runs) == 1
            and pace is not None
            and turn_of(run := runs[0], now) is None
        ):
            if isinstance(run, CachedRequest) and not run.joined and run.run is not None:
                run = run.run  # what ran for it
            if isinstance(run, Run) and (batch := run.batch) is not None:
                enqueued, stages = run.enqueued, run.stages
                if stages is None and batch.parts is None:
                    quick = request_id, pace, door, started, enqueued, now, batch, run.rows
                    self._quick.append(quick)
                    if now - (started or enqueued) > pace.slow:
                        self.add_slow(quick)
                    return
                trail: Trail = (*(stages or ()), (batch, enqueued))
                if len(trail) <= MAX_VISITS:
                    self.add_trail(request_id, pace, door, started, trail, run.rows)
                    return
            elif isinstance(run, GraphRun) and 0 < len(run.stages) <= MAX_VISITS:
                self.add_trail(request_id, pace, door, started, run.stages, run.rows)
                return
        record = record_of(
            request_id,
            pace,
            door=door,
            status=status,
            failure=failure,
            started=started,
            ended=now,
            runs=runs,
        )
        outcome = record.outcome
        size = _bytes_of(record)
        self._others.add(record, size)
        if record.slow or outcome == "expired":
            self._slow.add(record, size)
        if outcome == "failed":
            self._failed.add(record, size)

    def add_trail(  # noqa: PLR0917  by name they would cost each request more
        self,
        request_id: str,
        pace: Pace,
        door: Door,
        started: float,
        trail: Trail,
        rows: int,
    ) -> None:
        """Remember a good request, which ends now. It has passed 1 to `MAX_VISITS` nodes."""
        now = monotonic()
        begun = started or trail[0][1]
        slow = pace.mean if now - begun > pace.slow else None
        visits = len(trail)
        passed: Passed = (request_id, pace, door, begun, now, rows, trail, slow, visits)
        if pace.has_parts:
            visits = sum(1 for _ in _whole(passed).walk())
            passed = (request_id, pace, door, begun, now, rows, trail, slow, visits)
        kept = self._passed
        kept.append(passed)
        visits += self._visits
        while visits > self._most_visits or len(kept) > self.size:
            visits -= kept.popleft()[-1]
        self._visits = visits
        if slow is not None:
            self._slow.add(passed, RECORD_BYTES + VISIT_BYTES * passed[-1])

    def copy(self) -> History:
        """Return what is remembered now, to be read on another thread."""
        copied = History(self.size)
        copied._quick = self._quick.copy()
        copied._passed = self._passed.copy()
        copied._others = self._others.copy()
        copied._slow = self._slow.copy()
        copied._failed = self._failed.copy()
        copied._quick_slow = self._quick_slow.copy()
        return copied

    def recent(self) -> Iterator[Record]:
        """Iterate over the last `size` requests, the newest first."""
        others = reversed(self._others)
        means = {id(quick): mean for quick, mean in self._quick_slow}
        quick = (_record_of(quick, means.get(id(quick))) for quick in reversed(self._quick))
        passed = map(_whole, reversed(self._passed))
        newest = merge(others, passed, quick, key=_ended, reverse=True)
        return islice(newest, self.size)

    def seconds_since(self, then: float) -> dict[Pace, list[float]]:
        """Return how long the good requests took that ended after `then`, by their pipelines."""
        # Without records, which cost ten times as much: this is for each second of `/status`.
        found: defaultdict[Pace, list[float]] = defaultdict(list)
        for _, pace, _, first_byte, enqueued, ended, *_ in reversed(self._quick):
            if ended <= then:
                break
            found[pace].append(ended - (first_byte or enqueued))
        for _, pace, _, started, ended, *_ in reversed(self._passed):
            if ended <= then:
                break
            found[pace].append(ended - started)
        for record in reversed(self._others):
            if record.ended <= then:
                break
            if record.pace is not None and record.outcome == "ok":
                found[record.pace].append(record.seconds)
        return found

    def slow(self) -> Iterator[Record]:
        """Iterate over the last requests that were slow or came to their deadline, newest first."""
        quick = starmap(_record_of, reversed(self._quick_slow))
        return merge(reversed(self._slow), quick, key=_ended, reverse=True)

    def failed(self) -> Iterator[Record]:
        """Iterate over the last requests that failed by our fault, the newest first."""
        return reversed(self._failed)

    def __iter__(self) -> Iterator[Record]:
        """Iterate over all requests that are remembered, the newest first."""
        last = 0.0
        for record in merge(self.recent(), self.slow(), self.failed(), key=_ended, reverse=True):
            if record.ended != last:  # one record may be in all three
                yield record
            last = record.ended

    def find(self, request_id: str) -> Record | None:
        """Return the newest request with this id."""
        return next((record for record in self if record.id == request_id), None)

    def __len__(self) -> int:
        """The number of requests that `recent` has."""
        return min(self.size, len(self._quick) + len(self._passed) + len(self._others))


def _ended(record: Record) -> float:
    return record.ended


def _record_of(quick: Quick, slow: float | None) -> Record:
    """Return the whole record. `slow`: if it was, the mean at that time."""
    request_id, pace, door, first_byte, enqueued, ended, batch, rows = quick
    trail = ((batch, enqueued),)
    return _whole((request_id, pace, door, first_byte or enqueued, ended, rows, trail, slow, 1))


def _whole(record: Record | Passed) -> Record:
    if isinstance(record, Record):
        return record
    request_id, pace, door, started, ended, rows, trail, slow, _ = record
    visits: list[ItemVisit] = []
    for visit in trail:
        if len(visit) == 2:
            batch, enqueued = visit
            visits.append(ItemVisit(0, None, batch.node, enqueued, batch))
        else:
            node, enqueued, batch = visit
            visits.append(ItemVisit(0, None, node, enqueued, batch))
    return Record(
        request_id,
        pace,
        door,
        200,
        None,
        started,
        ended,
        rows,
        slow is not None,
        pace.mean if slow is None else slow,
        visits,
        0,
    )


def _bytes_of(record: Record) -> int:
    """Return about how many bytes a record keeps in memory."""
    visits = record.visits
    size = RECORD_BYTES + VISIT_BYTES * len(visits)
    for visit in visits:
        if visit.batch is not None and visit.batch.parts is not None:
            size += VISIT_BYTES * (sum(1 for _ in record.walk()) - len(visits))
            break
    if record.failure is not None:
        size += sys.getsizeof(record.failure.detail)
    return size
