"""The contract of in-process calls from threads, line by line (docs/how-to/torchpipe.md).

Gates decide when things happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import threading
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import penstock
from penstock.backends.base import Backend
from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    MissingData,
    NotFound,
    NotReady,
    QueueFull,
)
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.blocking.calls import Event
from penstock.pipelines.blocking.loop_thread import MAX_LOGGED_KINDS
from penstock.pipelines.blocking.pipe import Pipe, pipe
from penstock.pipelines.config.load import load

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

BOUND = 20.0  # seconds after which a test that hangs fails


class Act(Backend):
    """Adds 1 to `data`.

    `data` may also be "unreadable", "raise", "none" (no result), or a function of the item.
    """

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            data = item["data"]
            if callable(data):
                data = data(item)
            if data == "raise":
                raise ValueError("on purpose")
            if data == "unreadable":
                item["error"] = InvalidInput("no image")
            elif data != "none":
                item["result"] = data + 1 if isinstance(data, int) else data


@pytest.fixture(autouse=True)
def act(own_registry: None) -> None:
    register_backend("Act", Act)


@pytest.fixture
def p() -> Iterator[Pipe]:
    with pipe({"backend": "Act", "max": 8}, name="acts") as p:
        yield p


class Held:
    """Data that holds its executor until it is opened."""

    def __init__(self, answer: Any = 1) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.answer = answer

    def __call__(self, item: Item) -> Any:
        self.entered.set()
        assert self.opened.wait(BOUND)
        return self.answer


class Caller(threading.Thread):
    """Runs a function on a thread of its own, and keeps what it returned or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self.function()
        except BaseException as error:
            self.answer = error

    def outcome(self) -> Any:
        self.join(BOUND)
        assert not self.is_alive()
        return self.answer


