"""Answers in a real Redis server: shared, bounded, and never in the way."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.pipelines.cache import generation, second_level
from penstock.pipelines.cache.responses import ResponseCache
from penstock.pipelines.cache.second_level import KEY_PREFIX, RedisLevel
from penstock.pipelines.pipeline import Pipeline
from tests.pipelines.workshop import BOUND, Workshop

from .conftest import RedisServer

LOOPS = ("uvloop",)

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

TABLES: dict[str, Any] = {"pipeline": {"cache": True}, "n": {"backend": "Work", "max": 1}}


@pytest.fixture
def workshop(own_registry: None) -> Iterator[Workshop]:
    made = Workshop()
    yield made
    made.release_all()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let look-ups take long: this machine may stall."""
    monkeypatch.setattr(second_level, "LOOK_SECONDS", BOUND)
    monkeypatch.setattr(second_level, "COMMAND_SECONDS", BOUND)


@pytest.fixture(autouse=True)
def same_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of these tests are in no file, so each load would have answers of its own."""
    monkeypatch.setattr(generation, "generation_of", lambda config, files: config.name.encode())


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis_server.client.flushall()
    return redis_server


@asynccontextmanager
async def load(
    url: str, tables: dict[str, Any] = TABLES, name: str = "p"
) -> AsyncIterator[tuple[Pipeline, RedisLevel]]:
    """Load a pipeline with a second level, as a process of its own would."""
    responses = ResponseCache(1 << 24, lambda: RedisLevel(url, url.rpartition("@")[2]))
    pipeline = Pipeline.load(tables, name=name)
    pipeline.responses = responses
    async with asyncio.timeout(BOUND):
        async with pipeline:
            level = responses.second
            assert isinstance(level, RedisLevel)
            yield pipeline, level
        await responses.close()


async def written(level: RedisLevel) -> None:
    """Wait until all answers are written."""
    if level._writer is not None:
        await asyncio.wait([level._writer])


async def test_another_process_answers_from_redis(
    server: RedisServer, workshop: Workshop, patient: None
) -> None:
    workshop.acts["n"] = lambda item: {"boxes": np.arange(6.0).reshape(2, 3), "text": "ä"}
    async with load(server.url) as (pipeline, level):
        for _ in range(2):
            await pipeline({"data": "x"})
        await written(level)
        assert server.client.dbsize() == 1
        key: Any = server.client.keys()[0]
        assert key.startswith(KEY_PREFIX)
        assert 23 * 3600 < server.client.ttl(key) <= 24 * 3600
    async with load(server.url) as (pipeline, level):
        submission = pipeline.submit_nowait({"data": "x"})
        answers = [await submission.future, await pipeline({"data": "x"})]
        assert [answer["result"]["boxes"].tolist() for answer in answers] == [
            [[0, 1, 2], [3, 4, 5]]
        ] * 2
        answers[1]["result"]["boxes"] += 1
        assert (await pipeline({"data": "x"}))["result"]["boxes"][0, 0] == 0
        assert submission.answered_from == "redis"  # type: ignore[attr-defined]
        assert (level.hits, level.misses) == (1, 0)  # then it is kept here
        assert pipeline.statistics.hits == 3
    assert len(workshop.inputs("n")) == 2


async def test_equal_requests_share_a_look_up(
    server: RedisServer, workshop: Workshop, patient: None
) -> None:
    async with load(server.url) as (pipeline, level):
        for data in ("x", "y"):
            answers = await asyncio.gather(*[pipeline({"data": data}) for _ in range(5)])
            assert [answer["result"] for answer in answers] == [data] * 5
        left = pipeline.submit_nowait({"data": "z"})
        left.leave()
        await written(level)
        assert level.misses == 2
        assert pipeline.in_flight == 0
    assert workshop.inputs("n") == ["x", "y"]


async def test_pipelines_and_generations_do_not_share(
    server: RedisServer, workshop: Workshop, patient: None
) -> None:
    for name in ("p", "q"):
        async with load(server.url, name=name) as (pipeline, level):
            for _ in range(2):
                await pipeline({"data": "x"})
            await written(level)
    assert server.client.dbsize() == 2
    assert len(workshop.inputs("n")) == 4


async def test_a_ttl_is_that_of_redis_too(
    server: RedisServer, workshop: Workshop, patient: None
) -> None:
    async with load(server.url, {**TABLES, "pipeline": {"cache": {"ttl": 60.5}}}) as (
        pipeline,
        level,
    ):
        for _ in range(2):
            await pipeline({"data": "x"})
        await written(level)
        (key,) = server.client.keys()
        assert 30_000 < server.client.pttl(key) <= 60_500


async def test_what_redis_holds_is_not_trusted(
    server: RedisServer, workshop: Workshop, patient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with load(server.url) as (pipeline, level):
        for _ in range(2):
            await pipeline({"data": "x"})
        await written(level)
    (key,) = server.client.keys()
    kept: Any = server.client.get(key)
    caplog.set_level(logging.WARNING, "penstock.cache")
    for content in (b"junk", kept[:-1], kept + b"x", kept + bytes(second_level.MAX_VALUE_BYTES)):
        server.client.set(key, content)
        workshop.ran.clear()
        async with load(server.url) as (pipeline, level):
            assert (await pipeline({"data": "x"}))["result"] == "x"
        assert workshop.inputs("n") == ["x"]
    assert "an answer from Redis is not used" in caplog.text
    server.client.delete(key)
    server.client.lpush(key, "a list")  # an error of Redis for this key
    async with load(server.url) as (pipeline, level):
        assert (await pipeline({"data": "x"}))["result"] == "x"
        assert level.failures == 1


async def test_large_answers_stay_here(
    server: RedisServer, workshop: Workshop, patient: None
) -> None:
    workshop.acts["n"] = lambda item: bytes(second_level.MAX_VALUE_BYTES)
    async with load(server.url) as (pipeline, level):
        for _ in range(3):
            await pipeline({"data": "x"})
        await written(level)
        assert (level.dropped, server.client.dbsize()) == (1, 0)
        assert pipeline.statistics.hits == 1


async def test_without_a_server_requests_run(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "penstock.cache")
    url = "redis://user:secret@127.0.0.1:9/0"  # where nothing listens
    async with load(url) as (pipeline, level):
        for number in range(20):
            assert (await pipeline({"data": number}))["result"] == number
            while level._reader is not None:
                await asyncio.wait([level._reader])
        assert not level.is_up
        for _ in range(3):  # its own level works
            assert (await pipeline({"data": "x"}))["result"] == "x"
        assert pipeline.statistics.hits == 1
    assert "127.0.0.1:9/0 is not used until it answers again" in caplog.text
    assert "secret" not in caplog.text and "secret" not in repr(level)


async def test_a_server_that_hangs_holds_nobody_up(
    tmp_path: Path, workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)
    try:
        server.wait()
        async with load(server.url) as (pipeline, level):
            await pipeline({"data": "first"})
            os.kill(server.process.pid, signal.SIGSTOP)
            for number in range(5):
                assert (await pipeline({"data": number}))["result"] == number
            assert level.late
            os.kill(server.process.pid, signal.SIGCONT)
    finally:
        server.stop()


async def test_a_server_that_was_left_alone_is_used_again(
    server: RedisServer, workshop: Workshop, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_level, "FIRST_PAUSE_SECONDS", 0.02)
    async with load(server.url) as (pipeline, level):
        for _ in range(second_level.FAILURES):
            level._fail("a test")
        assert level.status()["up"] is False
        await pipeline({"data": "x"})
        assert (level.misses, level.status()["up"]) == (0, False)
        while not level.status()["up"]:  # it is asked in the background
            await asyncio.sleep(0.01)
        await pipeline({"data": "y"})
        assert (level.misses, level._failed, level.late) == (1, 0, 0)


async def test_pipelines_that_load_side_by_side_connect_once(
    server: RedisServer, patient: None, caplog: pytest.LogCaptureFixture
) -> None:
    level = RedisLevel(server.url, "redis")
    try:
        await asyncio.gather(*(level.connect() for _ in range(4)))
        assert level.is_up
        assert not caplog.records
    finally:
        await level.close()


async def test_the_connections_are_closed(
    server: RedisServer, workshop: Workshop, patient: None
) -> None:
    def others() -> int:
        return len(server.client.client_list()) - 1

    async with load(server.url) as (pipeline, level):
        for _ in range(2):
            await pipeline({"data": "x"})
        await written(level)
        assert 1 <= others() <= 4
    for _ in range(1000):  # the server sees the end a moment later
        if not others():
            break
        await asyncio.sleep(0.01)
    assert not others()


async def test_a_password_is_used(tmp_path: Path, workshop: Workshop, patient: None) -> None:
    server = RedisServer(tmp_path, "--requirepass", "s3cret")
    try:
        server.client.connection_pool.connection_kwargs["password"] = "s3cret"
        server.wait()
        for url, up in ((server.url, 0), (server.url.replace("//", "//:s3cret@"), 1)):
            async with load(url) as (pipeline, level):
                for _ in range(2):
                    await pipeline({"data": "x"})
                await written(level)
                assert server.client.dbsize() == up
                assert level.is_up is bool(up)
    finally:
        server.stop()


async def test_only_answers_of_plain_values_go_to_redis(
    server: RedisServer, workshop: Workshop, patient: None, caplog: pytest.LogCaptureFixture
) -> None:
    import datetime

    workshop.acts["n"] = lambda item: datetime.date(2026, 1, 1)
    async with load(server.url) as (pipeline, level):
        for _ in range(3):
            await pipeline({"data": "x"})
        await written(level)
        assert server.client.dbsize() == 0
        assert pipeline.statistics.hits == 1
    assert "not kept in Redis: it has a datetime.date" in caplog.text


async def test_answers_that_wait_to_be_written_are_bounded() -> None:
    """Small ones too: a million answers of a few bytes would hold hundreds of megabytes."""
    level = RedisLevel("redis://127.0.0.1:1", "nowhere")
    level.is_up = True
    most = second_level.MAX_WRITING_BYTES // second_level.WRITE_BYTES
    for number in range(most + 5):  # nothing is written meanwhile
        level.keep(b"%d" % number, b"", None)
    assert level.dropped == 5
    await level.close()
