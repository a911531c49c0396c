"""Generators that block: each runs on a thread, as many at a time as there are instances."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from penstock import BackendError, ConfigError, DeadlineExceeded, InvalidInput, Pipeline
from penstock.backends.expressions.registry import register_backend

pytestmark = pytest.mark.usefixtures("no_threads_left")


class Source:
    """What the generators have done, and what they wait for."""

    def __init__(self) -> None:
        self.advanced = 0
        self.go = threading.Event()
        self.ended = threading.Event()
        self.threads: list[tuple[str, int]] = []


SOURCE = Source()


@pytest.fixture(autouse=True)
def begin() -> Iterator[None]:
    SOURCE.__init__()  # type: ignore[misc]  # the generators refer to this object
    yield
    SOURCE.go.set()


@register_backend("BlockingWords")
def words(data: str) -> Iterator[str]:
    """Yield the words of a text. Some words do something else."""
    SOURCE.threads.append(("begin", threading.get_ident()))
    go = SOURCE.go  # that of the test which made the request
    try:
        for word in data.split():
            SOURCE.advanced += 1
            if word == "wait":
                go.wait(60)
            if word == "fail":
                raise ValueError("no")
            if word == "unreadable":
                raise InvalidInput("the rest can't be read")
            if word == "cancel":
                raise asyncio.CancelledError
            yield word
    finally:
        SOURCE.threads.append(("end", threading.get_ident()))
        SOURCE.ended.set()


@register_backend("BlockingLines")
class Lines:
    """Notes on which thread each of its methods runs."""

    def init(self, params: Any) -> None:
        self.note("init")
        self.prefix = params.get("prefix", "")
        if self.prefix == "fail" and len(SOURCE.threads) == 2:
            raise ValueError("no model")

    def forward(self, item: Any) -> Iterator[str]:
        for line in item["data"]:
            self.note("forward")
            yield self.prefix + line

    def close(self) -> None:
        self.note("close")

    def note(self, what: str) -> None:
        SOURCE.threads.append((what, threading.get_ident()))


def pipeline(**node: Any) -> Pipeline:
    return Pipeline.load({"words": {"backend": "BlockingWords", **node}})


async def results(running: Pipeline, item: Any) -> list[Any]:
    """Call a pipeline that streams, and return the results of its parts."""
    parts: Any = await running(item)
    return [part["result"] for part in parts]


async def ended() -> None:
    assert await asyncio.to_thread(SOURCE.ended.wait, 60)


async def test_each_value_is_a_part() -> None:
    nodes = {
        "words": {"backend": "BlockingWords", "next": "length"},
        "length": {"backend": "Python[builtins:len]"},
    }
    async with Pipeline.load(nodes) as running:
        assert running.streams
        assert [part["result"] async for part in running.stream({"data": "a bc def"})] == [1, 2, 3]
        assert await results(running, {"data": "ab c"}) == [2, 1]
        assert await results(running, {"data": ""}) == []


async def test_all_of_an_instance_runs_on_its_thread() -> None:
    tables = {"lines": {"backend": "BlockingLines", "prefix": "> ", "instance_num": 2}}
    async with Pipeline.load(tables) as running:
        calls = [results(running, {"data": ["a", "b"]}) for _ in range(4)]
        assert await asyncio.gather(*calls) == [["> a", "> b"]] * 4
    threads: dict[str, set[int]] = {}
    for what, thread in SOURCE.threads:
        threads.setdefault(what, set()).add(thread)
    assert len(threads["init"]) == 2 and threads["close"] == threads["init"]
    assert threads["forward"] <= threads["init"]
    assert threading.get_ident() not in threads["init"]
    assert sum(what == "close" for what, _ in SOURCE.threads) == 2


async def test_the_generator_goes_on_when_its_reader_does() -> None:
    async with pipeline() as running:
        parts = running.stream({"data": "a b c"})
        for number in range(1, 4):
            await anext(parts)
            assert SOURCE.advanced == number
        assert not SOURCE.ended.is_set()
        assert [part async for part in parts] == []
        await ended()


async def test_a_reader_that_leaves_ends_the_generator() -> None:
    async with pipeline() as running:
        parts = running.stream({"data": "a b c"})
        await anext(parts)
        await parts.aclose()
        await ended()
        assert SOURCE.advanced == 1
        (_, began), (_, closed) = SOURCE.threads
        assert began == closed != threading.get_ident()
        assert await results(running, {"data": "a b"}) == ["a", "b"]  # the instance is free again
        assert running.in_flight == 0


async def test_a_reader_that_leaves_while_the_generator_computes() -> None:
    async with pipeline() as running:
        parts = running.stream({"data": "a wait b"})
        await anext(parts)
        reading = asyncio.ensure_future(anext(parts))
        while SOURCE.advanced < 2:
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert running.in_flight == 0 and not SOURCE.ended.is_set()
        after = asyncio.ensure_future(results(running, {"data": "next"}))
        SOURCE.go.set()
        await ended()
        assert SOURCE.advanced <= 3  # it saw no more than the value it was at
        assert await after == ["next"]


async def test_items_wait_for_an_instance() -> None:
    async with pipeline() as running:
        parts = running.stream({"data": "a b"})
        await anext(parts)
        with pytest.raises(DeadlineExceeded):
            await running({"data": "late"}, timeout=0.01)
        waiting = running.submit_nowait({"data": "patient"})
        for _ in range(10):
            await asyncio.sleep(0)
        assert SOURCE.advanced == 1
        assert [part["result"] async for part in parts] == ["b"]
        assert (await waiting.future)["result"] == ["patient"]
        queued, _ = waiting.spent()
        assert queued > 0
        assert running.in_flight == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a fail b", BackendError),
        ("a unreadable b", InvalidInput),
        ("a cancel b", BackendError),
    ],
)
async def test_a_generator_that_fails(text: str, error: type[Exception]) -> None:
    async with pipeline() as running:
        parts = running.stream({"data": text})
        assert (await anext(parts))["result"] == "a"
        with pytest.raises(error):
            await anext(parts)
        assert running.in_flight == 0
        assert await results(running, {"data": "a"}) == ["a"]


async def test_a_pipeline_that_closes_ends_its_generators() -> None:
    async with pipeline() as running:
        parts = running.stream({"data": "a b"})
        await anext(parts)
        closing = asyncio.ensure_future(running.close(timeout=0))
        await ended()
        await closing
        with pytest.raises(Exception, match="pipeline"):
            await anext(parts)


async def test_an_init_that_fails() -> None:
    """Of the second instance: the first is closed, on its thread."""
    node = {"backend": "BlockingLines", "prefix": "fail", "instance_num": 2}
    with pytest.raises(BackendError, match="node 'lines': ValueError: no model"):
        async with Pipeline.load({"lines": node}):
            pass
    assert SOURCE.threads[0][0] == "init" and ("close", SOURCE.threads[0][1]) in SOURCE.threads


def test_a_forward_of_a_batch_can_not_yield() -> None:
    with pytest.raises(TypeError, match=r"forward that yields gets one item, .*found \['batch'\]"):

        @register_backend("BlockingBatch")
        class Batch:
            def forward(self, batch: Any) -> Iterator[Any]:
                yield from batch


def test_it_reads_no_streamed_input() -> None:
    tables = {
        "pipeline": {"inputs": {"data": {"kind": "text", "stream": True}}},
        "words": {"backend": "BlockingWords"},
    }
    with pytest.raises(ConfigError, match="only Python logic can read a stream"):
        Pipeline.load(tables)