def until(condition: Callable[[], Any]) -> None:
    """Wait until another thread has brought something about."""
    pause = threading.Event()
    for _ in range(int(BOUND / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not happen")


def queued(made: Pipe) -> int:
    return sum(node.scheduler.queued for node in made._runner.pipeline.nodes)


def hold(made: Pipe, answer: Any = 1) -> tuple[Held, Caller, dict[str, Any]]:
    """Make a call whose item runs until it is opened."""
    held = Held(answer)
    item: dict[str, Any] = {"data": held}
    caller = Caller(lambda: made(item))
    assert held.entered.wait(BOUND)
    return held, caller, item


def waiting(made: Pipe, item: Any, count: int = 1, **keys: Any) -> Caller:
    """Make a call whose items queue."""
    before = queued(made)
    caller = Caller(lambda: made(item, **keys))
    until(lambda: queued(made) == before + count)
    return caller


# in place


def test_the_answer_is_merged_into_the_callers_dict(p: Pipe) -> None:
    def extra(item: Item) -> int:
        item["extra"] = "set by the backend"
        item["data"] = "changed"
        return 4

    item: dict[str, Any] = {"data": extra, "own": "mine"}
    p(item)
    assert item == {"data": extra, "own": "mine", "extra": "set by the backend", "result": 5}


def test_stale_keys_are_removed_before_the_item_runs(p: Pipe) -> None:
    item: dict[str, Any] = {"data": lambda item: sorted(item), "result": "stale", "error": "stale"}
    p(item)
    assert item["result"] == ["data"]
    assert "error" not in item


def test_a_soft_failure_is_not_raised(p: Pipe) -> None:
    item: dict[str, Any] = {"data": "unreadable", "result": "stale"}
    p(item)
    assert "result" not in item
    assert isinstance(item["error"], InvalidInput)
    assert str(item["error"]) == "no image"


def test_a_soft_failure_is_logged_once_for_each_kind(
    p: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(text: str) -> Callable[[Item], Any]:
        def refuse(item: Item) -> Any:
            raise InvalidInput(text)

        return refuse

    for text in ("shape 1x3", "shape 2x4", "dtype", "shape 5x3", "dtype"):
        p({"data": refuse(text)})
    p([{"data": refuse("dtype")}, {"data": refuse("a list")}])
    event = Event()
    p({"data": refuse("an event"), "event": event})
    event.Wait()
    messages = [record.getMessage() for record in caplog.records if record.name == "penstock.pipe"]
    assert [message.split(": ")[2].split(" (")[0] for message in messages] == [
        "shape 1x3",
        "dtype",
        "a list",
        "an event",
    ]
    assert messages[0].startswith("pipe acts: an item has no result: ")


def test_the_log_of_soft_failures_is_bounded(p: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(item: Item) -> Any:
        raise InvalidInput("x" * item["length"])

    for length in range(MAX_LOGGED_KINDS + 5):
        p({"data": refuse, "length": length})
    assert len(caplog.records) == MAX_LOGGED_KINDS


def test_raising_invalid_input_is_a_soft_failure_too(p: Pipe) -> None:
    def refuse(item: Item) -> Any:
        raise InvalidInput("not this one")

    item = {"data": refuse, "result": "stale"}
    p(item)
    assert "result" not in item and str(item["error"]) == "not this one"


def test_neither_result_nor_error_is_an_answer_without_a_result(p: Pipe) -> None:
    item = {"data": "none", "result": "stale"}
    p(item)
    assert item == {"data": "none"}


def test_a_failure_names_node_and_backend_and_leaves_no_result() -> None:
    with pipe({"pipeline": {}, "calc": {"backend": "S[Act,Act]"}}) as made:
        item = {"data": "raise", "result": "stale", "error": "stale"}
        with pytest.raises(
            BackendError, match=r"node 'calc': backend Act raised ValueError: on purpose"
        ) as caught:
            made(item)
        assert isinstance(caught.value.__cause__, ValueError)
        assert item == {"data": "raise"}


def test_a_missing_data_is_an_index_error(p: Pipe) -> None:
    item = {"dta": 1, "result": "stale"}
    with pytest.raises(IndexError, match="no 'data'; its keys are \\['dta'\\]") as caught:
        p(item)
    assert type(caught.value) is MissingData
    assert item == {"dta": 1}


@pytest.mark.parametrize(
    "given",
    [
        None,
        1,
        "data",
        b"data",
        {1, 2},
        MappingProxyType({"data": 1}),
        [{"data": 1}, 5],
        ({"data": 1}, "x"),
    ],
)
def test_anything_else_than_an_item_is_a_type_error(p: Pipe, given: Any) -> None:
    with pytest.raises(TypeError, match="a dict with 'data'"):
        p(given)
    if isinstance(given, list | tuple):
        assert given[0] == {"data": 1}


def test_any_mutable_mapping_is_an_item(p: Pipe) -> None:
    item: UserDict[str, Any] = UserDict({"data": 1, "result": "stale"})
    p(item)
    assert item.data == {"data": 1, "result": 2}

    class Own(dict[str, Any]):
        pass

    own = Own(data=2)
    p(own)
    assert own == {"data": 2, "result": 3}


def test_the_callers_dict_may_change_while_the_item_runs(p: Pipe) -> None:
    held, caller, item = hold(p)
    item["data"] = "another"
    item["own"] = 2
    held.opened.set()
    assert caller.outcome() is None
    assert item == {"data": "another", "own": 2, "result": 2}


# lists


def test_a_list_is_one_call(p: Pipe) -> None:
    items: list[dict[str, Any]] = [{"data": n, "result": "stale"} for n in range(20)]
    p(items)
    assert [item["result"] for item in items] == list(range(1, 21))
    pair = ({"data": 1}, UserDict({"data": 2}))
    p(pair)
    assert [item["result"] for item in pair] == [2, 3]
    p([])
    p(())


def test_in_a_list_soft_failures_stay_with_their_item(p: Pipe) -> None:
    items: list[dict[str, Any]] = [
        {"data": 1},
        {"data": "unreadable", "result": "stale"},
        {"data": 3},
    ]
    p(items)
    assert [item.get("result") for item in items] == [2, None, 4]
    assert [str(item.get("error", "")) for item in items] == ["", "no image", ""]


def test_in_a_list_an_exception_fails_every_item() -> None:
    with pipe({"backend": "Act", "max": 1}) as made:
        items: list[dict[str, Any]] = [
            {"data": 1, "result": "stale"},
            {"data": "raise"},
            {"data": 3, "result": "stale"},
        ]
        with pytest.raises(BackendError, match="on purpose"):
            made(items)
        assert [set(item) for item in items] == [{"data"}] * 3


def test_in_a_list_an_exception_cancels_the_items_that_queue() -> None:
    ran: list[str] = []

    def note(item: Item) -> int:
        ran.append("a sibling")
        return 1

    with pipe({"backend": "Act", "max": 1}) as made:
        held, caller, _ = hold(made)
        items = [{"data": "raise"}, {"data": note}, {"data": note}]
        listed = waiting(made, items, 3)
        held.opened.set()
        assert isinstance(listed.outcome(), BackendError)
        assert caller.outcome() is None
        made({"data": 1})
        until(lambda: made._runner.pipeline.in_flight == 0)
        assert queued(made) == 0
    assert len(ran) <= 1  # the one that the executor took while the failure was reported


def test_a_list_with_a_missing_data_runs_nothing(p: Pipe) -> None:
    items: list[dict[str, Any]] = [{"data": 1, "result": "stale"}, {"x": 1}]
    with pytest.raises(IndexError):
        p(items)
    assert items == [{"data": 1}, {"x": 1}]
    p({"data": 1})
    until(lambda: p._runner.pipeline.in_flight == 0)


def test_the_same_dict_twice_is_a_value_error(p: Pipe) -> None:
    item = {"data": 1, "result": "kept"}
    with pytest.raises(ValueError, match="twice"):
        p([item, {"data": 2}, item])
    assert item["result"] == "kept"


# node_name


@pytest.fixture
def chain() -> Iterator[Pipe]:
    with pipe(
        {
            "a": {"backend": "Act", "next": "b"},
            "b": {"backend": "Act", "next": "c"},
            "c": {"backend": "Act"},
        }
    ) as made:
        yield made


@pytest.mark.parametrize(("entry", "result"), [("a", 3), ("b", 2), ("c", 1)])
def test_node_name_chooses_the_entry_and_stays(chain: Pipe, entry: str, result: int) -> None:
    item = {"data": 0, "node_name": entry}
    chain(item)
    assert item == {"data": 0, "node_name": entry, "result": result}


def test_node_name_stays_as_the_caller_wrote_it(chain: Pipe) -> None:
    def rename(item: Item) -> int:
        item["node_name"] = "renamed"
        item["event"] = "renamed"
        return 0

    item: dict[str, Any] = {"data": rename, "node_name": "c"}
    chain(item)
    assert item == {"data": rename, "node_name": "c", "result": 1}
    item = {"data": rename}
    chain(item)
    assert item == {"data": rename, "result": 3}


@pytest.mark.parametrize("name", ["z", "", 5, None, ["a"]])
def test_an_unknown_node_name_is_an_index_error(chain: Pipe, p: Pipe, name: Any) -> None:
    for made, nodes in (chain, "a, b, c"), (p, "main"):
        item = {"data": 0, "node_name": name, "result": "stale"}
        with pytest.raises(IndexError, match=f"its nodes are {nodes}") as caught:
            made(item)
        assert type(caught.value) is NotFound
        assert item == {"data": 0, "node_name": name}
        made({"data": 1})
        until(lambda: made._runner.pipeline.in_flight == 0)


def test_the_error_for_an_unknown_node_name_suggests_the_nearest() -> None:
    with (
        pipe({"decode": {"backend": "Act"}}) as made,
        pytest.raises(IndexError, match="did you mean 'decode'"),
    ):
        made({"data": 0, "node_name": "decod"})


# timeout and priority


def test_a_deadline_that_passes_in_the_queue(p: Pipe) -> None:
    held, caller, item = hold(p)
    late = {"data": 1, "result": "stale"}
    with pytest.raises(TimeoutError) as caught:
        p(late, timeout=0.02)
    assert type(caught.value) is DeadlineExceeded
    assert late == {"data": 1}
    held.opened.set()
    assert caller.outcome() is None
    assert item["result"] == 2


def test_priorities() -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[Item], int]:
        def act(item: Item) -> int:
            order.append(name)
            return 1

        return act

    with pipe({"backend": "Act", "max": 1, "priority_levels": 2}) as made:
        held, caller, _ = hold(made)
        low = waiting(made, {"data": note("low")}, priority=2)
        high = waiting(made, {"data": note("high")}, priority=1)
        held.opened.set()
        assert [thread.outcome() for thread in (caller, low, high)] == [None] * 3
        assert order == ["high", "low"]
        with pytest.raises(InvalidRequest, match="2 priority levels"):
            made({"data": 1}, priority=3)


def test_too_many_requests_in_flight() -> None:
    with pipe({"pipeline": {"max_requests": 2}, "node": {"backend": "Act", "max": 1}}) as made:
        held, caller, _ = hold(made)
        items = [{"data": 1}, {"data": 2}]
        with pytest.raises(QueueFull):
            made(items)
        # The items of the list that were admitted have left again.
        until(lambda: made._runner.pipeline.in_flight == 1)
        held.opened.set()
        assert caller.outcome() is None


def test_invalid_arguments_fail_their_own_call_only(p: Pipe) -> None:
    with pytest.raises(TypeError):
        p({"data": 1}, timeout="soon")  # type: ignore[arg-type]  # the wrong type is the test
    item = {"data": 1}
    p(item, timeout=float("nan"))
    assert item["result"] == 2


# Event


def test_an_event_makes_the_call_return_at_once(p: Pipe) -> None:
    held, event = Held(), Event()
    item: dict[str, Any] = {"data": held, "event": event, "result": "stale", "error": "stale"}
    assert repr(event) == "<Event: unused>"
    p(item)
    assert held.entered.wait(BOUND)
    assert set(item) == {"data", "event"}
    assert repr(event) == "<Event: waiting>"
    held.opened.set()
    event.Wait()
    assert item == {"data": held, "event": event, "result": 2}
    event.Wait()  # again: nothing changes
    assert item["result"] == 2
    assert repr(event) == "<Event: done>"


def test_backends_do_not_see_the_event(p: Pipe) -> None:
    event = Event()
    item: dict[str, Any] = {"data": lambda item: sorted(item), "event": event}
    p(item)
    event.Wait()
    assert item["result"] == ["data"]


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ({"data": "raise"}, BackendError),
        ({}, IndexError),
        ({"data": 1, "node_name": "x"}, IndexError),
    ],
)
def test_wait_raises_the_failure_of_the_call(
    p: Pipe, item: dict[str, Any], error: type[Exception]
) -> None:
    event = item["event"] = Event()
    item["result"] = "stale"
    p(item)
    for _ in range(2):
        with pytest.raises(error):
            event.Wait()
        assert "result" not in item and item["event"] is event


def test_wait_and_a_soft_failure(p: Pipe) -> None:
    event = Event()
    item = {"data": "unreadable", "event": event}
    p(item)
    event.Wait()
    assert "result" not in item and str(item["error"]) == "no image"


def test_an_event_of_a_closed_pipe() -> None:
    with pipe("Act") as made:
        pass
    event = Event()
    made({"data": 1, "event": event})
    with pytest.raises(NotReady):
        event.Wait()


def test_an_event_used_twice_is_a_value_error(p: Pipe) -> None:
    event = Event()
    item: dict[str, Any] = {"data": 1, "event": event}
    p(item)
    event.Wait()
    for again in item, {"data": 2, "event": event}:
        with pytest.raises(ValueError, match="used before"):
            p(again)
    assert item["result"] == 2  # a call that was not made changes nothing


def test_many_threads_that_use_one_event_make_one_call(p: Pipe) -> None:
    for _ in range(20):
        event, start = Event(), threading.Barrier(8)

        def use(event: Event = event, start: threading.Barrier = start) -> bool:
            start.wait(BOUND)
            with contextlib.suppress(ValueError):
                p({"data": 1, "event": event})
                return True
            return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _: use(), range(8))) == 1
        event.Wait()


