"""`/status` as events: one sampler for all who watch. The apps are in this process, on a loop whose
clock the tests move.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import orjson
import pytest
from fastapi import FastAPI

from penstock import Backend, Settings, create_app, lifespan
from penstock.app.status import sampler
from penstock.app.status.snapshot import Snapshots
from penstock.backends.base import Context
from penstock.backends.errors import DeviceError
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock only the test moves: no snapshot comes unasked, however slow a machine."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    yield made
    made.close()


NAME = {"pipeline": {"name": "it"}}
ECHO = {**NAME, "net": {"backend": "Identity"}}


class Gate:
    """A backend's door: closed, until the test opens it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Event()


GATES: dict[str, Gate] = {}


@register_backend("StatusGate")
class GatedBackend(Backend):
    def init(self, params: Any, context: Context) -> None:
        context.loading.text = "building 42 %"
        GATES["load"].open.wait(60)

    def forward(self, batch: list[dict[str, Any]]) -> None:
        GATES["run"].inside.set()
        GATES["run"].open.wait(60)
        for item in batch:
            if item["data"] == b"die":
                raise DeviceError("lost")
            item["result"] = 1


@pytest.fixture(autouse=True)
def gates() -> Iterator[dict[str, Gate]]:
    GATES.update(load=Gate(), run=Gate())
    GATES["load"].open.set()
    yield GATES
    for gate in GATES.values():
        gate.open.set()


class Watching:
    """A client that watches an app. It reads while `reads` is set, and leaves when `left` is."""

    def __init__(self, app: Any) -> None:
        self.reads, self.left = asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.messages: list[dict[str, Any]] = []
        self._asked = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/status",
            "raw_path": b"/status",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"accept", b"text/event-stream")],
            "server": ("x", 80),
            "client": ("y", 1),
        }
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.messages.append(message)

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def events(self) -> list[bytes]:
        return [body for message in self.messages[1:] if (body := message["body"])]

    def snapshot(self, index: int = -1) -> Any:
        kind, data, *_ = self.events[index].split(b"\n")
        assert kind == b"event: status"
        return orjson.loads(data.removeprefix(b"data: "))

    async def have(self, count: int) -> None:
        await until(lambda: len(self.events) >= count)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)
        time.sleep(0.0005)  # for other threads: the loop's clock does not move


