"""Which instance has a sequence, which row of its batches, and what happens when it is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from penstock.backends.errors import BackendError, DeadlineExceeded, DeviceError, NotReady
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from ..workshop import BOUND, Clock, serve, turns, until

LOOPS = ["uvloop"]

pytestmark = pytest.mark.usefixtures("no_threads_left")


class Held:
    """Answers with its thread and the slot. `gates`: by data, what holds a batch."""

    max = 2
    batches: ClassVar[list[list[tuple[Any, int | None]]]]
    gates: ClassVar[dict[str, threading.Event]]
    ends: ClassVar[list[tuple[int | str, str, int]]]

    def forward(self, batch: list[Item]) -> None:
        cls = type(self)
        cls.batches.append([(item["data"], item["sequence"].slot) for item in batch])
        for item in batch:
            sequence = item["sequence"]
            if sequence.start:
                sequence.on_end = lambda reason, key=sequence.id: cls.ends.append(
                    (key, reason, threading.get_ident())
                )
            sequence.state = (sequence.state or 0) + 1
            if (gate := cls.gates.get(item["data"])) is not None:
                assert gate.wait(BOUND)
            if item["data"] == "device":
                raise DeviceError("the device has failed")
            item["result"] = threading.get_ident(), sequence.slot, sequence.state


@pytest.fixture(autouse=True)
def held(own_registry: None) -> Iterator[None]:
    Held.batches, Held.gates, Held.ends = [], {}, []
    register_backend("Held", Held)
    yield
    for gate in Held.gates.values():
        gate.set()


def tables(instances: int = 2, **keys: Any) -> dict[str, Any]:
    sequence = {key: keys.pop(key) for key in ("strategy", "max_sequences") if key in keys}
    return {
        "held": {"backend": "Held", "instance_num": instances, "sequence": sequence, **keys},
    }


async def step(pipeline: Pipeline, key: int | str, data: str = "", **options: Any) -> Any:
    answer = await pipeline({"data": data}, sequence=key, **options)
    return answer["result"]


async def test_a_sequence_goes_to_the_instance_that_has_the_fewest() -> None:
    async with serve(tables()) as pipeline:
        threads = {key: (await step(pipeline, key))[0] for key in "abcd"}
        assert [list(threads.values()).count(thread) for thread in set(threads.values())] == [2, 2]
        for key in "abab":
            assert (await step(pipeline, key))[0] == threads[key]
        await step(pipeline, "a", sequence_end=True)
        await step(pipeline, "c", sequence_end=True)
        assert threads["a"] == threads["c"]
        assert {(await step(pipeline, key))[0] for key in "ef"} == {threads["a"]}


async def test_an_instance_that_is_held_keeps_no_other_from_its_sequences() -> None:
    async with serve(tables()) as pipeline:
        await step(pipeline, "a")
        await step(pipeline, "b")
        Held.gates["wait"] = threading.Event()
        waiting = asyncio.create_task(step(pipeline, "a", "wait"))
        await until(lambda: len(Held.batches) == 3)
        for _ in range(3):
            await step(pipeline, "b")
        assert not waiting.done()
        Held.gates["wait"].set()
        await waiting


async def test_direct_gives_each_sequence_a_row_until_it_ends() -> None:
    async with serve(tables(strategy="direct")) as pipeline:
        assert pipeline.sequences is not None
        assert pipeline.sequences.capacity == 4  # 2 rows of 2 instances
        places = {key: (await step(pipeline, key))[:2] for key in "abcd"}
        assert len(set(places.values())) == 4
        assert {slot for _, slot in places.values()} == {0, 1}
        waiting = asyncio.create_task(step(pipeline, "e"))
        await turns()
        assert pipeline.sequences.waiting == 1
        assert (await step(pipeline, "c", sequence_end=True))[:2] == places["c"]
        assert (await waiting)[:2] == places["c"]
        assert [(await step(pipeline, key))[:2] for key in "abd"] == [places[key] for key in "abd"]


async def test_a_device_that_fails_ends_the_sequences_of_its_instance() -> None:
    async with serve(tables()) as pipeline:
        lost = (await step(pipeline, "lost"))[0]
        kept = (await step(pipeline, "kept"))[0]
        assert lost != kept
        Held.gates["device"] = threading.Event()
        failing = asyncio.create_task(step(pipeline, "lost", "device"))
        await until(lambda: len(Held.batches) == 3)
        waiting = asyncio.create_task(step(pipeline, "lost"))
        await turns()
        Held.gates["device"].set()
        with pytest.raises(DeviceError):
            await failing
        with pytest.raises(BackendError, match=r"'lost' has ended: node 'held' has lost its state"):
            await waiting
        await until(lambda: Held.ends)
        assert Held.ends == [("lost", "unload", lost)]
        assert (await step(pipeline, "lost"))[2] == 1
        assert (await step(pipeline, "kept"))[2] == 2


async def test_a_stuck_instance_fails_the_steps_of_its_sequences_at_once() -> None:
    clock = Clock()
    async with serve(tables(stuck_after=10), clock=clock) as pipeline:
        await step(pipeline, "a")
        Held.gates["wait"] = threading.Event()
        hanging = asyncio.create_task(step(pipeline, "a", "wait"))
        await until(lambda: len(Held.batches) == 2)
        clock.now += 11
        await step(pipeline, "b")  # a decision, which finds the stuck batch
        with pytest.raises(DeadlineExceeded, match="stuck_after"):
            await hanging
        with pytest.raises(NotReady, match="has run for more than 10 s"):
            await step(pipeline, "a")
        Held.gates["wait"].set()
        await until(lambda: not pipeline.not_ready)
        assert (await step(pipeline, "a"))[2] == 3  # what the batch did is done
        assert Held.ends == []


PROCESS = """
import os
from pathlib import Path

