"""Drive sequences with random events and compare every answer with a simple reference model.

The events: a step that starts, goes on or ends a sequence, that fails, or that can't be read; a
client that leaves; a stream that departs; time that passes, so that sequences become idle and steps
late. The model knows what each answer must hold and why each sequence ends. At the end nothing may
be left: no sequence, no state, no place.

`scripts/soak sequences` runs it; the tests run a short form.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    QueueFull,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.backends.sequences.sequence import Sequence
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Submission, as_future
from penstock.pipelines.sequences.step import Step

IDLE_SECONDS = 50.0
TIMEOUT_SECONDS = 30.0
MOST_IN_FLIGHT = 300
MOST_WAITS = 10_000
"""Milliseconds, at least, in which the last steps must be answered."""
IDS = 60
"""Whole numbers, and as many texts that look like them."""


class WrongError(Exception):
    """What the pipeline did is not what the model says."""


@dataclass(eq=False, slots=True)
class Seen:
    """A sequence as the backend saw it."""

    key: int | str
    thread: int
    ends: list[str] = field(default_factory=list)
    end_threads: set[int] = field(default_factory=set)
    expected: Epoch | None = None
    place: tuple[int, int | None] | None = None

    def end(self, reason: str) -> None:
        Recorder.holders.pop(self.place, None)
        self.ends.append(reason)
        self.end_threads.add(get_ident())


class Recorder:
    """The backend: the state is the list of the numbers of all steps that succeeded."""

    max = 8
    seen: list[Seen]
    holders: dict[Any, Seen]
    """Who has which row of which instance, with strategy "direct"."""
    alive: weakref.WeakSet[Any]

    def forward(self, batch: list[Item]) -> None:
        cls = type(self)
        sequences: list[Sequence] = [item["sequence"] for item in batch]
        if len({id(sequence) for sequence in sequences}) != len(batch):
            raise WrongError("a sequence has two rows of a batch")
        for item, sequence in zip(batch, sequences, strict=True):
            if sequence.start and sequence.on_end is None:
                seen = Seen(sequence.id, get_ident())
                cls.seen.append(seen)
                sequence.on_end = seen.end
                if sequence.slot is not None:
                    seen.place = seen.thread, sequence.slot
                    if cls.holders.setdefault(seen.place, seen) is not seen:
                        raise WrongError("two sequences have one row")
            state = sequence.state or State(cls.alive)
            item["result"] = sequence.state = state.with_step(item["data"], get_ident())
            item["seen"] = getattr(sequence.on_end, "__self__", None)
            if item["fails"] == "softly":
                item["error"] = InvalidInput("can't be read")
        if any(item["fails"] == "hard" for item in batch):
            raise ValueError("fails")


class State:
    """The numbers of the steps so far, and the thread that ran them."""

    __slots__ = ("__weakref__", "alive", "numbers", "thread")

    def __init__(self, alive: weakref.WeakSet[Any]) -> None:
        self.alive = alive
        self.numbers: tuple[int, ...] = ()
        self.thread = 0
        alive.add(self)

    def with_step(self, number: int, thread: int) -> State:
        if self.thread not in (0, thread):
            raise WrongError("a sequence has moved to another instance")
        state = State(self.alive)
        state.numbers = (*self.numbers, number)
        state.thread = thread
        return state


class ModelStep:
    """A step as the model sees it. It is also the future of its request."""

    __slots__ = ("ended", "epoch", "fails", "late", "model", "number", "run", "step")

    def __init__(self, model: Model, number: int, step: Step, epoch: Epoch, fails: str) -> None:
        self.model = model
        self.number = number
        self.step = step
        self.epoch = epoch
        self.fails = fails
        self.late = False
        self.ended = False
        self.run: Submission | None = None

    def done(self) -> bool:
        return self.ended

    def set_result(self, item: Item) -> None:
        self.ended = True
        try:
            self.model.answered(self, item)
        except Exception as error:
            self.model.errors.append(repr(error))

    def set_exception(self, error: BaseException) -> None:
        self.ended = True
        try:
            self.model.failed(self, error)
        except Exception as wrong:
            self.model.errors.append(repr(wrong))

    def cancel(self) -> None:
        self.ended = True


@dataclass(eq=False, slots=True)
class Epoch:
    """One sequence of an id, from its begin to its end."""

    key: int | str
    open: dict[ModelStep, None] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    maybe: set[int] = field(default_factory=set)
    """Steps that were late: they may have run."""
    closing: str = ""
    broken: bool = False
    """A client has left: steps that wait have failed."""
    idle_since: float = 0.0
    seen: Seen | None = None


class Model:
    """The reference: what each step must answer, and why each sequence ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.newest: dict[int | str, Epoch] = {}
        self.open: dict[ModelStep, None] = {}
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []

    def epoch_of(self, step: Step) -> Epoch:
        """Return the sequence that a step belongs to which is submitted now."""
        epoch = self.newest.get(step.id)
        if step.start or epoch is None or epoch.closing:
            if epoch is not None:
                epoch.closing = epoch.closing or "end"
            epoch = self.newest[step.id] = Epoch(step.id)
        if step.end:
            epoch.closing = "end"
        return epoch

    def answered(self, step: ModelStep, item: Item) -> None:
        epoch = step.epoch
        self._leave(step)
        if "error" in item:
            self._expect(step, step.fails == "softly", f"failed softly: {item['error']}")
            self.counts["soft"] += 1
            return
        self._expect(step, not step.fails, "succeeded")
        numbers = [number for number in item["result"].numbers if number not in epoch.maybe]
        epoch.numbers.append(step.number)
        self._expect(step, numbers == epoch.numbers, f"{numbers}, not {epoch.numbers}")
        seen: Seen = item["seen"]
        self._expect(step, seen.key == epoch.key, f"the id {seen.key!r}")
        self._expect(step, epoch.seen in (None, seen), "another sequence")
        self._expect(step, seen.expected in (None, epoch), "a sequence of another start")
        seen.expected, epoch.seen = epoch, seen
        self.counts["answered"] += 1

    def failed(self, step: ModelStep, error: BaseException) -> None:
        first = next(iter(step.epoch.open)) is step
        self._leave(step)
        if isinstance(error, BackendError):
            self._expect(step, step.fails == "hard", f"failed: {error}")
            self.counts["failed"] += 1
        elif isinstance(error, InvalidRequest):
            self._expect(step, step.epoch.broken, f"failed: {error}")
            self.counts["broken off"] += 1
        elif isinstance(error, DeadlineExceeded):
            self._expect(step, step.late, f"late: {error}")
            if first:
                step.epoch.maybe.add(step.number)
            self.counts["late"] += 1
        else:
            self._expect(step, False, f"{type(error).__name__}: {error}")

    def left(self, step: ModelStep) -> None:
        """A client leaves before its answer."""
        self._leave(step)
        self.departed(step.epoch)
        self.counts["left"] += 1

    def departed(self, epoch: Epoch) -> None:
        epoch.closing, epoch.broken = "departure", True

    def _leave(self, step: ModelStep) -> None:
        del step.epoch.open[step]
        del self.open[step]
        step.epoch.idle_since = self.clock()

    def _expect(self, step: ModelStep, holds: bool, what: str) -> None:
        if not holds:
            raise WrongError(f"step {step.number} of {step.epoch.key!r}: {what}")

    def pass_time(self) -> None:
        """Note which sequences are idle and which steps are late now."""
        now = self.clock()
        for epoch in list(self.newest.values()):
            if not epoch.open and not epoch.closing and epoch.idle_since + IDLE_SECONDS <= now:
                epoch.closing = "idle"
                self.counts["idle"] += 1


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """Makes random events. `errors`: what was wrong."""

    def __init__(
        self,
        seed: int,
        *,
        executor: str = "thread",
        max_sequences: int = 1000,
        strategy: str = "oldest",
        chain: bool = True,
    ) -> None:
        """`chain`: False for a graph that is none, whose requests have an entry for each node."""
        self.chain = chain
        self.strategy = strategy
        self.random = random.Random(seed)
        self.clock = Clock()
        self.model = Model(self.clock)
        self.executor = executor
        self.max_sequences = max_sequences
        self.errors = self.model.errors
        self.events = 0

    async def run(self, events: int) -> None:
        """Make so many events, then wait for the answers, close, and compare what is left."""
        Recorder.seen, Recorder.holders, Recorder.alive = [], {}, weakref.WeakSet()
        register_backend("Recorder", type("Recorder", (Recorder,), {}))
        recorder = Recorder
        asyncio.get_running_loop().set_exception_handler(self._note)
        tables = {
            "pipeline": {
                "max_requests": 10 * MOST_IN_FLIGHT,
                "max_wait": "none",
                "timeout": TIMEOUT_SECONDS,
            },
            "track": {
                "backend": "Recorder",
                "instance_num": 1 if self.executor == "loop" else 2,
                "executor": self.executor,
                "stuck_after": 1e9,  # the clock jumps while batches run
                "sequence": {
                    "idle_timeout": IDLE_SECONDS,
                    "max_sequences": self.max_sequences,
                    "strategy": self.strategy,
                },
                "next": "after",
            },
            "after": {"backend": "Identity"}
            if self.chain
            else {"backend": "Identity", "map": "track[result:data,seen:seen]"},
        }
        config = Pipeline.load(tables, name="soak").config
        pipeline = Pipeline(config, clock=self.clock)
        async with pipeline:
            while self.events < events and not self.errors:
                self.events += 1
                self._event(pipeline)
                if len(self.model.open) >= MOST_IN_FLIGHT or self.random.random() < 0.1:
                    await asyncio.sleep(0)
                for _ in range(MOST_WAITS):
                    if len(self.model.open) < MOST_IN_FLIGHT or self.errors:
                        break
                    await asyncio.sleep(0.001)
                else:
                    self.errors.append("no step was answered for long")
            for wait in range(MOST_WAITS):
                if not self.model.open or self.errors:
                    break
                await asyncio.sleep(0.001)
                if not wait % 50:  # they wait for the places of sequences that are idle
                    self._pass_time(pipeline)
            if self.model.open:
                self.errors.append(f"{len(self.model.open)} steps were never answered")
            live = pipeline.sequences.live if pipeline.sequences is not None else -1
            self.model.counts["live at the end"] = live
        self._compare(recorder, pipeline)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _event(self, pipeline: Pipeline) -> None:
        chance = self.random.random()
        model = self.model
        if chance < 0.06 and model.open:
            step = self.random.choice(list(model.open))
            model.left(step)
            step.ended = True
            assert step.run is not None
            step.run.leave()
        elif chance < 0.065 and model.open:
            step = self.random.choice(list(model.open))
            model.departed(step.epoch)
            model.counts["departed"] += 1
            assert step.step.sequence is not None
            step.step.sequence.depart()
        elif chance < 0.075:
            self._pass_time(pipeline)
        else:
            self._submit(pipeline)

    def _pass_time(self, pipeline: Pipeline) -> None:
        # Mostly so little that nothing happens; sometimes so much that what is idle ends.
        self.clock.now += self.random.choice([0.1, 1.0, 20.0])
        for step in self.model.open:
            step.late = True
        self.model.pass_time()
        assert pipeline.sequences is not None
        pipeline.sequences.look(self.clock())

    def _submit(self, pipeline: Pipeline) -> None:
        number = self.events
        which = int(IDS * self.random.random() ** 2) + 1  # some ids are busy
        key: int | str = which if number % 2 else str(which)
        chance = self.random.random()
        step = Step(key, start=chance < 0.1, end=chance > 0.9)
        fails = self.random.choices(["", "softly", "hard"], [96, 2, 2])[0]
        if self._is_refused(pipeline, step):
            return
        epoch = self.model.epoch_of(step)
        own = ModelStep(self.model, number, step, epoch, fails)
        epoch.open[own] = None
        self.model.open[own] = None
        item = {"data": number, "fails": fails}
        own.run = pipeline.submit_nowait(item, None, None, as_future(own), sequence=step)
        self.model.counts["submitted"] += 1

    def _is_refused(self, pipeline: Pipeline, step: Step) -> bool:
        assert pipeline.sequences is not None
        try:
            pipeline.sequences.check(step, 1)
        except QueueFull:
            self.model.counts["refused"] += 1
            return True
        return False

    def _compare(self, recorder: type[Recorder], pipeline: Pipeline) -> None:
        wrong = self.errors.append
        for seen in recorder.seen:
            if len(seen.ends) != 1:
                wrong(f"sequence {seen.key!r} has ended {len(seen.ends)} times: {seen.ends}")
            elif seen.end_threads != {seen.thread}:
                wrong(f"sequence {seen.key!r}: on_end ran on another thread")
            elif seen.expected is not None:
                reason = seen.expected.closing or "unload"
                if seen.ends != [reason]:
                    wrong(f"sequence {seen.key!r} ended with {seen.ends}, expected {reason}")
            self.model.counts.update(f"ended: {reason}" for reason in seen.ends)
        sequencer = pipeline.sequences
        if sequencer is None or not sequencer.is_empty:
            wrong(f"left: {sequencer!r}")
        if pipeline.in_flight:
            wrong(f"{pipeline.in_flight} requests are in flight")
        if recorder.holders:
            wrong(f"rows that are still taken: {recorder.holders}")
        recorder.seen, recorder.holders = [], {}
        gc.collect()
        if len(recorder.alive):
            wrong(f"{len(recorder.alive)} states are left in memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak sequences", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--executor", choices=("thread", "loop"), default="thread")
    parser.add_argument("--max-sequences", type=int, default=1000)
    parser.add_argument("--graph", action="store_true", help="a graph that is no chain")
    parser.add_argument("--strategy", choices=("oldest", "direct"), default="oldest")
    given = parser.parse_args()
    logging.getLogger("penstock").setLevel(logging.CRITICAL)  # thousands of steps fail on purpose
    driver = Driver(
        given.seed,
        executor=given.executor,
        max_sequences=given.max_sequences,
        strategy=given.strategy,
        chain=not given.graph,
    )
    began = time.perf_counter()
    asyncio.run(driver.run(given.events))
    seconds = time.perf_counter() - began
    print(f"{driver.events:,} events in {seconds:.0f} s (seed {given.seed}, {given.executor})")
    for what, count in sorted(driver.model.counts.items()):
        print(f"{count:>12,}  {what}")
    for error in driver.errors[:20]:
        print(f"WRONG: {error}")
    print(f"{len(driver.errors)} wrong")
    return bool(driver.errors)


if __name__ == "__main__":
    sys.exit(main())
