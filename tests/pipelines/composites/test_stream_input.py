"""Streamed inputs in process: logic that reads its input chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.backends.errors import BackendError, ConfigError
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

INPUT: dict[str, Any] = {"sound": {"kind": "bytes", "stream": True}}


def pipeline(logic: Any, **table: Any) -> Pipeline:
    register_backend("Listen", logic)
    return Pipeline.load(
        {"pipeline": {"inputs": INPUT, **table}, "listen": {"backend": "Listen"}}, name="listen"
    )


async def lengths(item: Any, call: Any) -> Any:
    async for chunk in item["data"]:
        yield len(chunk)


async def chunks(*given: bytes) -> AsyncIterator[bytes]:
    for chunk in given:
        yield chunk


async def test_an_async_iterator_is_read_as_it_comes() -> None:
    read: list[bytes] = []

    async def source() -> AsyncIterator[bytes]:
        for chunk in (b"one", b"three", b"sevens!"):
            read.append(chunk)
            yield chunk

    async with pipeline(lengths) as listen:
        parts = listen.stream({"data": source()})
        assert (await anext(parts))["result"] == 3
        assert read == [b"one"]
        assert [part["result"] async for part in parts] == [5, 7]
        answer: Any = await listen({"data": chunks(b"1", b"22")})
        assert [part["result"] for part in answer] == [1, 2]


@pytest.mark.parametrize(("whole", "expected"), [(b"sound", [5]), ("text", [4]), (b"", [])])
async def test_a_whole_value_is_one_chunk(whole: Any, expected: list[int]) -> None:
    async with pipeline(lengths) as listen:
        answer: Any = await listen({"data": whole})
        assert [part["result"] for part in answer] == expected


async def test_what_the_source_raises_fails_the_request() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise OSError("the microphone is gone")

    async with pipeline(lengths) as listen:
        with pytest.raises(BackendError, match="OSError: the microphone is gone"):
            await listen({"data": broken()})


async def test_a_caller_that_leaves_cancels_the_wait_for_a_chunk() -> None:
    waits, ended = asyncio.Event(), asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            waits.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with pipeline(lengths) as listen:
        caller = asyncio.ensure_future(listen({"data": silent()}))
        await waits.wait()
        caller.cancel()
        await ended.wait()
        assert listen.in_flight == 0


def problems(**changes: Any) -> list[str]:
    async def logic(item: Any, call: Any) -> None: ...

    register_backend("Listen", logic)
    inputs = changes.pop("inputs", INPUT)
    nodes = changes.pop("nodes", {"listen": {"backend": "Listen"}})
    with pytest.raises(ConfigError) as caught:
        load({"pipeline": {"inputs": inputs, **changes}, **nodes}, name="listen")
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"inputs": {"sound": {"kind": "image", "stream": True}}},
            'only kind = "bytes" (chunks of bytes) and kind = "text" (chunks of str) can be',
        ),
        (
            {"inputs": {**INPUT, "rate": {"kind": "integer"}}},
            "a streamed input must be the only one, and there is 'rate' too",
        ),
        ({"loop": True}, "a stream can be read once, so the pipeline can't have loop = true"),
        (
            {"nodes": {"decode": {"backend": "Identity"}}},
            "only Python logic can read a stream: expected a node at the entry",
        ),
        (
            {"inputs": {}, "expose": {"listen": {"inputs": INPUT}}},
            "an exposed node takes no stream",
        ),
    ],
)
def test_problems_of_a_streamed_input(changes: dict[str, Any], expected: str) -> None:
    found = problems(**changes)
    assert len(found) == 1
    assert expected in found[0]
