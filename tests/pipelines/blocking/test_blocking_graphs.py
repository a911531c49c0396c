"""Graphs through `pipe`: from plain threads, with single items, lists and Events."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

import penstock
from penstock.backends.errors import (
    BackendError,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotReady,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.blocking.calls import Event
from penstock.pipelines.blocking.pipe import Pipe

from ..workshop import BOUND, Workshop, assert_empty

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


def fail_if_asked(item: Item) -> None:
    if item["data"] == "soft":
        raise InvalidInput("no image")
    if item["data"] == "hard":
        raise ValueError("on purpose")


def around(name: str) -> Callable[[Item], str]:
    """Make what a node does: it puts its name around the data."""

    def act(item: Item) -> str:
        fail_if_asked(item)
        return f"{name}({item['data']})"

    return act


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    made = Workshop()
    made.acts = {name: around(name) for name in ("a", "b", "c", "each", "read")}
    made.acts["d"] = lambda item: f"{item['data']}+{item['other']}"
    register_backend("Think", think)
    register_backend("Pages", pages)
    return made


async def think(item: Item, call: Any) -> Any:
    item["thought"] = True
    return (await call("diamond", {"data": item["data"]}))["result"]


async def pages(item: Item, call: Any) -> AsyncIterator[Any]:
    for page in item["data"]:
        yield page


TABLES: dict[str, Any] = {
    "pipeline": {"timeout": 1000.0, "entry": "diamond", "max_requests": 5000},
    "diamond": {"backend": "Jump", "jump": "a"},
    "a": {"backend": "Work", "next": "b,c"},
    "b": {"backend": "Work", "next": "d"},
    "c": {"backend": "Work", "next": "d"},
    "d": {"backend": "Work", "map": "b[result:data],c[result:other]"},
    "all": {"backend": "MapReduce", "jump": "each"},
    "each": {"backend": "Work", "max": 2},
    "think": {"backend": "Think"},
    "pages": {"backend": "Pages", "next": "read"},
    "read": {"backend": "Work"},
}


@pytest.fixture
def p(workshop: Workshop) -> Iterator[Pipe]:
    with penstock.pipe(TABLES, name="graphs") as made:
        yield made
        workshop.release_all()
        until(lambda: not any(node.scheduler.running for node in made._runner.pipeline.nodes))
        on_loop(made, lambda: assert_empty(made._runner.pipeline))


def on_loop(made: Pipe, function: Callable[[], None]) -> None:
    async def run() -> None:
        function()

    asyncio.run_coroutine_threadsafe(run(), made._runner.loop).result(BOUND)


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread has brought something about."""
    pause = threading.Event()
    for _ in range(int(BOUND / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not happen")


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "diamond": lambda data: f"b(a({data}))+c(a({data}))",
    "a": lambda data: f"b(a({data}))+c(a({data}))",
    "think": lambda data: f"b(a({data}))+c(a({data}))",
    "all": lambda data: [f"each({part})" for part in data],
    "pages": lambda data: [f"read({page})" for page in data],
}


@pytest.mark.parametrize("node", list(ANSWERS))
def test_the_answer_is_merged_into_the_callers_dict(p: Pipe, node: str) -> None:
    item: Item = {
        "data": "xy" if node in ("diamond", "a", "think") else ["x", "y"],
        "node_name": node,
        "result": "stale",
        "error": "stale",
    }
    before = item["data"]
    p(item)
    assert item.pop("result") == ANSWERS[node](before)
    assert item.pop("thought", None) is (True if node == "think" else None)
    assert item.pop("other", None) == ("c(a(xy))" if node in ("diamond", "a") else None)
    assert item == {"data": before, "node_name": node}
    assert item["data"] is before


@pytest.mark.parametrize("node", list(ANSWERS))
def test_failures(p: Pipe, node: str) -> None:
    many = node in ("all", "pages")
    soft: Item = {"data": ["x", "soft"] if many else "soft", "node_name": node, "result": "stale"}
    p(soft)
    assert "result" not in soft
    assert type(soft["error"]) is InvalidInput
    hard: Item = {"data": ["x", "hard"] if many else "hard", "node_name": node, "result": "stale"}
    with pytest.raises(BackendError, match="on purpose"):
        p(hard)
    assert "result" not in hard and "error" not in hard
    with pytest.raises(NotFound):
        p({"data": 1, "node_name": "b"})


def test_the_items_of_a_list_may_enter_at_different_nodes(p: Pipe) -> None:
    items: list[Item] = [
        {"data": "xy" if node in ("diamond", "a", "think") else ["x", "y"], "node_name": node}
        for node in ANSWERS
    ]
    items.append({"data": ["soft"], "node_name": "all"})
    p(items)
    assert [item.get("result") for item in items] == [
        *[answer(item["data"]) for answer, item in zip(ANSWERS.values(), items)],
        None,
    ]
    assert type(items[-1]["error"]) is InvalidInput


def test_one_failure_of_a_list_drops_the_others(p: Pipe, workshop: Workshop) -> None:
    workshop.hold("each")
    items: list[Item] = [
        {"data": ["x"] * 20, "node_name": "all"},
        {"data": "hard", "node_name": "diamond"},
    ]
    with pytest.raises(BackendError, match="on purpose"):
        p(items)
    assert all("result" not in item for item in items)
    until(lambda: p._runner.pipeline.in_flight == 0)
    workshop.release("each")
    assert len(workshop.inputs("each")) <= 2


def test_the_parts_of_a_stream_are_its_result(p: Pipe) -> None:
    item: Item = {"data": [], "node_name": "pages"}
    p(item)
    assert item == {"data": [], "node_name": "pages", "result": []}


def test_a_timeout(p: Pipe, workshop: Workshop) -> None:
    for node in ("all", "think", "pages"):
        held = {"all": "each", "think": "a", "pages": "read"}[node]
        workshop.hold(held)
        item: Item = {"data": ["x"] * 5, "node_name": node, "result": "stale"}
        with pytest.raises(DeadlineExceeded):
            p(item, timeout=0.01)
        assert "result" not in item
        workshop.release(held)


def test_events_of_32_threads(p: Pipe) -> None:
    def work(seed: int) -> int:
        chance = random.Random(seed)
        checked = 0
        for _ in range(15):
            node = chance.choice(list(ANSWERS))
            plain = node in ("diamond", "a", "think")
            made: list[Item] = []
            for _ in range(chance.randrange(1, 4)):
                name = f"{seed}.{chance.randrange(1000)}"
                made.append(
                    {"data": name if plain else [name] * chance.randrange(5), "node_name": node}
                )
            failing = chance.random() < 0.2
            if failing:
                made.append({"data": "hard" if plain else ["hard"], "node_name": node})
            event = None
            if chance.random() < 0.5:
                made[0]["event"] = event = Event()
                p(made)
            wait = partial(p, made) if event is None else event.Wait
            if failing:
                with pytest.raises(BackendError, match="on purpose"):
                    wait()
                assert all("result" not in item for item in made)
            else:
                wait()
                assert [item["result"] for item in made] == [
                    ANSWERS[node](item["data"]) for item in made
                ]
            checked += 1
        return checked

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(32))) == [15] * 32
    assert p._runner.pipeline.in_flight == 0


