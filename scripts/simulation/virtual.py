"""A pipeline in virtual time: the product's own code, on a clock that jumps to the next event.

Only the executors are not the product's: each takes as long as its `Model` says, and computes
nothing. So ten seconds of overload take as long as their events, and every run is the same.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

from penstock.backends.item import Item
from penstock.pipelines.node.executor import Owner
from penstock.pipelines.node.node import Node
from penstock.pipelines.node.queue import Batch
from penstock.pipelines.node.scheduler import DeviceGroup
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.run import Submission, as_future

NOISE = 0.05
"""The standard deviation of a batch's time, as a part of it."""


class Model(NamedTuple):
    """A node whose batch of n rows takes `start` + n × `row` seconds."""

    name: str
    start: float
    row: float
    max: int
    executors: int

    def seconds(self, size: int) -> float:
        return self.start + self.row * size

    @property
    def capacity(self) -> float:
        """Rows per second, at the best batch size."""
        best = max(size / self.seconds(size) for size in range(1, self.max + 1))
        return self.executors * best

    @property
    def in_time(self) -> float:
        """The seconds after which an answer is late."""
        return max(1.0, 20 * self.seconds(1))

    @property
    def keys(self) -> dict[str, Any]:
        """The node's table."""
        return {
            "backend": "Identity",
            "executor": "thread",  # never the event loop: the simulation replaces the thread
            "max": self.max,
            "instance_num": self.executors,
        }


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop that does not wait: when nothing is ready, it is the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._selector = self

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that never happens")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none: nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nothing waits in `select`, so nothing needs to be woken."""


class VirtualExecutor:
    """Takes the place of the product's executor: `start` takes the model's time, and no thread."""

    loaded = True
    loading = ""
    killable = False
    ready = True
    failures = 0
    signature = None
    min = max = 1

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        spec: object,
        context: Any,
        *,
        device_group: DeviceGroup,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        link: object,
    ) -> None:
        """`link`: how a backend would call other models; those of the simulation call none."""
        self.name = name
        self.device_group = device_group
        self._simulation = simulation
        self._node = context.node
        self._owner: Any = owner
        self._loop = loop

    def launch(self) -> None:
        most = self._simulation.models[self._node].max
        self._loop.call_soon(self._owner.executor_loaded, self, 1, most, "")

    def start(self, batch: Batch) -> None:
        batch.started = self._loop.time()
        self._loop.call_later(self._simulation.seconds(self._node, batch.size), self._end, batch)

    def _end(self, batch: Batch) -> None:
        batch.ended = self._loop.time()
        for item in batch.outcomes:
            item["result"] = self._simulation.result(self._node, item)
        self._owner.executor_finished(self, batch)

    def stop(self) -> None:
        self._loop.call_soon(self._owner.executor_stopped, self)

    def kill(self) -> bool:
        return False

    def join(self, timeout: float) -> None:
        pass


class Request:
    """One request, and its future: when it came, when it ended (seconds), and how.

    `how`: "ok", "gave up", or the code of the error.
    """

    __slots__ = (
        "_patience",
        "_submission",
        "_then",
        "came",
        "client",
        "ended",
        "how",
        "loop",
        "size",
    )

    def __init__(self, came: float, client: object, loop: int | None) -> None:
        self.came = came
        self.ended = math.nan
        self.client = client
        self.loop = loop  # the number of its closed loop
        self.size = 1  # of `data`, if that is a number
        self.how = ""
        self._patience: asyncio.TimerHandle | None = None
        self._submission: Submission | None = None
        self._then: Callable[[Request], object] | None = None

    @property
    def seconds(self) -> float:
        return self.ended - self.came

    def submit(
        self,
        simulation: Simulation,
        item: Item,
        *,
        timeout: float | None = None,
        priority: int | None = None,
        patience: float = math.inf,
        then: Callable[[Request], object] | None = None,
    ) -> None:
        """Send the request. The client gives up after `patience` seconds.

        `then` is called at its end, whatever that is.
        """
        self._then = then
        try:
            self._submission = simulation.pipeline.submit_nowait(
                item, timeout, priority, as_future(self), client=self.client
            )
        except Exception as error:
            self._end(simulation.loop.time(), getattr(error, "code", repr(error)))
            return
        if patience < math.inf:
            self._patience = simulation.loop.call_later(patience, self._give_up, simulation)

    def _give_up(self, simulation: Simulation) -> None:
        submission = self._submission
        self._end(simulation.loop.time(), "gave up")
        if submission is not None:
            submission.leave()

    def _end(self, now: float, how: str) -> None:
        if not self.how:
            self.ended = now
            self.how = how
            self._submission = None
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
            if self._then is not None:
                self._then(self)

    # what a run uses of a future

    def done(self) -> bool:
        return bool(self.how)

    def set_result(self, item: Item) -> None:
        self._end(asyncio.get_running_loop().time(), "error" if "error" in item else "ok")

    def set_exception(self, error: BaseException) -> None:
        code = getattr(error, "code", repr(error))
        self._end(asyncio.get_running_loop().time(), code)

    def cancel(self) -> None:
        self._end(asyncio.get_running_loop().time(), "gave up")


