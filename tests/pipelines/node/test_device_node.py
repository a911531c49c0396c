"""A node on several devices: one that fails is taken out, and its work goes on elsewhere.

The devices are those of a backend that reports the one which it was given, and fails as it is told.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.errors import BackendError, DeviceError
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.node import device_node
from penstock.pipelines.node.device_node import DeviceNode
from penstock.pipelines.node.placement import Placement
from penstock.pipelines.pipeline import Pipeline

from ..workshop import BOUND, Clock, serve, turns, until

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")


class Cards:
    """The devices of the backend `Card`.

    `broken[device]` is the error of each of its batches, `poison` has data that breaks any device,
    `full[device]` is the error of each load. Batches that have begun wait at the `gate`, and those
    of devices in `held` until `later` too.
    """

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.poison: dict[Any, Exception] = {}
        self.full: dict[str, Exception] = {}
        self.ran: list[tuple[str, list[Any]]] = []
        self.loads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.held: set[str] = set()
        self.later = threading.Event()
        self._entered = threading.Semaphore(0)
        self._reported = 0

    def hold(self) -> None:
        """Close the gate. Nothing runs."""
        self.gate.clear()
        self._entered = threading.Semaphore(0)
        self._reported = len(self.ran)

    def enter(self, device: str) -> None:
        self._entered.release()
        assert self.gate.wait(BOUND)
        assert device not in self.held or self.later.wait(BOUND)

    async def begun(self) -> str:
        """Wait until one more batch has begun, and return its device."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=BOUND)
        self._reported += 1
        return self.ran[self._reported - 1][0]

    def on(self, device: str) -> list[list[Any]]:
        return [batch for place, batch in self.ran if place == device]


@pytest.fixture
def cards(own_registry: None) -> Iterator[Cards]:
    cards = Cards()

    class Card(Backend):
        max = 8

        def init(self, params: Any, context: Context) -> None:
            self.device = context.device
            cards.loads.append(self.device)
            if (error := cards.full.get(self.device)) is not None:
                raise error

        def forward(self, batch: list[Item]) -> None:
            data = [item["data"] for item in batch]
            cards.ran.append((self.device, data))
            cards.enter(self.device)
            for item in batch:
                if (error := cards.poison.get(item["data"])) is not None:
                    cards.broken[self.device] = error
            if (error := cards.broken.get(self.device)) is not None:
                raise error
            for item in batch:
                item["result"] = item["data"]

    register_backend("Card", Card)
    yield cards
    cards.gate.set()
    cards.later.set()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_node, "FIRST_PAUSE_SECONDS", 0.002)