@pytest.mark.parametrize(
    ("node", "held"), [("all", "each"), ("think", "a"), ("pages", "read"), ("diamond", "b")]
)
def test_close_while_calls_wait(workshop: Workshop, node: str, held: str) -> None:
    workshop.hold(held)
    made = penstock.pipe(TABLES, name="graphs")
    events = []
    for _ in range(5):
        item: Item = {"data": ["x"] * 30, "node_name": node, "event": Event()}
        made(item)
        events.append(item["event"])
    until(lambda: workshop.inputs(held))
    closing = threading.Thread(target=made.close, kwargs={"timeout": 0.0})
    closing.start()
    for event in events:
        with pytest.raises(NotReady):
            event.Wait()
    workshop.release(held)
    closing.join(BOUND)
    assert not closing.is_alive()
    assert made._runner.pipeline.in_flight == 0


def test_logic_can_not_wait_for_a_pipe_on_the_loop(workshop: Workshop) -> None:
    """It would hold up every request, and this call would wait for the loop that it is on."""

    async def asks(item: Item, call: Any) -> Any:
        item["data"]({"data": 1})

    register_backend("Asks", asks)
    with (
        penstock.pipe({"backend": "Asks"}, name="asks") as made,
        pytest.raises(BackendError, match=r"RuntimeError.*running event loop"),
    ):
        made({"data": made})


def test_a_pipe_of_logic_alone(workshop: Workshop) -> None:
    async def alone(item: Item, call: Any) -> Any:
        return item["data"] + 1

    register_backend("Alone", alone)
    with penstock.pipe("Alone") as made:
        item: Item = {"data": 1}
        made(item)
        assert item["result"] == 2
        with pytest.raises(DeadlineExceeded):
            made({"data": 1}, timeout=-1)
        with pytest.raises(ValueError, match="one node, found none"):
            made.max()