class Simulation:
    """A pipeline in virtual time, and the requests that were sent to it."""

    def __init__(
        self,
        tables: Mapping[str, Any],
        models: Mapping[str, Model],
        *,
        result: Callable[[str, Item], Any] = lambda node, item: item["data"],
        noise: float = NOISE,
        seed: int = 1,
    ) -> None:
        """`models` by node. `result` gives what a node makes of an item."""
        self.models = models
        self.result = result
        self.requests: list[Request] = []
        self.batches: list[tuple[float, str, int]] = []  # when, where and of how many rows
        self.random = random.Random(seed)
        self.seed = seed
        self.loop = VirtualLoop()
        self.pipeline: Pipeline = Pipeline.load(tables)
        self._noise = noise
        self.pipeline = Pipeline(self.pipeline.config, clock=self.loop.time)
        with mock.patch.object(Node, "executor_class", self._executor):
            self._complete(self.pipeline.start())

    @classmethod
    def of(cls, model: Model, **settings: Any) -> Simulation:
        """Make one of a single node. `settings`: keys of `[pipeline]`."""
        return cls({"pipeline": settings, "node": model.keys}, {"node": model})

    def _executor(self, *args: Any, **options: Any) -> VirtualExecutor:
        return VirtualExecutor(self, *args, **options)

    def _complete(self, work: Any) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(work)
        finally:
            asyncio.set_event_loop(None)

    def close(self) -> None:
        self._complete(self.pipeline.close(0.0))
        self.loop.close()

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seconds(self, node: str, size: int) -> float:
        """Return how long a batch takes this time."""
        self.batches.append((self.loop.time(), node, size))
        return self.models[node].seconds(size) * math.exp(self.random.gauss(0, self._noise))

    @property
    def now(self) -> float:
        return self.loop.time()

    def run(self, until: float) -> None:
        """Let happen what happens up to a time."""
        if until > self.now:
            self._complete(asyncio.sleep(until - self.now))

    # loads

    def send(
        self,
        client: object = None,
        loop: int | None = None,
        *,
        item: Item | None = None,
        make: Callable[[], Item] = lambda: {"data": 1},
        **options: Any,
    ) -> Request:
        """Send a request now: `item`, or what `make` makes."""
        item = item or make()
        request = Request(self.now, client, loop)
        request.size = item["data"]
        self.requests.append(request)
        request.submit(self, item, **options)
        return request

    def at(self, when: float, act: Callable[..., object], *args: Any) -> None:
        self.loop.call_at(when, act, *args)

    def poisson(
        self, rate: float, begin: float, end: float, *, client: object = None, **options: Any
    ) -> None:
        """Send `rate` requests a second at random moments, whatever becomes of them."""
        moments = random.Random(f"{client} {rate} {self.seed}")

        def send() -> None:
            self.send(client, **options)
            following = self.now + moments.expovariate(rate)
            if following < end:
                self.at(following, send)

        self.at(begin + moments.expovariate(rate), send)

    def closed_loops(
        self,
        number: int,
        begin: float,
        end: float,
        *,
        spread: float = 0.05,
        pause: float = 0.0005,
        retry: float = 1.0,
        client: object = None,
        **options: Any,
    ) -> None:
        """Run loops that each send the next request `pause` seconds after the answer to the last.

        They start within `spread` seconds. After a refusal one waits for `retry` seconds.
        """
        moments = random.Random(3)

        def send(loop: int) -> None:
            self.send(client, loop, then=answered, **options)

        def answered(request: Request) -> None:
            if self.now < end:
                self.at(self.now + (pause if request.how == "ok" else retry), send, request.loop)

        for loop in range(number):
            self.at(begin + moments.random() * spread, send, loop)