def test_waiting_for_an_event_without_a_call() -> None:
    with pytest.raises(RuntimeError, match="no call was made with this Event"):
        Event().Wait()


def test_event_must_be_an_event(p: Pipe) -> None:
    item = {"data": 1, "event": threading.Event(), "result": "kept"}
    with pytest.raises(TypeError, match=r"holds a Event: expected a penstock\.Event"):
        p(item)
    assert item["result"] == "kept"


def test_a_list_takes_one_event(p: Pipe) -> None:
    event = Event()
    items: list[dict[str, Any]] = [{"data": 1}, {"data": "unreadable", "event": event}]
    p(items)
    event.Wait()
    assert items[0]["result"] == 2 and "error" in items[1]
    with pytest.raises(ValueError, match="one Event"):
        p([{"data": 1, "event": Event()}, {"data": 1, "event": Event()}])
    empty = Event()
    with pytest.raises(RuntimeError):
        empty.Wait()


def test_an_event_of_a_list_that_fails(p: Pipe) -> None:
    event = Event()
    items: list[dict[str, Any]] = [{"data": 1, "event": event}, {"data": "raise"}]
    p(items)
    with pytest.raises(BackendError):
        event.Wait()
    assert [set(item) for item in items] == [{"data", "event"}, {"data"}]


