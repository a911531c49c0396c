"""The rule of default admission: who is refused for load. Rule 6 of docs/explanation/scheduling.md.

`Door.admits` is the decision. `Pressure` tells the nodes when to save what can be saved. `Ticket`
(ticket.py) is one request to the doors that count it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from typing import Protocol

from .rates import LEAST_TARGET_SECONDS, Rates

WINDOW_SECONDS = 1.0
"""Lately means in this window and in the one before: for 1 to 2 seconds."""
PRESSURE_PART = 0.1
"""Pressure begins when this many were refused or gave up lately, for each that was answered."""
LONGEST_RETRY_SECONDS = 30


class Endings(Protocol):
    """Counters of how requests ended.

    `given_up`: the caller left, or the deadline passed, after the request had been inside for
    longer than the target.
    """

    succeeded: int
    rows: int  # of those that succeeded
    given_up: int


class LevelEndings:
    """The endings of the requests of one priority level and those above it."""

    __slots__ = ("given_up", "rows", "succeeded")

    def __init__(self) -> None:
        self.succeeded = 0
        self.rows = 0
        self.given_up = 0


class Pressure:
    """What the rule tells the nodes of a pipeline.

    `on`: more comes than can be answered, so save what can still be in time. `target`: seconds, as
    in `Rates`. `spell` counts how often pressure began: who became late in an earlier spell is not
    late any more. `on_turn` is called with `on` whenever that changes.

    `base`: the rows that can be answered within the target. `deep`: more are inside. `shared`: more
    are inside, and of several clients. `sorts`: queues are in the order of `Turns`, because of
    pressure, because of several clients, or because of patient requests (`patient`: their rows).
    """

    __slots__ = (
        "base",
        "deep",
        "doors",
        "on",
        "on_turn",
        "patient",
        "shared",
        "sorts",
        "spell",
        "target",
    )

    def __init__(self) -> None:
        self.on = False
        self.on_turn: Callable[[bool], None] = lambda on: None
        self.base = math.inf
        self.deep = False
        self.shared = False
        self.patient = 0
        self.sorts = False
        self.spell = 0
        self.target = LEAST_TARGET_SECONDS
        self.doors: tuple[Door, ...] = ()

    def __repr__(self) -> str:
        return f"<Pressure {'on' if self.on else 'off'}>"

    def turn(self, on: bool) -> None:
        self.on = on
        self.spell += on
        for door in self.doors:
            door.late = 0
        self.sort()
        self.on_turn(on)

    def sort(self) -> None:
        """Set `sorts`, after a change of what it depends on."""
        self.sorts = self.on or self.shared or self.patient > 0

    def look(self, base: float) -> None:
        """Set `base`, `deep` and `shared`."""
        self.base = base
        door = self.doors[-1]
        # It ends late, because the order of a queue should not change back and forth.
        self.deep = door.n > (base / 2 if self.deep else base)
        self.shared = self.deep and len(door.clients) + (door.rows > door.named) > 1
        self.sort()


class Door:
    """The requests of one priority level and those above it, and the decision about one more.

    A request is decided on by the door of its level, which does not see the levels below. The last
    door sees all requests, and tells the nodes whether there is pressure.
    """

    __slots__ = (
        "_began",
        "_ended",
        "_slots",
        "clients",
        "endings",
        "late",
        "named",
        "patient",
        "pressed_at",
        "pressure",
        "refused",
        "requests",
        "rows",
    )

    def __init__(self, endings: list[Endings], pressure: Pressure | None = None) -> None:
        """`endings`: of the requests that it counts. `pressure`: what the last door tells."""
        self.endings = endings
        self.pressure = pressure
        self.requests = 0
        self.rows = 0
        self.late = 0  # rows of requests that stand behind the rest
        self.patient = 0  # rows of patient requests
        self.clients: dict[Hashable, int] = {}  # the rows that each named client has inside
        self.named = 0  # the sum of these
        self.refused = 0
        self.pressed_at: float | None = None  # when pressure began; None: there is none
        self._began = -math.inf  # when this window began
        # n, and the rows that left lately: for each that left, one may come.
        self._slots = 0.0
        # How many had ended (badly, well, rows) when this window began, and the one before.
        self._ended = ((0, 0, 0), (0, 0, 0))

    def __repr__(self) -> str:
        pressed = "" if self.pressed_at is None else ", under pressure"
        return f"<Door {self.requests} requests, {self.n} of {self.rows} rows count{pressed}>"

    @property
    def n(self) -> int:
        """The rows that one more request would have to wait for."""
        return self.rows - self.late - self.patient

    def admits(
        self, size: int, client: Hashable, rates: Rates, idle_until: float, now: float
    ) -> bool:
        """Decide whether a request of `size` rows that sets no deadline may come in.

        `idle_until`: when the slowest node had an idle executor for the last time; at most `now`.
        The caller counts the request. A refusal is counted here.
        """
        self.observe(idle_until, rates.base, now)
        n = self.n + size
        admitted = n <= rates.base
        if not admitted and self.pressed_at is None:
            if now - idle_until < rates.burst:
                admitted = True
                # It may be a new closed loop, which stays. Others of them may pause just now.
                self._slots = max(self._slots, n + rates.base)
            else:
                admitted = n <= self._slots
        if not admitted:
            active, held = self.share(client)
            admitted = active > 1 and held + size <= rates.base / active
        if admitted:
            self._slots = max(self._slots, n)
        else:
            self.refuse(now)
        return admitted

    def share(self, client: Hashable) -> tuple[int, int]:
        """Return how many clients are inside with this one, and the rows that it has inside."""
        unnamed = self.rows - self.named
        held = unnamed if client is None else self.clients.get(client, 0)
        return len(self.clients) + (unnamed > 0) + (not held), held

    def count(self, client: Hashable, rows: int) -> None:
        """Count rows of a named client as inside."""
        clients = self.clients
        clients[client] = clients.get(client, 0) + rows
        self.named += rows

    def forget(self, client: Hashable, rows: int) -> None:
        """Stop counting rows of a named client."""
        clients = self.clients
        left = clients[client] - rows
        if left:
            clients[client] = left
        else:
            del clients[client]
        self.named -= rows

    def refuse(self, now: float) -> None:
        """Count a refusal, which may begin pressure."""
        self.refused += 1
        self._judge(now)

    def note(self) -> None:
        """Note how many rows are inside. To be called before results are delivered."""
        n = self.rows - self.late - self.patient
        self._slots = max(self._slots, n)

    def observe(self, idle_until: float, base: float, now: float) -> None:
        """Look at the time: whether pressure begins or ends, and another window begins."""
        if self.pressed_at is not None and idle_until > self.pressed_at:
            self._relax()
        if now - self._began >= WINDOW_SECONDS:
            ended = self._total()
            # Those who come back within a window or two find the place that they left.
            recent = now - self._began < 2 * WINDOW_SECONDS
            left = ended[2] - self._ended[1][2] if recent else 0
            self._slots = min(self._slots, self.n + left)
            if ended[0] == self._ended[0][0]:  # a whole window without a bad ending
                self._relax()
            self._ended = ended, self._ended[0] if recent else ended
            self._began = now
        self._judge(now)

    def _total(self) -> tuple[int, int, int]:
        """Return how many have ended (badly, well) and their rows."""
        bad, good, rows = self.refused, 0, 0
        for endings in self.endings:
            bad += endings.given_up
            good += endings.succeeded
            rows += endings.rows + endings.given_up
        return bad, good, rows

    def _judge(self, now: float) -> None:
        """Begin pressure if too many ended badly lately."""
        if self.pressed_at is None:
            bad, good, _ = self._total()
            bad -= self._ended[1][0]
            good -= self._ended[1][1]
            # While nothing ends, a batch runs that is longer than the windows: wait for its end.
            if good and bad >= 2 and bad >= PRESSURE_PART * good:
                self.pressed_at = now
                if self.pressure is not None:
                    self.pressure.turn(True)

    def _relax(self) -> None:
        """End pressure, and forget what led to it."""
        if self.pressed_at is not None:
            self.pressed_at = None
            ended = self._total()
            self._ended = ended, ended
            if self.pressure is not None:
                self.pressure.turn(False)


def retry_after(seconds: float) -> int:
    """Return after how many seconds a refused request may come again.

    `seconds`: when there is room for it. Spread, because refused clients must not come together.
    """
    spread = max(1.0, seconds) * random.uniform(1, 2)
    return min(LONGEST_RETRY_SECONDS, math.ceil(spread))