HERE = Path(__file__).parent

class Count:
    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            if sequence.start:
                sequence.on_end = lambda reason, key=sequence.id: self.note(key, reason)
            sequence.state = (sequence.state or 0) + 1
            if item["data"] == "die":
                os.kill(os.getpid(), 9)
            if item["data"] == "fail":
                raise ValueError("fail")
            item["result"] = sequence.state, os.getpid()

    def note(self, key, reason):
        with (HERE / "ends").open("a") as file:
            print(key, reason, os.getpid(), file=file)
"""


async def test_the_state_of_a_process_lives_in_the_child(tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text(PROCESS)
    path = tmp_path / "p.toml"
    path.write_text(
        '[n]\nbackend = "Python[count.py:Count]"\nexecutor = "process"\n[n.sequence]\n'
        "max_sequences = 8\n"
    )

    def ends() -> list[str]:
        file = tmp_path / "ends"
        return file.read_text().splitlines() if file.exists() else []

    async with Pipeline.load(path) as pipeline:
        assert [(await step(pipeline, "a"))[0] for _ in range(2)] == [1, 2]
        with pytest.raises(BackendError, match="fail"):
            await step(pipeline, "a", "fail")
        count, pid = await step(pipeline, "a", sequence_end=True)
        assert count == 3
        await until(ends)
        assert ends() == [f"a end {pid}"]
        await step(pipeline, "b")
        with pytest.raises(BackendError, match=r"state of sequence 'b' was lost|was killed by"):
            await step(pipeline, "b", "die")
        count, other = await step(pipeline, "b")
        assert (count, other != pid) == (1, True)
    assert ends()[1:] == [f"b unload {other}"]
    with pytest.raises(ProcessLookupError):
        os.kill(other, signal.SIG_DFL)


async def test_a_load_ends_the_sequences_of_the_pipeline_before() -> None:
    config = load(tables(1), name="p")
    repository = Repository([config])
    await repository.start()
    try:
        assert [(await step(repository.get("p"), "a"))[2] for _ in range(2)] == [1, 2]
        Held.gates["wait"] = threading.Event()
        running = asyncio.create_task(step(repository.get("p"), "a", "wait"))
        waiting = asyncio.create_task(step(repository.get("p"), "a"))
        await until(lambda: len(Held.batches) == 3)
        await repository.load(config)
        assert (await step(repository.get("p"), "a"))[2] == 1  # the new one has no sequences
        Held.gates["wait"].set()
        assert [(await each)[2] for each in (running, waiting)] == [3, 4]  # they drain
        await until(lambda: Held.ends)
        assert [end[:2] for end in Held.ends] == [("a", "unload")]
    finally:
        await repository.close()
    assert [end[:2] for end in Held.ends] == [("a", "unload")] * 2