def on(clock: Clock, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test on the loop whose clock it moves."""
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def serving(source: Any = ECHO, **settings: Any) -> AsyncIterator[tuple[FastAPI, Repository]]:
    app = create_app(source, settings=Settings.model_validate(settings))
    async with lifespan(app):
        try:
            yield app, app.state.penstock
        finally:
            for gate in GATES.values():
                gate.open.set()


async def test_the_head_and_the_first_event() -> None:
    async with serving() as (app, _):
        client = Watching(app)
        await client.have(1)
        client.left.set()
        await client.task
    assert client.status == 200
    assert client.headers[b"content-type"] == b"text/event-stream"
    assert client.headers[b"cache-control"] == b"no-store"
    (it,) = client.snapshot()["pipelines"]
    assert it["succeeded_per_s"] is None and it["mood"] == "idle"
    assert "graph" not in it  # what does not change


def test_each_second_has_its_rates(clock: Clock) -> None:
    async def main() -> None:
        async with serving() as (app, repository):
            client = Watching(app)
            await client.have(1)
            pipeline = repository.get("it")
            for count in (5, 0):
                for _ in range(count):
                    await pipeline({"data": b"x"})
                clock.advance(2.0)
                await client.have(len(client.events) + 1)
            client.left.set()
            await client.task
        lively, quiet = (client.snapshot(index)["pipelines"][0] for index in (1, 2))
        assert lively["succeeded"] == quiet["succeeded"] == 5
        assert 0 < lively["succeeded_per_s"] <= 2.5 and quiet["succeeded_per_s"] == 0
        assert lively["mood"] == "calm" and quiet["mood"] == "idle"
        (node,) = lively["nodes"]
        assert 0 < node["batches_per_s"] <= 2.5 and node["batch_size"] == 1
        assert quiet["nodes"][0]["batch_size"] is None

    on(clock, main)


def test_all_get_the_same_bytes(clock: Clock) -> None:
    async def main() -> None:
        async with serving(max_watchers=200) as (app, _):
            clients = [Watching(app) for _ in range(100)]
            for count in (1, 2, 3):
                for client in clients:
                    await client.have(count)
                clock.advance(1.0)
            for client in clients:
                client.left.set()
                await client.task
        assert len({tuple(client.events[:3]) for client in clients}) == 1
        assert len(set(clients[0].events[:3])) == 3

    on(clock, main)


async def test_at_most_max_watchers_watch() -> None:
    async with serving() as (app, _):
        clients = [Watching(app) for _ in range(16)]
        for client in clients:
            await client.have(1)
        refused = Watching(app)
        await refused.task
        assert refused.status == 503
        assert refused.headers[b"content-type"] == b"application/problem+json"
        assert int(refused.headers[b"retry-after"]) >= 1
        problem = orjson.loads(refused.messages[1]["body"])
        assert problem["code"] == "too_many_watchers" and "max_watchers" in problem["detail"]
        clients[0].left.set()
        await clients[0].task
        again = Watching(app)
        await again.have(1)
        for client in (*clients, again):
            client.left.set()
            await client.task


def test_who_reads_slowly_gets_the_newest(clock: Clock) -> None:
    async def main() -> None:
        async with serving() as (app, _):
            slow, quick = Watching(app), Watching(app)
            await slow.have(1)
            slow.reads.clear()
            for count in range(2, 7):
                clock.advance(1.0)
                await quick.have(count)
            slow.reads.set()
            await slow.have(3)
            # It was sending the second when it stalled. Of those since, only the newest is left.
            assert slow.events[1:] == [quick.events[1], quick.events[5]]
            for client in (slow, quick):
                client.left.set()
                await client.task

    on(clock, main)


def test_nothing_runs_while_nobody_watches(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    take = Snapshots.take

    def counted(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return take(*arguments)

    monkeypatch.setattr(Snapshots, "take", counted)

    async def main() -> None:
        nonlocal taken
        async with serving() as (app, _):
            for _ in range(2):
                clients = [Watching(app), Watching(app)]
                for client in clients:
                    await client.have(1)
                assert taken == 1
                for client in clients:
                    client.left.set()
                    await client.task
                clock.advance(10.0)
                for _ in range(5):
                    await asyncio.sleep(0)
                assert taken == 1
                taken = 0

    on(clock, main)


async def test_a_cancelled_watcher_is_gone() -> None:
    async with serving(max_watchers=1) as (app, _):
        for reads in (True, False):
            client = Watching(app)
            await client.have(1)
            if not reads:
                client.reads.clear()
            client.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client.task
        last = Watching(app)
        await last.have(1)
        last.left.set()
        await last.task


async def test_a_client_that_a_server_of_asgi_2_4_reports_as_gone() -> None:
    async with serving(max_watchers=1) as (app, _):

        class Gone(Watching):
            async def _send(self, message: dict[str, Any]) -> None:
                raise OSError

        gone = Gone(app)
        await gone.task
        again = Watching(app)
        await again.have(1)
        again.left.set()
        await again.task


async def test_the_end_of_the_server_ends_who_watch() -> None:
    async with serving(max_watchers=2) as (app, repository):
        client, stalled = Watching(app), Watching(app)
        await client.have(1)
        stalled.reads.clear()
        await repository.close(600)
        await client.task
        assert client.messages[-1] == {"type": "http.response.body", "body": b""}
        late = Watching(app)  # what it learns: the server ends
        await late.task
        assert len(late.events) == 1 and late.snapshot()["ready"] is False
        stalled.reads.set()
        await stalled.task


def test_loads_and_reloads_are_shown(clock: Clock, gates: dict[str, Gate]) -> None:
    source = {**NAME, "net": {"backend": "StatusGate", "instance_num": 2}}

    async def main() -> None:
        async with serving(source) as (app, repository):
            client = Watching(app)
            await client.have(1)
            generation = client.snapshot()["generation"]
            gates["load"].open.clear()
            loading = asyncio.ensure_future(repository.reload("it"))
            await until(lambda: repository.loading and repository.loading["it", "1"].nodes)
            await until(lambda: _progress(repository) == ["building 42 %"] * 2)
            clock.advance(1.0)
            await client.have(2)
            (it,) = client.snapshot()["pipelines"]
            assert it["state"] == "ready" and it["mood"] == "idle"
            assert it["loading"] == [{"node": "net", "text": "building 42 %"}]
            assert client.snapshot()["generation"] == generation
            gates["load"].open.set()
            await loading
            clock.advance(1.0)
            await client.have(3)
            assert client.snapshot()["generation"] > generation
            assert client.snapshot()["pipelines"][0]["loading"] == []

            gates["load"].open.clear()
            other = {"pipeline": {"name": "new"}, "net": source["net"]}
            loading = asyncio.ensure_future(repository.load(load(other)))
            await until(lambda: repository.loading and any(_progress(repository)))
            clock.advance(1.0)
            await client.have(4)
            new = client.snapshot()["pipelines"][1]
            assert (new["name"], new["state"], new["mood"]) == ("new", "loading", "loading")
            states = [executor["state"] for executor in new["nodes"][0]["executors"]]
            assert states == ["loading", "loading"]
            gates["load"].open.set()
            await loading
            client.left.set()
            await client.task

    on(clock, main)


def _progress(repository: Any) -> list[str]:
    (pipeline,) = repository.loading.values()
    return [executor.progress for node in pipeline.nodes for executor in node.executors]


def test_executors_that_hang_and_that_are_replaced(clock: Clock, gates: dict[str, Gate]) -> None:
    source = {**NAME, "net": {"backend": "StatusGate", "stuck_after": 0.05}}

    async def main() -> None:
        async with serving(source) as (app, repository):
            client = Watching(app)
            pipeline = repository.get("it")

            async def look() -> tuple[str, str, str]:
                await client.have(1)
                clock.advance(1.0)
                await client.have(len(client.events) + 1)
                (it,) = client.snapshot()["pipelines"]
                (executor,) = it["nodes"][0]["executors"]
                return executor["state"], it["state"], it["mood"]

            def advanced(seconds: float) -> bool:
                clock.advance(seconds)
                return True

            assert await look() == ("idle", "ready", "idle")
            hangs = asyncio.ensure_future(pipeline({"data": b"x"}))
            await until(lambda: advanced(0.01) and pipeline.not_ready)
            assert await look() == ("stuck", "not ready", "down")
            assert "forward has run" in client.snapshot()["pipelines"][0]["reason"]
            gates["run"].open.set()
            await asyncio.gather(hangs, return_exceptions=True)
            await until(lambda: not pipeline.not_ready)
            assert (await look())[0] == "idle"
            gates["load"].open.clear()
            await asyncio.gather(pipeline({"data": b"die"}), return_exceptions=True)
            assert await look() == ("restarting", "not ready", "down")
            gates["load"].open.set()
            await until(lambda: not pipeline.not_ready)
            assert (await look())[:2] == ("idle", "ready")
            client.left.set()
            await client.task

    on(clock, main)


def test_moods_of_a_real_overload(
    clock: Clock, gates: dict[str, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {
        "pipeline": {"name": "it", "max_requests": 8, "max_wait": "none"},
        "net": {"backend": "StatusGate", "max": 1},
    }

    async def main() -> None:
        async with serving(source) as (app, repository):
            client = Watching(app)
            pipeline = repository.get("it")

            async def next_mood(seconds: float = 1.0) -> str:
                await client.have(1)
                clock.advance(seconds)
                await client.have(len(client.events) + 1)
                mood: str = client.snapshot()["pipelines"][0]["mood"]
                return mood

            assert await next_mood() == "idle"
            running = [asyncio.ensure_future(pipeline({"data": b"x"})) for _ in range(8)]
            await until(gates["run"].inside.is_set)
            assert await next_mood() == "busy"  # seven wait, and a batch is one
            it = client.snapshot()["pipelines"][0]
            (executor,) = it["nodes"][0]["executors"]
            assert it["nodes"][0]["queued"] == 7 and it["in_flight"] == 8
            assert executor["state"] == "running" and executor["ms"] >= 0
            refused = await asyncio.gather(pipeline({"data": b"x"}), return_exceptions=True)
            assert isinstance(refused[0], Exception)
            assert await next_mood() == "refusing"
            it = client.snapshot()["pipelines"][0]
            assert it["refused"]["queue_full"] == 1 and it["refused_per_s"] > 0
            assert await next_mood() == "busy"
            for waiting in running[1:]:
                waiting.cancel()
            await asyncio.gather(*running[1:], return_exceptions=True)
            monkeypatch.setattr(sampler, "INTERVAL_SECONDS", 0.05)
            await next_mood()
            began = time.monotonic()
            await until(lambda: time.monotonic() > began + 0.05)
            assert await next_mood(0.05) == "busy"  # nothing waits, but no executor was idle
            assert client.snapshot()["pipelines"][0]["nodes"][0]["queued"] == 0
            gates["run"].open.set()
            await running[0]
            assert await next_mood(3600) == "calm"
            assert await next_mood() == "idle"
            client.left.set()
            await client.task

    on(clock, main)