def test_several_threads_wait_for_one_event(p: Pipe) -> None:
    held, event = Held(), Event()
    item: dict[str, Any] = {"data": held, "event": event}
    p(item)

    def wait() -> Any:
        event.Wait()
        return item["result"]

    waiters = [Caller(wait) for _ in range(4)]
    held.opened.set()
    assert [waiter.outcome() for waiter in waiters] == [2] * 4


def test_an_event_keeps_its_pipe_until_it_has_ended() -> None:
    held, event = Held(), Event()
    item: dict[str, Any] = {"data": held, "event": event}
    made = pipe("Act")
    runner = made._runner
    made(item)
    assert held.entered.wait(BOUND)
    with pytest.warns(ResourceWarning, match="unclosed"):
        del made
        gc.collect()
        assert not runner.stopping
        held.opened.set()
        event.Wait()
        assert item["result"] == 2
        until(lambda: runner.stopping)
        runner.join(BOUND)


# threads


def test_32_threads_with_everything_mixed() -> None:
    """Every call gets its own answer, whatever the other items of its batch do."""

    class Mixed(Backend):
        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                kind, number = item["data"]
                if kind == "raise":
                    raise ValueError(f"number {number}")
                if kind == "soft":
                    item["error"] = InvalidInput(f"number {number}")
                elif kind == "good":
                    item["result"] = number * 2

    register_backend("Mixed", Mixed)
    kinds = ["good"] * 7 + ["soft", "none"]
    # One at a time: if all items of a batch also fail one by one, the node runs no batch item by
    # item until one succeeds, and another item may fail with it.
    raising = threading.Lock()

    def make(kind: str, number: int) -> dict[str, Any]:
        item: dict[str, Any] = {"data": (kind, number), "result": "stale", "error": "stale"}
        if kind == "missing":
            del item["data"]
        elif kind == "astray":
            item["node_name"] = f"number {number}"
        return item

    def check(item: dict[str, Any], kind: str, number: int) -> None:
        assert item.get("result") == (number * 2 if kind == "good" else None)
        assert ("error" in item) == (kind == "soft")
        if kind == "soft":
            assert str(item["error"]) == f"number {number}"

    def work(made: Pipe, seed: int) -> int:
        random_of = random.Random(seed)
        for number in range(seed * 1000, seed * 1000 + 100):
            chosen = random_of.choices(kinds, k=random_of.choice([1, 1, 1, 4]))
            guilty = random_of.choice(["", "", "", "raise", "missing", "astray"])
            position = random_of.randrange(len(chosen))
            if guilty:
                chosen[position] = guilty
            items = [make(kind, number + index) for index, kind in enumerate(chosen)]
            event = Event() if random_of.random() < 0.2 else None
            if event is not None:
                items[-1]["event"] = event
            with raising if guilty == "raise" else contextlib.nullcontext():
                try:
                    made(items if len(items) > 1 else items[0])
                    if event is not None:
                        event.Wait()
                except (BackendError, IndexError) as error:
                    reason = {
                        "raise": f"ValueError: number {number + position}",
                        "missing": "no 'data'",
                        "astray": f"'number {number + position}'",
                    }
                    assert reason[guilty] in str(error)
                    assert not any("result" in item or "error" in item for item in items)
                else:
                    assert not guilty
                    for index, (item, kind) in enumerate(zip(items, chosen, strict=True)):
                        check(item, kind, number + index)
        return seed

    with pipe({"backend": "Mixed", "max": 16, "instance_num": 2}) as made:
        workers = [Caller(partial(work, made, seed)) for seed in range(32)]
        assert [worker.outcome() for worker in workers] == list(range(32))
        until(lambda: made._runner.pipeline.in_flight == 0)


