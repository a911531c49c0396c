"""The queue of one priority level while there is pressure, or a patient request."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from ..overload.door import Pressure
from ..overload.ticket import Ticket

SETTLE_DIVISOR = 50
"""Look for late entries this often within the target. That bounds the cost of looking."""


_DUE = object()
"""`(_DUE, client)` takes turns beside `client`: its patient entries that are nearly due."""


class Waiting(Protocol):
    """The part of an `Entry` that its order depends on."""

    client: Hashable
    deadline: float
    ticket: Ticket | None

    def request_ticket(self) -> Ticket | None: ...


E = TypeVar("E", bound=Waiting)


class Turns(Generic[E]):
    """The entries of one level, in four lanes. Clients take turns in each of them.

    1. those that are neither patient nor late, and patient ones that are nearly due,
    2. patient ones,
    3. late ones: they have been inside for longer than the target,
    4. patient ones whose batch would end after their deadline.

    It has the methods of a deque that `Bucket` uses. A lane has the entries of each client, in
    their order; the first client is the next to take its turn.
    """

    __slots__ = ("_lanes", "_length", "_pressure", "_settle_at", "_spell")

    def __init__(self, pressure: Pressure, entries: Iterable[E]) -> None:
        self._pressure = pressure
        # Ordered, because taking the first key of a dict again and again is slow.
        self._lanes: tuple[OrderedDict[Hashable, deque[E]], ...] = tuple(
            OrderedDict() for _ in range(4)
        )
        self._length = 0
        self._settle_at = 0.0
        self._spell = pressure.spell  # of pressure, in which those of the last lane became late
        for entry in entries:
            self.append(entry)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[E]:
        for lane in self._lanes:
            for entries in lane.values():
                yield from entries

    @property
    def rank(self) -> int:
        """The lane of the next entry, 0 to 3. There must be one."""
        return next(rank for rank, lane in enumerate(self._lanes) if lane)

    def __getitem__(self, index: int) -> E:
        """Return the next entry: `index` is 0."""
        lane = self._lanes[self.rank]
        return lane[next(iter(lane))][index]

    def popleft(self) -> E:
        """Remove the next entry. Its client goes to the end of the lane."""
        lane = self._lanes[self.rank]
        client = next(iter(lane))
        entries = lane.pop(client)
        entry = entries.popleft()
        if entries:
            lane[client] = entries
        self._length -= 1
        return entry

    def append(self, entry: E) -> None:
        ticket = entry.ticket
        if ticket is None:
            rank, client = 0, entry.client
        else:
            rank, client = 2 if ticket.late else 1 if ticket.patient else 0, ticket.client
        self._put(rank, client, entry)
        self._length += 1

    def appendleft(self, entry: E) -> None:
        """Make an entry the next one of its client, whose turn it is."""
        client = entry.client if entry.ticket is None else entry.ticket.client
        first = self._lanes[0]
        first.setdefault(client, deque()).appendleft(entry)
        first.move_to_end(client, last=False)
        self._length += 1

    def _put(self, rank: int, client: Hashable, entry: E) -> None:
        lane = self._lanes[rank]
        entries = lane.get(client)
        if entries is None:
            entries = lane[client] = deque()
        entries.append(entry)

    def remove(self, entry: E) -> None:
        """Remove an entry. Raises ValueError if it is not here."""
        client = entry.client if entry.ticket is None else entry.ticket.client
        for lane in self._lanes:
            for taker in (client, (_DUE, client)):
                entries = lane.get(taker)
                if entries is not None and entry in entries:
                    entries.remove(entry)
                    if not entries:
                        del lane[taker]
                    self._length -= 1
                    return
        raise ValueError("the entry is not queued here")

    def clear(self) -> None:
        for lane in self._lanes:
            lane.clear()
        self._length = 0

    def settle(self, now: float, run_time: float) -> None:
        """Put behind who has become late, and in front who is patient but nearly due.

        Of these, whoever can't be answered in time any more goes last: otherwise each would just
        miss its deadline, and make the next one miss its own.

        `run_time`: the seconds of a batch.
        """
        target = self._pressure.target
        if now < self._settle_at:
            return
        self._settle_at = now + target / SETTLE_DIVISOR
        others, patient, late, _ = self._lanes
        pressure = self._pressure
        if not pressure.on or self._spell != pressure.spell:
            self._spell = pressure.spell
            for client, entries in late.items():  # they came before the others of their client
                entries.extend(others.pop(client, ()))
                others[client] = entries
            late.clear()
        if pressure.on:
            for client, entries in list(others.items()):
                while entries:
                    ticket = entries[0].request_ticket()
                    if ticket is None or ticket.patient or ticket.started:
                        break
                    if now - ticket.came <= target:
                        break
                    ticket.become_late()
                    self._put(2, client, entries.popleft())
                if not entries:
                    del others[client]
        for client, entries in list(patient.items()):
            due = (_DUE, client)
            while entries and entries[0].deadline - now < target + run_time:
                if due not in others:
                    others[due] = deque()
                    others.move_to_end(due, last=False)  # the next turn is theirs
                others[due].append(entries.popleft())
            if not entries:
                del patient[client]
        for client in [client for client in others if _is_due(client)]:
            entries = others[client]
            while entries and entries[0].deadline - now < run_time:
                self._put(3, client, entries.popleft())
            if not entries:
                del others[client]


def _is_due(client: Hashable) -> bool:
    return type(client) is tuple and len(client) == 2 and client[0] is _DUE
