"""One request, to the doors that count it and to the queues that order it."""

from __future__ import annotations

from collections.abc import Hashable

from .door import Door, Pressure

GIVEN_UP = frozenset({"cancelled", "expired"})
"""Of `RequestStatistics.failures`, those that say: it took too long."""


class Ticket:
    """One request, to the doors that count it. The last of `doors` counts it without the ticket.

    `came`: when it came, in seconds. `patient`: its deadline is far away. `started`: it has cost
    what would be lost if it had to wait now, so it does not become late any more.
    """

    __slots__ = ("_late", "came", "client", "doors", "patient", "pressure", "rows", "started")

    def __init__(
        self,
        doors: tuple[Door, ...],
        pressure: Pressure,
        rows: int,
        came: float,
        *,
        client: Hashable = None,
        patient: bool = False,
    ) -> None:
        self.doors = doors
        self.pressure = pressure
        self.rows = rows
        self.came = came
        self.client = client
        self.patient = patient
        self.started = False
        self._late = 0  # the spell of pressure in which it became late
        if client is not None:  # first: it raises TypeError if the client is not hashable
            for door in doors:
                door.count(client, rows)
        for door in doors[:-1]:
            door.requests += 1
            door.rows += rows
        if patient:
            pressure.patient += rows
            pressure.sort()
            for door in doors:
                door.patient += rows

    def __repr__(self) -> str:
        words = [word for word in ("late", "patient", "started") if getattr(self, word)]
        return f"<Ticket of {self.client!r}: {self.rows} rows {', '.join(words)}>"

    @property
    def late(self) -> bool:
        """True if it stands behind the rest."""
        return self._late == self.pressure.spell and self.pressure.on

    def become_late(self) -> None:
        """Stand behind the rest, while pressure lasts."""
        if self.pressure.on and not self.patient and self._late != self.pressure.spell:
            self._late = self.pressure.spell
            for door in self.doors:
                door.late += self.rows

    def leave(self, how: str, now: float) -> None:
        """Stop counting the request.

        `how`: a key of `RequestStatistics.failures`, or "" for a good end.
        """
        rows, doors = self.rows, self.doors
        if self.late:
            for door in doors:
                door.late -= rows
        if self.patient:
            self.pressure.patient -= rows
            self.pressure.sort()
            for door in doors:
                door.patient -= rows
        if self.client is not None:
            for door in doors:
                door.forget(self.client, rows)
        for door in doors[:-1]:
            door.requests -= 1
            door.rows -= rows
            for endings in door.endings:
                if not how:
                    endings.succeeded += 1
                    endings.rows += rows
                elif how in GIVEN_UP and now - self.came > self.pressure.target:
                    endings.given_up += 1
