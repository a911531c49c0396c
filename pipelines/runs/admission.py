"""Admission at a pipeline's entry: the one place that may refuse a request for load.

Rule 6 of docs/explanation/scheduling.md. What is decided is in `overload/`; here it meets the
nodes, the bounds of the configuration and the clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence, Sized

from penstock.backends.errors import Overloaded, PenstockError, QueueFull

from ..config.definition import PipelineConfig
from ..node.node import Node
from ..node.queue import Entry
from ..node.statistics import RequestStatistics
from ..overload.door import Door, LevelEndings, Pressure, retry_after
from ..overload.rates import Rates
from ..overload.ticket import Ticket
from ..sequences.step import Step
from ..sequences.tracked import Owner, StepTicket
from .pace import Pace

RESERVED_DIVISOR = 8
"""An eighth of `max_requests` is for clients that have less than their share inside."""
SHARED_SECONDS = 10.0
"""So long are these places kept after the last time that several clients were inside."""

REFRESH_SECONDS = 0.05
"""The rates are taken anew this often, and after each of the first `EARLY_BATCHES`."""
EARLY_BATCHES = 100


class Admission:
    """Counts the requests in flight and decides about one more.

    A refusal costs no queue, no future and no thread. `door` counts all requests; `room` is the
    number of rows up to which nothing needs to be decided about a request that sets no deadline.
    """

    __slots__ = (
        "_batches",
        "_bounds_levels",
        "_chains",
        "_default_level",
        "_max_wait",
        "_queue_size",
        "_refresh_at",
        "_sequences",
        "_shared_at",
        "_unreserved",
        "door",
        "draining",
        "exposed",
        "max_requests",
        "nodes",
        "pace",
        "pressure",
        "rates",
        "refused",
        "refused_by_level",
        "requests",
        "room",
        "run_time",
        "turns",
    )

    def __init__(self, config: PipelineConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.nodes: Sequence[Node] = ()
        self.exposed: Sequence[NodeAdmission] = ()  # those of the pipeline's exposed nodes
        self.max_requests = config.max_requests
        self._unreserved = config.max_requests - config.max_requests // RESERVED_DIVISOR
        self.draining: asyncio.Future[None] | None = None
        self.refused = {"queue_full": 0, "overloaded": 0}
        self.requests = RequestStatistics(clock)
        self.pace = Pace(config.name, config.version)
        self.rates = Rates(config.max_wait, config.timeout)
        self.run_time = 0.0  # seconds that an item spends running, over all nodes
        self.pressure = Pressure()
        leveled = max(config.nodes.values(), key=lambda node: node.priority_levels)
        levels = leveled.priority_levels or 1
        self._default_level = max(leveled.default_priority, 1)
        self._max_wait = config.max_wait
        self._make_doors(levels)
        self.refused_by_level = {
            (code, level): 0
            for code in self.refused
            for level in (range(1, levels + 1) if levels > 1 else (0,))
        }
        self._queue_size = config.queue_size
        self._bounds_levels = any(
            policy.max_queue_size is not None
            for node in config.nodes.values()
            for policy in node.queue_policies
        )
        self.turns: Sized = ()  # the steps of sequences that wait for their turn
        # Each step of a sequence needs a ticket.
        self._sequences = any(node.sequence is not None for node in config.nodes.values())
        self._batches = 0
        self._refresh_at = 0.0
        self._shared_at = -SHARED_SECONDS
        self.room = 0.0
        self._set_room()

    def _make_doors(self, levels: int) -> None:
        doors = [Door([LevelEndings()]) for _ in range(levels - 1)]
        # Without the rule nothing tells the nodes of pressure: first come, first served.
        self.door = Door([self.requests], None if self._max_wait is None else self.pressure)
        self.pressure.doors = (*doors, self.door)
        # By level, the doors that count its requests. The first of them decides.
        self._chains = tuple(self.pressure.doors[level:] for level in range(levels))

    # what the nodes report

    def update(self, now: float) -> None:
        """Take the new rates now and then, after a batch has run and before its results are
        delivered.
        """
        if now >= self._refresh_at:
            self._batches += 1
            if self._batches > EARLY_BATCHES:
                self._refresh_at = now + REFRESH_SECONDS
            self.refresh(now)

    def refresh(self, now: float) -> None:
        """Take the new rates, and let the doors look at the time."""
        for door in self.pressure.doors:
            door.note()
        self._take_rates()
        self.pace.observe(self.requests, now)
        self.pressure.target = self.requests.patience = self.rates.target
        for exposed in self.exposed:
            exposed._take_rates()
            exposed.pace.observe(exposed.requests, now)
            exposed.requests.patience = self.rates.target
        for level, door in enumerate(self.pressure.doors):
            door.observe(self._idle_until(level + 1, now), self.rates.base, now)
        if self._max_wait is not None:
            self.pressure.look(self.rates.base)

    def _take_rates(self) -> None:
        self.rates.update(self.nodes)
        self.run_time = sum(node.estimate.recent for node in self.nodes)
        if self.rates.slowest is not None:
            self.nodes[self.rates.slowest].scheduler.small = self.rates.small
        self._set_room()

    def _set_room(self) -> None:
        rates = self.rates
        rates.base = min(rates.base, self._unreserved)
        if (
            len(self._chains) > 1
            or self._queue_size is not None
            or self._sequences
            or self._bounds_levels
        ):
            self.room = 0
        elif self._max_wait is None:
            self.room = self.max_requests
        else:
            self.room = rates.base

    def _idle_until(self, priority: int | None, now: float) -> float:
        """Return when the slowest node had an executor for this priority for the last time."""
        if self.rates.slowest is None:
            return now
        node = self.nodes[self.rates.slowest]
        return node.scheduler.idle_until(now, node.level_of(priority))

    # the decision

    def check(
        self,
        size: int,
        timeout: float | None,
        priority: int | None,
        client: Hashable,
        now: float,
    ) -> None:
        """Raise `QueueFull` or `Overloaded` if a request of `size` rows should be refused.

        `timeout`: the seconds until the deadline that its caller has set; None: the caller has set
        none.
        """
        chain = self._chain(priority)
        door = chain[0]
        if door.requests >= self.max_requests:
            self._refuse_full(
                door,
                f"too many requests in flight: {door.requests} "
                f"(max_requests = {self.max_requests})",
                now,
            )
        if door.requests >= self._unreserved:
            self._check_reserve(door, timeout, client, now)
        if self._queue_size is not None:
            self._check_queue(door, priority, self._queue_size, now)
        if self._bounds_levels:
            self._check_levels(door, priority, now)
        if timeout is None:
            if self._max_wait is not None:
                self._check_rule(door, size, priority, client, now)
            return
        # As if all rows in flight were ahead of it: no finer estimate is larger.
        if (self.door.rows + size) * self.rates.best + self.run_time > timeout:
            self._estimate(door, size, timeout, priority, client=client, now=now)

    def _check_rule(
        self, door: Door, size: int, priority: int | None, client: Hashable, now: float
    ) -> None:
        """Raise `Overloaded` if the rule refuses the request."""
        rates = self.rates
        if not door.admits(size, client, rates, self._idle_until(priority, now), now):
            self._count_refusal("overloaded", door)
            raise _refusal(
                Overloaded,
                f"more comes than can be answered: {door.n} rows are inside, about "
                f"{door.n * rates.best * 1000:.0f} ms of work; {rates.base:.0f} rows can be "
                f"answered within {rates.target:g} s (max_wait)",
                (door.n + size - rates.base) * rates.best,
            )

    def count_waiting(self, priority: int | None, now: float) -> None:
        """Count a request that waits for something else than nodes: it holds no rows.

        Raises `QueueFull` if too many are in flight. `leave(0)` stops counting it.
        """
        if self.door.requests >= self.max_requests:
            self._refuse_full(
                self._chain(priority)[0],
                f"too many requests in flight: {self.door.requests} "
                f"(max_requests = {self.max_requests})",
                now,
            )
        self.door.requests += 1

    def ticket(
        self,
        size: int,
        timeout: float | None,
        priority: int | None,
        client: Hashable,
        now: float,
    ) -> Ticket:
        """Return the ticket of an admitted request. The caller counts it at `door`."""
        return Ticket(
            self._chain(priority),
            self.pressure,
            size,
            now,
            client=client,
            patient=timeout is not None and self._is_patient(timeout),
        )

    def step_ticket(
        self,
        step: Step,
        owner: Owner,
        timeout: float | None,
        priority: int | None,
        *,
        client: Hashable,
        now: float,
        deadline: float,
    ) -> StepTicket:
        """Return the ticket of an admitted step of a sequence, which has one row."""
        return StepTicket(
            self._chain(priority),
            self.pressure,
            1,
            now,
            client=client,
            patient=timeout is not None and self._is_patient(timeout),
            step=step,
            owner=owner,
            deadline=deadline,
        )

    def count_full(self, priority: int | None) -> None:
        """Count a refusal for want of room that was decided elsewhere."""
        self._count_refusal("queue_full", self._chain(priority)[0])

    def count_refusal(self, code: str, priority: int | None, now: float) -> None:
        """Count a refusal that a front process has decided."""
        door = self._chain(priority)[0]
        door.refuse(now)
        self._count_refusal(code, door)

    def ticket_of(self, size: int, priority: int | None, client: Hashable, came: float) -> Ticket:
        """Return a ticket for a request that was admitted without one. It counts the client."""
        if client is not None:
            self.door.forget(client, size)
        return self.ticket(size, None, priority, client, came)

    def _count_refusal(self, code: str, door: Door) -> None:
        self.refused[code] += 1
        levels = self.pressure.doors
        key = code, levels.index(door) + 1 if len(levels) > 1 else 0
        self.refused_by_level[key] = self.refused_by_level.get(key, 0) + 1

    def _chain(self, priority: int | None) -> tuple[Door, ...]:
        chains = self._chains
        return chains[min(priority or self._default_level, len(chains)) - 1]

    def _is_patient(self, timeout: float) -> bool:
        return self._max_wait is not None and timeout > 2 * self.rates.target

    def _refuse_full(self, door: Door, text: str, now: float) -> None:
        door.refuse(now)
        self._count_refusal("queue_full", door)
        raise _refusal(QueueFull, text, (door.n - self.rates.base) * self.rates.best)

    def _check_reserve(
        self, door: Door, timeout: float | None, client: Hashable, now: float
    ) -> None:
        """Raise `QueueFull` if the places that are left are for other clients.

        For requests that set a deadline: the rule leaves these places free by itself.
        """
        active, held = door.share(client)
        if active > 1:
            self._shared_at = now
        if (
            timeout is not None
            and self._max_wait is not None
            and now - self._shared_at < SHARED_SECONDS
            and held > self.max_requests / max(2, active)
        ):
            self._refuse_full(
                door,
                f"too many requests in flight: {door.requests} (max_requests = "
                f"{self.max_requests}, the last {self.max_requests - self._unreserved} of them for "
                "clients with fewer requests)",
                now,
            )

    def _check_queue(self, door: Door, priority: int | None, most: int, now: float) -> None:
        """Raise `QueueFull` if `most` requests wait already, of this level and those above it.

        A request waits if it queues somewhere and nothing of it runs. What idle executors will take
        at the end of this iteration of the loop does not wait.
        """
        if door.requests < most:
            return
        waiting: set[object] = set()
        for node in self.nodes:
            level = node.level_of(priority)
            room = node.scheduler.room
            for entry in node.scheduler:
                if entry.priority > level or entry.future.done():
                    continue
                if room >= entry.size:
                    room -= entry.size
                else:
                    waiting.add(_request_of(entry))
        turns = len(self.turns)
        if len(waiting) + turns >= most:
            for node in self.nodes:
                for batch in node.scheduler.running.values():
                    waiting.difference_update(map(_request_of, batch.entries))
        if len(waiting) + turns >= most:
            self._refuse_full(
                door, f"too many requests wait: {len(waiting) + turns} (queue_size = {most})", now
            )

    def _check_levels(self, door: Door, priority: int | None, now: float) -> None:
        """Raise `QueueFull` if a node's policy allows no more requests of this level to wait."""
        for node in self.nodes:
            policy = node.policy_of(priority)
            if policy is None or policy.max_queue_size is None:
                continue
            level = node.level_of(priority)
            room = node.scheduler.room
            waiting = 0
            for entry in node.scheduler:
                if entry.future.done():
                    continue
                if room >= entry.size:
                    room -= entry.size
                elif node.is_of_level(entry, level):
                    waiting += 1
            if waiting >= policy.max_queue_size:
                self._refuse_full(
                    door,
                    f"too many requests of this priority wait at node {node.name!r}: {waiting} "
                    f"(max_queue_size = {policy.max_queue_size})",
                    now,
                )

    def _estimate(
        self,
        door: Door,
        size: int,
        timeout: float,
        priority: int | None,
        *,
        client: Hashable,
        now: float,
    ) -> None:
        """Raise `Overloaded` if the request would have to queue, and past its deadline.

        If a group is idle nothing is refused: the estimate may be wrong, and a run corrects it.
        """
        rates = self.rates
        if rates.slowest is None:
            return
        slowest = self.nodes[rates.slowest]
        if not slowest.scheduler.would_queue:
            return
        ahead = 0.0
        for node in self.nodes[: rates.slowest + 1]:
            ahead += node.ahead_of(priority) / node.parts_per_item
        parts = slowest.parts_per_item
        if parts > 1:  # most parts are not queued there yet
            ahead = max(ahead, door.rows)
        patient = self._is_patient(timeout)
        if not patient:
            ahead = max(0.0, ahead - door.late - door.patient)
        estimate, most = slowest.estimate, slowest.max_rows
        per_row = estimate.hopeful(most) / most * parts / max(1, slowest.executor_count)
        per_row = min(rates.best, per_row)
        run = self.run_time - estimate.recent
        run += estimate.hopeful(min(most, (ahead + size) * parts))
        if parts > 1:
            run += size * per_row
        if self.pressure.sorts and not patient:
            ahead = min(ahead, self._before_turn(door, size, client))
        wait = ahead * per_row + run
        if wait > timeout:
            door.refuse(now)
            self._count_refusal("overloaded", door)
            raise _refusal(
                Overloaded,
                f"an answer would take about {wait * 1000:.0f} ms ({ahead:.0f} rows ahead at node "
                f"{slowest.name!r}), the deadline is in {timeout * 1000:.0f} ms",
                wait - timeout,
            )

    def _before_turn(self, door: Door, size: int, client: Hashable) -> int:
        """Return the most rows that run before it is the turn of a request, if clients take turns.

        Those of higher levels all do, and of each client as many as this one will have inside.
        """
        doors = self.pressure.doors
        level = doors.index(door)
        active, held = door.share(client)
        return (doors[level - 1].rows if level else 0) + active * (held + size) - size

    # ends

    def leave(self, size: int) -> None:
        """Stop counting a request of `size` rows that has ended."""
        self.door.requests -= 1
        self.door.rows -= size
        self.settle()

    def end(
        self, size: int, came: float, failure: str, ticket: Ticket | None, client: Hashable
    ) -> None:
        """Count the end of a request that came at `came`, and stop counting it as in flight.

        `failure`: a key of `RequestStatistics.failures`, or "" for a good end.
        """
        if failure:
            self.requests.fail(failure, came)
        else:
            self.requests.succeed(size, came)
        if ticket is not None:
            ticket.leave(failure, self.requests.clock())
        elif client is not None:
            self.door.forget(client, size)
        self.leave(size)

    def settle(self) -> None:
        """Wake the waiter of `wait_empty` if no request is in flight."""
        if self.draining is not None and not self.door.requests and not self.draining.done():
            self.draining.set_result(None)
            self.draining = None

    def wait_empty(self) -> asyncio.Future[None]:
        """Return a future that is done when no request is in flight. There must be one now."""
        if self.draining is None or self.draining.done():
            self.draining = asyncio.get_running_loop().create_future()
        return self.draining


class NodeAdmission(Admission):
    """The admission of an exposed node.

    Its requests are in flight in the whole pipeline, and count there; how they end is counted here.
    Make it before any request is in flight.
    """

    __slots__ = ("_whole",)

    def __init__(self, whole: Admission, config: PipelineConfig, nodes: Sequence[Node]) -> None:
        self._whole = whole
        super().__init__(config, whole.requests.clock)
        self.nodes = nodes
        self.pressure = whole.pressure
        self.door = whole.door
        self._chains = whole._chains
        self._default_level = whole._default_level
        self.door.endings.append(self.requests)

    @property
    def draining(self) -> asyncio.Future[None] | None:
        return self._whole.draining

    @draining.setter
    def draining(  # pyright: ignore[reportIncompatibleVariableOverride]  an attribute as a property
        self, future: asyncio.Future[None] | None
    ) -> None:
        self._whole.draining = future


def _request_of(entry: Entry) -> object:
    """Return what the entries of one request have in common."""
    return entry if entry.ticket is None else entry.ticket


def _refusal(kind: type[PenstockError], text: str, seconds: float) -> PenstockError:
    error = kind(text)
    error.retry_after = retry_after(seconds)
    return error