def test_callers_on_many_threads_share_batches() -> None:
    sizes: list[int] = []

    class Counted(Backend):
        def forward(self, batch: list[Item]) -> None:
            sizes.append(len(batch))
            for item in batch:
                item["result"] = item["data"](item)

    register_backend("Counted", Counted)
    with pipe({"backend": "Counted", "max": 16}) as made:
        held, caller, _ = hold(made)
        callers = [Caller(lambda: made({"data": lambda item: 1})) for _ in range(16)]
        until(lambda: queued(made) == 16)
        held.opened.set()
        assert [thread.outcome() for thread in (caller, *callers)] == [None] * 17
    assert sizes == [1, 16]


def test_calls_share_a_wake_up_of_the_loop(p: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = p._runner
    asked: list[Any] = []
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        assert go_on.wait(BOUND)

    runner.loop.call_soon_threadsafe(block)
    assert blocked.wait(BOUND)
    ask = runner._ask

    def count(*args: Any) -> None:
        asked.append(args)
        ask(*args)

    monkeypatch.setattr(runner, "_ask", count)
    callers = [Caller(lambda: p({"data": 1})) for _ in range(8)]
    until(lambda: len(runner.inbox) == 8)
    go_on.set()
    assert [caller.outcome() for caller in callers] == [None] * 8
    assert len(asked) == 1


def test_nothing_holds_the_callers_data_after_the_call(
    p: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps log records, and these keep tracebacks.
    monkeypatch.setattr(logging.getLogger("penstock.executor"), "disabled", True)

    class Data:
        def __call__(self, item: Item) -> str:
            return self.says

        def __init__(self, says: str) -> None:
            self.says = says

    gc.collect()
    gc.disable()
    try:
        for says in "fine", "unreadable", "raise":
            # With another item in its batch, the item that raises runs again alone.
            for with_event, others in (False, 0), (True, 0), (False, 1):
                items: list[dict[str, Any]] = [{"data": 1} for _ in range(1 + others)]
                items[0]["data"] = Data(says)
                if with_event:
                    items[0]["event"] = Event()
                gone = weakref.ref(items[0]["data"])
                with contextlib.suppress(BackendError):
                    p(items)
                    if with_event:
                        items[0]["event"].Wait()
                del items
                p({"data": 1})  # the executor lets go of the batch before
                until(lambda: gone() is None)
    finally:
        gc.enable()


@pytest.mark.usefixtures("own_filters")
def test_nothing_holds_the_data_that_a_filter_failed_for() -> None:
    class Data:
        pass

    def broken(item: Item) -> Status:
        if isinstance(item["data"], Data):
            raise ValueError("on purpose")
        return Status.RUN

    register_filter("broken", broken)
    nodes = {"a": {"backend": "Identity", "next": "b"}, "b": {"backend": "Act", "filter": "broken"}}
    with pipe(nodes) as made:
        gc.collect()
        gc.disable()
        try:
            item: dict[str, Any] = {"data": Data()}
            gone = weakref.ref(item["data"])
            with contextlib.suppress(BackendError):
                made(item)
            del item
            made({"data": 1})  # the executor lets go of the batch before
            until(lambda: gone() is None)
        finally:
            gc.enable()


# from inside asyncio, and from backends


async def test_the_error_in_the_thread_of_a_running_loop_says_what_to_do(p: Pipe) -> None:
    item: dict[str, Any] = {"data": 1, "result": "kept"}
    with pytest.raises(
        RuntimeError, match=r"`await pipeline\(item\)`.* or `await asyncio.to_thread\(pipe, item\)`"
    ):
        p(item)
    assert item["result"] == "kept"
    await asyncio.to_thread(p, item)
    assert item["result"] == 2


async def test_a_call_with_an_event_may_be_made_on_a_loop(p: Pipe) -> None:
    event, held = Event(), Held()
    item: dict[str, Any] = {"data": held, "event": event}
    p(item)
    with pytest.raises(RuntimeError, match="running event loop"):
        event.Wait()
    held.opened.set()
    await asyncio.to_thread(event.Wait)
    assert item["result"] == 2


async def test_a_pipe_may_be_made_and_closed_on_a_loop() -> None:
    with pipe("Act") as made:
        item = {"data": 1}
        await asyncio.to_thread(made, item)
        assert item["result"] == 2


def test_a_backend_may_call_another_pipe(p: Pipe) -> None:
    def inner(item: Item) -> int:
        own = {"data": 1}
        p(own)
        return own["result"]

    with pipe("Act") as outer:
        item: dict[str, Any] = {"data": inner}
        outer(item)
        assert item["result"] == 3


def test_a_backend_that_calls_its_own_pipe_fails(p: Pipe) -> None:
    def ring(item: Item) -> int:
        p({"data": 1})
        return 1

    with pytest.raises(
        BackendError,
        match="RuntimeError: a backend of acts/main#0 calls the pipe 'acts', which waits for that",
    ):
        p({"data": ring})
    with pytest.raises(
        BackendError, match="RuntimeError: a backend of acts/main#0 closes the pipe that it runs in"
    ):
        p({"data": lambda item: p.close()})


def test_pipes_that_call_one_another_in_a_ring_fail(p: Pipe) -> None:
    with pipe("Act", name="second") as second, pipe("Act", name="third") as third:

        def call(made: Pipe, data: Any) -> Callable[[Item], int]:
            def act(item: Item) -> int:
                own: dict[str, Any] = {"data": data}
                made(own)
                return int(own["result"])

            return act

        with pytest.raises(
            BackendError,
            match="a backend of third/main#0 calls the pipe 'acts', which waits for that very",
        ):
            p({"data": call(second, call(third, call(p, 1)))})
        item: dict[str, Any] = {"data": call(second, call(third, 1))}
        p(item)
        assert item["result"] == 4


# one pipe and several


def test_ranges_of_a_pipe_with_one_node() -> None:
    class Ranged(Act):
        def init(self, params: Any, context: Any) -> None:
            self.min, self.max = 2, 6  # as an engine learns them from its model

    register_backend("Ranged", Ranged)
    for config, expected in (
        ({"backend": "Act"}, (1, 8)),
        ({"backend": "Act", "max": "4"}, (1, 4)),
        ({"backend": "Ranged"}, (2, 6)),
        ({"backend": "Ranged", "min": 3, "max": 5}, (3, 5)),
        ({"backend": "Act", "max": "1&4", "instance_num": "2&1"}, (1, 4)),
    ):
        with pipe(config) as made:
            assert (made.min(), made.max()) == expected
    with pipe({"a": {"backend": "Act", "next": "b"}, "b": {"backend": "Act"}}) as made:
        for read in made.min, made.max:
            with pytest.raises(ValueError, match="one node, found a, b"):
                read()


def test_sources_of_a_pipe(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('[node]\nbackend = "Act"\n')
    for source in (
        str(file),
        file,
        {"node": {"backend": "Act"}},
        {"backend": "Act"},
        "Act",
        load("Act", name="loaded"),
    ):
        with pipe(source) as made:
            item = {"data": 1}
            made(item)
            assert item["result"] == 2
    with pytest.raises(ConfigError, match="did you mean 'Act'"):
        pipe("Atc")
    with pytest.raises(TypeError):
        pipe(5)  # type: ignore[arg-type]  # the wrong type is the test


def test_the_same_file_twice_in_one_process(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('[node]\nbackend = "Act"\n')
    with pipe(file) as first:
        with pipe(file) as second:
            held, caller, item = hold(first)
            other = {"data": 1}
            second(other)  # it has executors of its own
            assert other["result"] == 2
        held.opened.set()
        assert caller.outcome() is None and item["result"] == 2
        first({"data": 1})


def test_the_public_names() -> None:
    assert penstock.pipe is pipe
    assert penstock.Event is Event
    assert {"pipe", "Event"} <= set(penstock.__all__)
    with pytest.raises(AttributeError):
        penstock.nothing


def test_repr(p: Pipe) -> None:
    held, caller, _ = hold(p)
    second = waiting(p, {"data": 1})
    assert repr(p) == "<pipe acts: ready, 1 active, 1 queued>"
    held.opened.set()
    assert (caller.outcome(), second.outcome()) == (None, None)
