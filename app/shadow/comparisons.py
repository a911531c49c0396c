"""Requests on their way to be compared: held within bounds, run here in order, and compared.

A `Held` request is made when it comes. It is filled while it passes to Triton and back, and run on
this server once Triton has answered, so that no client waits for it. The steps of a sequence run
one after another, in the order in which they came.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import chain
from typing import Any, Protocol

from penstock.backends.errors import MemoryFull, PenstockError, TooLarge
from penstock.backends.memory import Reservation, budget

from ..http.helper_thread import on_helper_thread
from .answers import Answer
from .compare import Comparison, compare
from .facts import NO_FACTS, Facts
from .model import Reason, ShadowedModel
from .options import ShadowOptions

logger = logging.getLogger("penstock.shadow")

COMPARE_OFF_LOOP_BYTES = 1 << 16
"""Larger answers are read and compared on a helper thread."""

RUN_SECONDS = 300.0
"""A request that takes longer here is given up: it is one that streams without end."""

UNAVAILABLE = frozenset(
    {"429", "503", "504", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
)
"""Statuses of a server that is too busy, or not there: such an answer says nothing of a model."""

LEAST_RUNNING = 4
"""So many requests of a model may always run here at a time."""

MAX_SEQUENCES = 1 << 14
"""The most sequences that are compared at a time."""

BROKEN = UNAVAILABLE | {"502", "CANCELLED"}


class TooMuchError(Exception):
    """Raised when an answer does not fit into what may be held."""


class Way(Protocol):
    """Runs a held request on this server, and reads the answers of both servers."""

    async def run(self, held: Held) -> Any:
        """Run the request here. Returns the answer as it came. Raises `TooMuchError`."""
        ...

    async def read(self, raw: Any, held: Held) -> Answer:
        """Read the answer of either server. Raises `PenstockError`, `ValueError` and others for one
        that is none.
        """
        ...


class Held:
    """A request that is held until it has been compared. `facts` are known once its body is here.

    `request_id`: for the report.
    """

    __slots__ = (
        "_comparisons", "_ended", "bytes", "facts", "memory", "model", "ready", "request_id",
        "seconds", "theirs", "way",
    )  # fmt: skip

    def __init__(self, comparisons: Comparisons, model: ShadowedModel, way: Way) -> None:
        self._comparisons = comparisons
        self._ended = False
        self.model = model
        self.way = way
        self.facts: Facts = NO_FACTS
        self.memory = Reservation(budget)
        self.bytes = 0
        self.theirs: Any = None
        self.seconds = 0.0
        self.request_id = ""
        self.ready: asyncio.Future[None] | None = None  # of a step, which waits for those before it

    @property
    def ended(self) -> bool:
        """True once it has been compared, or given up."""
        return self._ended

    def hold(self, size: int) -> bool:
        """Hold so many bytes more. If there is no room for them, give the request up."""
        if self._ended:
            return False
        comparisons = self._comparisons
        if self.bytes + size > comparisons.options.max_compared_bytes:
            self.skip("too_large")
            return False
        try:
            if comparisons.bytes + size > comparisons.options.max_compared_bytes:
                raise TooMuchError
            self.memory.resize(self.memory.size + size, "a request to compare")
        except (PenstockError, TooMuchError):
            self.skip("no_room")
            return False
        self.bytes += size
        comparisons.bytes += size
        return True

    def take_turn(self) -> None:
        """Queue a step of a sequence, whose `facts` are known, after the steps before it."""
        self._comparisons.queue_step(self)

    def answered(self, theirs: Any, seconds: float) -> None:
        """Note Triton's answer, which took so many seconds, and run the request here."""
        if self._ended:
            return
        if self._comparisons.is_stopped:
            self.skip("stopped")
            return
        self.theirs, self.seconds = theirs, seconds
        if self.ready is not None:
            self.ready.set_result(None)
        else:
            self._comparisons.start(self)

    def skip(self, reason: Reason) -> None:
        """Give the request up: it is not compared."""
        if not self._ended:
            self.model.skip(reason)
            self.end()

    def end(self) -> None:
        """Let go of all that is held."""
        if self._ended:
            return
        self._ended = True
        self._comparisons.count -= 1
        self._comparisons.bytes -= self.bytes
        self.theirs = None
        self.way = _NO_WAY
        self.memory.close()
        if self.ready is not None and not self.ready.done():
            self.ready.set_result(None)


class _NoWay:
    async def run(self, held: Held) -> Any:
        raise AssertionError

    async def read(self, raw: Any, held: Held) -> Answer:
        raise AssertionError


_NO_WAY = _NoWay()

Key = tuple[str, int | str]
"""A model's name and the id of a sequence."""