@pytest.fixture
def no_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """No instance is tried again on a device that has failed."""
    monkeypatch.setattr(device_node, "FIRST_PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(device_node, "LONGEST_RESTART_DELAY_SECONDS", 3600.0)


LOST = "CUDA error: unspecified launch failure"


def node(devices: int = 2, instances: int = 0, **keys: Any) -> dict[str, Any]:
    names = ",".join(f"cuda:{number}" for number in range(devices))
    return {
        "net": {"backend": "Card", "device": names, "instance_num": instances or devices, **keys}
    }


def of(pipeline: Pipeline) -> DeviceNode:
    (found,) = pipeline.nodes
    assert isinstance(found, DeviceNode)
    return found


def send(pipeline: Pipeline, *data: Any) -> list[asyncio.Task[Any]]:
    async def answer(datum: Any) -> Any:
        try:
            return (await pipeline({"data": datum}))["result"]
        except BackendError as error:
            return error

    return [asyncio.create_task(answer(datum)) for datum in data]


async def answers(pipeline: Pipeline, *data: Any) -> list[Any]:
    return await asyncio.gather(*send(pipeline, *data))


@pytest.mark.usefixtures("no_return")
async def test_a_batch_runs_again_on_another_device_and_the_node_stays_ready(
    cards: Cards, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serve(node()) as pipeline:
            cards.hold()
            sent = send(pipeline, "a", "b")
            works = await cards.begun()
            sent += send(pipeline, "c", "d", "e")
            lost = await cards.begun()
            cards.broken[lost] = DeviceError(LOST)
            sent += send(pipeline, "f")
            await turns()
            cards.gate.set()
            assert await asyncio.gather(*sent) == list("abcdef")
            assert pipeline.not_ready == ""
            assert of(pipeline).devices_in_use == {works: True, lost: False}
            assert of(pipeline).moved == 3
            assert cards.on(lost) == [["c", "d", "e"]]
            assert await answers(pipeline, *range(20)) == list(range(20))
            assert len(cards.on(lost)) == 1
            statistics = of(pipeline).statistics
            assert statistics.outcomes["failed"] == 0
            assert statistics.outcomes["ok"] == 26
    (record,) = caplog.records
    assert record.getMessage() == (
        f"node net: p/net#{lost[-1]} is lost on {lost}: {LOST}; it is tried again in 3600 s; "
        "items that run again on another device: 3"
    )


async def test_a_device_that_works_again_is_used_again(
    cards: Cards, caplog: pytest.LogCaptureFixture
) -> None:
    cards.broken["cuda:0"] = cards.full["cuda:0"] = DeviceError(LOST)
    async with serve(node(instances=4)) as pipeline:
        assert await answers(pipeline, *range(8)) == list(range(8))
        pauses = [f"tried again in {pause} s" for pause in (0.002, 0.004, 0.008)]
        await until(lambda: all(pause in caplog.text for pause in pauses))
        assert pipeline.not_ready == ""
        with caplog.at_level(logging.WARNING):
            cards.broken.clear()
            cards.full.clear()
            await until(lambda: all(of(pipeline).devices_in_use.values()))
        assert "node net: cuda:0 works again: p/net#" in caplog.text
        cards.hold()
        sent = send(pipeline, *range(32))
        used = [await cards.begun() for _ in range(4)]
        cards.gate.set()
        await asyncio.gather(*sent)
        assert sorted(used) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.usefixtures("no_return")
async def test_the_other_instances_of_a_failed_device_get_no_batch(cards: Cards) -> None:
    async with serve(node(instances=4)) as pipeline:
        cards.hold()
        sent = send(pipeline, "a")
        lost = await cards.begun()
        cards.broken[lost] = DeviceError(LOST)
        cards.gate.set()
        assert await asyncio.gather(*sent) == ["a"]
        for number in range(20):
            assert await answers(pipeline, number) == [number]
        assert cards.on(lost) == [["a"]]
        ready = {executor.placed: executor.ready for executor in of(pipeline).executors}
        assert ready == {device: device != lost for device in ("cuda:0", "cuda:1")}


async def test_they_get_batches_again_once_an_instance_has_loaded_there(cards: Cards) -> None:
    async with serve(node(instances=4)) as pipeline:
        cards.hold()
        sent = send(pipeline, "a")
        lost = await cards.begun()
        cards.broken[lost] = DeviceError(LOST)
        cards.gate.set()
        assert await asyncio.gather(*sent) == ["a"]
        cards.broken.clear()
        await until(lambda: all(of(pipeline).devices_in_use.values()))
        cards.hold()
        sent = send(pipeline, *range(32))
        used = [await cards.begun() for _ in range(4)]
        cards.gate.set()
        await asyncio.gather(*sent)
        assert sorted(used) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.usefixtures("no_return")
async def test_the_other_instances_of_the_last_device_go_on(cards: Cards) -> None:
    """So do those of a node with one device."""
    cards.poison["bad"] = DeviceError(LOST)
    async with serve(node(instances=4)) as pipeline:
        (failed,) = await answers(pipeline, "bad")
        assert isinstance(failed, DeviceError)
        cards.broken.clear()
        assert await answers(pipeline, "good") == ["good"]
        assert "3 of 4 executors are not running" in pipeline.not_ready


@pytest.mark.usefixtures("no_return")
async def test_what_runs_again_goes_before_what_came_later(cards: Cards) -> None:
    async with serve(node(max=1)) as pipeline:
        cards.hold()
        sent = send(pipeline, *"abcd")  # the first two run, each on a device
        await cards.begun()
        await cards.begun()
        places = {data: device for device, (data,) in cards.ran}
        cards.broken[places["a"]] = DeviceError(LOST)
        cards.held = {places["b"]}
        cards.gate.set()
        await until(lambda: of(pipeline).moved)
        cards.later.set()
        assert await asyncio.gather(*sent) == list("abcd")
        assert cards.on(places["b"]) == [["b"], ["a"], ["c"], ["d"]]


@pytest.mark.usefixtures("no_return")
async def test_an_item_runs_again_only_once(cards: Cards) -> None:
    """It may be the cause: then it would take out one device after the other."""
    cards.poison["bad"] = DeviceError(LOST)
    async with serve(node(3)) as pipeline:
        (failed,) = await answers(pipeline, "bad")
        assert isinstance(failed, DeviceError)
        assert str(failed) == f"node 'net': backend Card raised DeviceError: {LOST}"
        assert len(cards.ran) == 2
        assert sum(of(pipeline).devices_in_use.values()) == 1
        assert await answers(pipeline, "good") == ["good"]
        assert of(pipeline).statistics.outcomes["failed"] == 1


@pytest.mark.parametrize(
    ("error", "keys"),
    [
        (DeviceError("CUDA error: device-side assert triggered"), {}),
        (DeviceError(LOST), {"retry": False}),
    ],
    ids=["assert", "retry off"],
)
@pytest.mark.usefixtures("no_return")
async def test_what_runs_on_no_other_device(
    cards: Cards, error: Exception, keys: dict[str, Any]
) -> None:
    cards.poison["bad"] = error
    async with serve(node(**keys)) as pipeline:
        (failed,) = await answers(pipeline, "bad")
        assert isinstance(failed, DeviceError)
        assert (len(cards.ran), of(pipeline).moved, pipeline.not_ready) == (1, 0, "")
        assert await answers(pipeline, "good") == ["good"]


async def test_an_item_whose_deadline_has_passed_does_not_run_again(cards: Cards) -> None:
    clock = Clock()
    async with serve(node(), clock=clock) as pipeline:
        cards.hold()
        sent = [asyncio.create_task(pipeline({"data": name}, timeout=5)) for name in "ab"]
        cards.broken[await cards.begun()] = DeviceError(LOST)
        clock.now += 10
        cards.gate.set()
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert [getattr(outcome, "code", "") for outcome in outcomes] == ["deadline_exceeded"] * 2
        assert len(cards.ran) == 1


async def test_the_last_device_is_not_given_up(cards: Cards) -> None:
    async with serve(node()) as pipeline:
        cards.broken["cuda:0"] = cards.broken["cuda:1"] = DeviceError(LOST)
        cards.full["cuda:0"] = cards.full["cuda:1"] = DeviceError(LOST)
        (failed,) = await answers(pipeline, "a")
        assert isinstance(failed, DeviceError)
        await until(lambda: "2 of 2 executors are not running" in pipeline.not_ready)
        cards.broken.clear()
        cards.full.clear()
        await until(lambda: not pipeline.not_ready)
        assert await answers(pipeline, "b") == ["b"]
        await until(lambda: all(of(pipeline).devices_in_use.values()))


@pytest.mark.parametrize("error", [MemoryError("out of memory"), DeviceError(LOST)])
async def test_a_device_that_can_not_load_is_left_out(cards: Cards, error: Exception) -> None:
    cards.full["cuda:1"] = error
    async with serve(node(3)) as pipeline:
        assert pipeline.not_ready == ""
        in_use = of(pipeline).devices_in_use
        assert in_use == {"cuda:0": True, "cuda:1": False, "cuda:2": True}
        assert await answers(pipeline, *range(20)) == list(range(20))
        cards.full.clear()
        await until(lambda: all(of(pipeline).devices_in_use.values()))


async def test_no_device_can_load(cards: Cards) -> None:
    cards.full["cuda:0"] = cards.full["cuda:1"] = MemoryError("out of memory")
    pipeline = Pipeline(load(node(), name="p"))
    with pytest.raises(BackendError, match="node 'net': MemoryError: out of memory"):
        async with pipeline:
            raise AssertionError("it has started")


async def test_any_other_error_at_load_ends_the_start(cards: Cards) -> None:
    cards.full["cuda:1"] = ValueError("no such layer")
    pipeline = Pipeline(load(node(), name="p"))
    with pytest.raises(BackendError, match="node 'net': ValueError: no such layer"):
        async with pipeline:
            raise AssertionError("it has started")


async def test_an_instance_moves_to_a_device_that_has_room(cards: Cards) -> None:
    cards.broken["cuda:0"] = DeviceError(LOST)
    async with serve(node(instances=1)) as pipeline:
        assert cards.loads == ["cuda:0"]
        assert await answers(pipeline, "a") == ["a"]
        assert cards.loads == ["cuda:0", "cuda:1"]
        assert pipeline.not_ready == ""
        cards.broken = {"cuda:1": DeviceError(LOST)}
        (failed,) = await answers(pipeline, "b")  # none is left, as far as is known
        assert isinstance(failed, DeviceError)
        await until(lambda: not pipeline.not_ready)
        assert cards.loads == ["cuda:0", "cuda:1", "cuda:0"]
        assert await answers(pipeline, "c") == ["c"]


def of_devices(devices: str, instances: int, **keys: Any) -> Any:
    table = {"net": {"backend": "Card", "device": devices, "instance_num": instances, **keys}}
    return load(table).nodes["net"]


@pytest.mark.usefixtures("cards")
class TestPlacement:
    free: ClassVar = {"cuda:0": 10, "cuda:1": 30, "cuda:2": 20}

    def places(self, devices: str, instances: int) -> list[str]:
        placement = Placement(of_devices(devices, instances), self.free.get)
        return [placement.place((0, instance)) for instance in range(instances)]

    def test_even_numbers_take_turns(self) -> None:
        assert self.places("cuda:0,cuda:1", 4) == ["cuda:0", "cuda:1"] * 2

    def test_devices_that_are_named_twice_take_turns(self) -> None:
        assert self.places("cuda:0,cuda:0,cuda:1", 3) == ["cuda:0", "cuda:0", "cuda:1"]

    def test_the_cpu_has_its_turn(self) -> None:
        assert self.places("cpu,cuda:0", 1) == ["cpu"]

    def test_fewer_instances_than_devices_go_where_most_memory_is_free(self) -> None:
        assert self.places("cuda:0,cuda:1,cuda:2", 1) == ["cuda:1"]
        assert self.places("cuda:0,cuda:1,cuda:2", 2) == ["cuda:1", "cuda:2"]
        assert self.places("cuda:0,cuda:1,cuda:2", 4) == ["cuda:1", "cuda:2", "cuda:0", "cuda:1"]

    def test_what_another_node_loads_there_counts(self) -> None:
        """It does not show in the free memory yet."""
        first, second = (
            Placement(of_devices("cuda:0,cuda:1,cuda:2", 1), self.free.get) for _ in range(2)
        )
        assert (first.place((0, 0)), second.place((0, 0))) == ("cuda:1", "cuda:2")
        first.loaded((0, 0))
        third = Placement(of_devices("cuda:0,cuda:1,cuda:2", 1), self.free.get)
        assert third.place((0, 0)) == "cuda:1"

    def test_without_figures_they_spread(self) -> None:
        placements = [Placement(of_devices("cuda:0,cuda:1", 1), lambda _: None) for _ in range(2)]
        assert [placement.place((0, 0)) for placement in placements] == ["cuda:0", "cuda:1"]

    def test_a_full_device_takes_no_more(self) -> None:
        placement = Placement(of_devices("cuda:0,cuda:1,cuda:2", 3), self.free.get)
        for instance in range(3):
            placement.place((0, instance))
        assert not placement.fail((0, 1), "lost")
        assert placement.place((0, 1)) == "cuda:1"
        assert placement.failed == {"cuda:1": "lost"}
        placement.loaded((0, 1))
        assert placement.failed == {}

    def test_groups_keep_their_devices(self) -> None:
        config = of_devices("cuda:0,cuda:1,cuda:2", 1, max="1&4")
        placement = Placement(config, self.free.get)
        assert [placement.place((group, 0)) for group in (0, 1)] == ["cuda:0", "cuda:1"]
        assert not placement.fail((0, 0), "lost")