class Comparisons:
    """All held requests. `count` and `bytes` say how many they are and what they hold."""

    def __init__(
        self,
        options: ShadowOptions,
        compared: Callable[[ShadowedModel], None],
        end_here: Callable[[str, int | str], None],
    ) -> None:
        """`compared` is called after each comparison. `end_here` ends a sequence of a model."""
        self.options = options
        self.count = 0
        self.bytes = 0
        self._compared = compared
        self._end_here = end_here
        self.is_stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._steps: dict[Key, deque[Held]] = {}
        self._waiting: dict[str, deque[Held]] = {}  # for their turn, by model
        self._turns: dict[Key, asyncio.Task[None]] = {}  # those that run these steps
        self._whole: dict[Key, None] = {}  # sequences of which all steps have run here

    def __repr__(self) -> str:
        return f"<Comparisons {self.count} held, {self.bytes} bytes>"

    def begin(self, model: ShadowedModel, way: Way) -> Held | None:
        """Hold a request that comes now. None if there is no room for one more."""
        if self.is_stopped or self.count >= self.options.max_compared:
            model.skip("stopped" if self.is_stopped else "no_room")
            return None
        self.count += 1
        return Held(self, model, way)

    def cut(self, model: ShadowedModel, facts: Facts) -> None:
        """Note a step that is not held: the rest of its sequence can't be compared."""
        if facts.sequence is not None:
            self._let_go((model.name, facts.sequence))

    def _let_go(self, key: Key) -> None:
        """End a sequence of which a step did not run here. It would keep a place."""
        if self._whole.pop(key, 0) is None:
            self._end_here(*key)

    def queue_step(self, held: Held) -> None:
        """Queue a step of a sequence."""
        assert held.facts.sequence is not None
        key = held.model.name, held.facts.sequence
        held.ready = asyncio.get_running_loop().create_future()
        steps = self._steps.get(key)
        if steps is None:
            self._steps[key] = deque([held])
            self._turns[key] = self._spawn(self._run_steps(key))
        else:
            steps.append(held)

    def has_steps(self, name: str) -> bool:
        """Return whether steps of a model's sequences wait to run here."""
        return any(name == key[0] for key in self._turns)

    async def settled(self, name: str, sequence: int | str) -> None:
        """Wait until no step of a sequence waits to run here."""
        while (task := self._turns.get((name, sequence))) is not None:
            await asyncio.wait([task])

    def start(self, held: Held) -> None:
        """Run a request here, and compare, when it has its turn.

        No more requests of a model run here at a time than Triton ever had of it. Otherwise those
        that wait would make this server seem slower than it is.
        """
        model = held.model
        self._waiting.setdefault(model.name, deque()).append(held)
        if model.running < max(model.most_at_triton, LEAST_RUNNING):
            model.running += 1
            self._spawn(self._run(model))

    async def finish(self, seconds: float) -> None:
        """Take no more requests, and let those that are being compared go on for so long."""
        self.is_stopped = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        for held in chain.from_iterable(self._waiting.values()):
            held.skip("stopped")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, model: ShadowedModel) -> None:
        """Run one request of a model after the other, while some wait."""
        waiting = self._waiting[model.name]
        try:
            while waiting:
                held = waiting.popleft()
                if model.is_here:  # its clients need the processors
                    held.skip("stopped")
                else:
                    await self._compare(held)
        finally:
            model.running -= 1

    async def _run_steps(self, key: Key) -> None:
        steps = self._steps[key]
        try:
            while steps:
                held = steps[0]
                assert held.ready is not None
                await held.ready
                steps.popleft()
                if held.facts.start and not held.ended:
                    self._whole[key] = None
                    if len(self._whole) > MAX_SEQUENCES:  # most have ended without a word
                        self._let_go(next(iter(self._whole)))
                elif key not in self._whole:
                    held.skip("sequence_cut")
                if held.ended or not await self._compare(held):
                    self._let_go(key)
                elif held.facts.end:
                    self._whole.pop(key, None)
        finally:
            for held in steps:
                held.skip("stopped")
            del self._steps[key], self._turns[key]

    async def _compare(self, held: Held) -> bool:
        """Run a request here and compare. Return whether its sequence goes on as at Triton."""
        try:
            return await self._run_and_compare(held)
        except asyncio.CancelledError:
            held.skip("stopped")
            raise
        except Exception:
            held.skip("unreadable")
            logger.exception("the answers of model %r could not be compared", held.model.name)
            return False
        finally:
            held.end()

    async def _run_and_compare(self, held: Held) -> bool:
        model = held.model
        theirs = await self._read(held, held.theirs, "Triton's")
        if theirs is None:
            return False
        if theirs.status in BROKEN:
            held.skip("failed_at_triton")
            return False
        began = time.perf_counter()
        try:
            async with asyncio.timeout(RUN_SECONDS):
                raw = await held.way.run(held)
        except TooMuchError:
            held.skip("no_room")
            return False
        except TimeoutError:
            held.skip("too_large")
            return False
        seconds = time.perf_counter() - began
        # Most answers are equal byte for byte. To read another one costs as much as to compare it.
        ours = theirs if raw.is_same(held.theirs) else await self._read(held, raw, "our")
        if ours is None:
            return False
        if ours.status in UNAVAILABLE:
            held.skip("busy_here")
            return False
        tolerance, classes = self.options.tolerance, held.facts.classes
        if held.bytes < COMPARE_OFF_LOOP_BYTES:
            result: Comparison = compare(theirs, ours, tolerance, classes)
        else:
            result = await on_helper_thread(compare, theirs, ours, tolerance, classes)
        model.note(result, held.seconds, seconds, held.request_id)
        if result.differences and _is_power_of_ten(model.compared - model.agreed):
            logger.warning(
                "model %r: disagreement %d: %s",
                model.name,
                model.compared - model.agreed,
                result.differences[0],
                extra={"request_id": held.request_id},
            )
        self._compared(model)
        return (theirs.error is None) == (ours.error is None)

    async def _read(self, held: Held, raw: Any, whose: str) -> Answer | None:
        try:
            return await held.way.read(raw, held)
        except (MemoryFull, TooLarge):
            held.skip("no_room")
            return None
        except (PenstockError, ValueError, KeyError, TypeError, AttributeError) as error:
            held.skip("unreadable")
            logger.warning("model %r: %s answer can't be read: %s", held.model.name, whose, error)
            return None


def _is_power_of_ten(count: int) -> bool:
    """A model that disagrees mostly does so always: the log has the 1st, the 10th, the 100th."""
    return str(count).strip("0") == "1"
