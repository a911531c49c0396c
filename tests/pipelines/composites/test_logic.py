"""Python logic: its items, its calls, and how it ends if it fails, is late or its caller leaves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import traceback
import weakref
from typing import Any

import pytest

from penstock.backends.base import Context, Params
from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    MissingData,
    NotFound,
    NotReady,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.pipeline import Pipeline

from ..workshop import BOUND, Clock, Workshop, outcomes, queued, serve, turns, until, waiting

pytestmark = pytest.mark.usefixtures("own_registry", "own_filters", "no_threads_left")


@pytest.fixture(autouse=True)
def workshop(own_registry: None) -> Workshop:
    return Workshop()


def tables(logic: Any, **nodes: Any) -> dict[str, Any]:
    """Make the tables of the logic `think` and of `work`, or of other nodes of the workshop."""
    register_backend("Think", logic)
    nodes = nodes or {"work": {}}
    return {
        "pipeline": {"timeout": 1000.0, "entry": "think"},
        "think": {"backend": "Think"},
        **{name: {"backend": "Work", **keys} for name, keys in nodes.items()},
    }


def text(item: Item) -> str:
    return f"<{item['data']}>"


# items and results


async def test_a_function_returns_the_result(workshop: Workshop) -> None:
    workshop.acts["work"] = text

    async def think(item: Item, call: Any) -> Any:
        first = await call("work", {"data": item["data"]})
        second = await call("work", {"data": first["result"], "other": 1})
        assert second == {"data": "<x>", "other": 1, "result": "<<x>>"}
        return second["result"]

    async with serve(tables(think), workshop=workshop) as pipeline:
        assert await pipeline({"data": "x", "key": 1}) == {"data": "x", "key": 1, "result": "<<x>>"}
        assert outcomes(pipeline, "think") == {"ok": 1}


async def test_a_function_sets_the_result_in_place() -> None:
    async def think(item: Item, call: Any) -> None:
        assert "result" not in item
        item["result"] = item["data"] + 1
        item["data"] = "changed"
        item["more"] = 2

    async with serve(tables(think)) as pipeline:
        given = {"data": 1, "result": "stale"}
        assert await pipeline(given) == {"data": 1, "result": 2, "more": 2}
        assert given == {"data": 1, "result": "stale"}


async def test_logic_that_returns_nothing_has_no_result() -> None:
    async def think(item: Item, call: Any) -> None:
        pass

    async with serve(tables(think)) as pipeline:
        assert await pipeline({"data": 1}) == {"data": 1}


async def test_a_class_with_init_and_close() -> None:
    seen: list[Any] = []

    class Think:
        def init(self, params: Any, context: Context) -> None:
            self.factor = int(params["factor"])
            seen.append((dict(params), context.pipeline, context.node))

        async def forward(self, item: Item, call: Any) -> Any:
            return item["data"] * self.factor

        def close(self) -> None:
            seen.append("close")

    declared = tables(Think)
    declared["think"] |= {"factor": 3}
    async with serve(declared) as pipeline:
        assert (await pipeline({"data": 2}))["result"] == 6
        assert seen == [({"factor": 3}, "p", "think")]
    assert seen[1:] == ["close"]


async def test_declared_parameters_are_checked_at_load() -> None:
    class Think:
        class parameters(Params):
            factor: int = 2

        def init(self, params: Any) -> None:
            self.factor = params.factor

        async def forward(self, item: Item, call: Any) -> Any:
            return item["data"] * self.factor

    async with serve(tables(Think)) as pipeline:
        assert (await pipeline({"data": 2}))["result"] == 4
    wrong = tables(Think)
    wrong["think"] |= {"factor": "many"}
    with pytest.raises(ConfigError, match="factor"):
        Pipeline.load(wrong)


async def test_an_init_that_fails_fails_the_start(workshop: Workshop) -> None:
    class Think:
        def init(self) -> None:
            raise OSError("no such model")

        async def forward(self, item: Item, call: Any) -> Any:
            return None

    pipeline = Pipeline.load(tables(Think))
    with pytest.raises(BackendError, match="node 'think': OSError: no such model"):
        await pipeline.start()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_exception_of_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Think:
        async def forward(self, item: Item, call: Any) -> Any:
            return 1

        def close(self) -> None:
            raise OSError("busy")

    async with serve(tables(Think)):
        pass
    assert [record.message for record in caplog.records] == ["node think: close failed"]


async def test_a_close_that_does_not_end_is_left_running(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.pipelines.composites.logic.LEAST_CLOSE_SECONDS", 0.01)
    release = threading.Event()

    class Think:
        async def forward(self, item: Item, call: Any) -> Any:
            return 1

        def close(self) -> None:
            release.wait(BOUND)

    pipeline = Pipeline.load(tables(Think))
    await pipeline.start()
    async with asyncio.timeout(BOUND / 2):
        await pipeline.close(timeout=0)
    (closing,) = [thread for thread in threading.enumerate() if thread.name.endswith("/think")]
    assert closing.daemon  # so that it keeps no process alive
    assert "close did not end" in caplog.text
    release.set()
    await asyncio.to_thread(closing.join, BOUND)


async def test_logic_may_stand_between_other_nodes(workshop: Workshop) -> None:
    workshop.acts["after"] = text

    async def think(item: Item, call: Any) -> Any:
        return item["data"] * 2

    between = tables(think, before={"next": "think"}, after={})
    between["pipeline"]["entry"] = "before"
    between["think"] |= {"next": "after"}
    async with serve(between, workshop=workshop) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == "<xx>"


# calls


async def test_concurrent_calls_run_in_one_batch(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        words = await asyncio.gather(
            *[call("work", {"data": word}) for word in item["data"].split()]
        )
        return [word["result"] for word in words]

    async with serve(tables(think, work={"max": 8}), workshop=workshop) as pipeline:
        assert (await pipeline({"data": "a b c"}))["result"] == ["a", "b", "c"]
        assert workshop.batches("work") == [["a", "b", "c"]]


async def test_a_list_is_one_call(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        if item["data"] == "unreadable":
            raise InvalidInput("no image")
        if item["data"] == "bad":
            raise ValueError("on purpose")
        return item["data"]

    workshop.acts["work"] = act

    async def think(item: Item, call: Any) -> Any:
        answers = await call("work", [{"data": data} for data in item["data"]])
        return [str(answer.get("result", answer.get("error"))) for answer in answers]

    async with serve(tables(think, work={"max": 1}), workshop=workshop) as pipeline:
        assert (await pipeline({"data": []}))["result"] == []
        assert (await pipeline({"data": [1, "unreadable", 2]}))["result"] == ["1", "no image", "2"]
        with pytest.raises(BackendError, match="on purpose"):
            await pipeline({"data": ["bad", *range(3, 20)]})
        assert len(workshop.ran) <= 5  # the other items of the call were dropped


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wirk", "no node 'wirk'.*did you mean 'work'"),
        ("inner", "'inner' can't be entered"),
        ("other/node", "no node 'other/node'"),
    ],
)
async def test_calls_of_nodes_that_are_unknown_or_can_not_be_entered(
    workshop: Workshop, name: str, message: str
) -> None:
    async def think(item: Item, call: Any) -> Any:
        return await call(name, item)

    nodes = {
        "work": {"next": "left,inner"},
        "left": {"next": "end"},
        "inner": {"next": "end"},
        "end": {"map": "left[result:data],inner[data:x]"},
    }
    async with serve(tables(think, **nodes), workshop=workshop) as pipeline:
        with pytest.raises(
            BackendError, match=f"node 'think': its logic raised NotFound: .*{message}"
        ) as caught:
            await pipeline({"data": 1})
        assert isinstance(caught.value.__cause__, NotFound)


async def test_calls_need_an_item(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        return await call("work", item["data"])

    async with serve(tables(think), workshop=workshop) as pipeline:
        for data, cause in (
            ({"no": "data"}, MissingData),
            (3, TypeError),
            ([{"data": 1}, {}], MissingData),
            ([1], TypeError),
        ):
            with pytest.raises(BackendError) as caught:
                await pipeline({"data": data})
            assert type(caught.value.__cause__) is cause


async def test_the_rows_and_the_priority_of_a_call_are_checked(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        return (
            await call("work", {"data": 1, "request_size": item["data"]}, priority=item["priority"])
        )["result"]

    async with serve(
        tables(think, work={"max": 4, "priority_levels": 2}), workshop=workshop
    ) as pipeline:
        for data, priority in ((5, 1), (0, 1), (1, 3), (1, 0), (1, -1)):
            with pytest.raises(BackendError) as caught:
                await pipeline({"data": data, "priority": priority})
            assert type(caught.value.__cause__) is InvalidRequest
        assert (await pipeline({"data": 4, "priority": 2}))["result"] == 1


async def test_the_priority_of_a_call(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        await call("work", {"data": item["data"]}, priority=item.get("level"))

    workshop.hold("work")
    declared = tables(think, work={"max": 1, "priority_levels": 3})
    declared["think"]["priority_levels"] = 3
    async with serve(declared, workshop=workshop) as pipeline:
        calls = [asyncio.ensure_future(pipeline({"data": "first"}))]
        await workshop.begun("work")
        for data, own, priority in (
            ("low", 3, None),
            ("middle", None, None),
            ("high", None, 1),
            ("highest", 1, 3),
        ):
            calls.append(
                asyncio.ensure_future(pipeline({"data": data, "level": own}, priority=priority))
            )
            await turns()
        workshop.release("work")
        await asyncio.gather(*calls)
        assert workshop.inputs("work") == ["first", "high", "highest", "middle", "low"]


async def test_logic_calls_logic_and_composites(workshop: Workshop) -> None:
    workshop.acts["work"] = text

    async def outer(item: Item, call: Any) -> Any:
        return (await call("think", item))["result"] + (await call("all", {"data": ["a", "b"]}))[
            "result"
        ]

    async def think(item: Item, call: Any) -> Any:
        return [(await call("work", item))["result"]]

    register_backend("Outer", outer)
    nodes = tables(think) | {
        "outer": {"backend": "Outer"},
        "all": {"backend": "MapReduce", "jump": "work"},
    }
    nodes["pipeline"]["entry"] = "outer"
    async with serve(nodes, workshop=workshop) as pipeline:
        assert (await pipeline({"data": "x"}))["result"] == ["<x>", "<a>", "<b>"]


async def test_recursion_has_a_bound() -> None:
    depths: list[int] = []

    async def think(item: Item, call: Any) -> Any:
        depths.append(item["data"])
        if item["data"] == item["until"]:
            return item["data"]
        return (await call("think", {**item, "data": item["data"] + 1}))["result"]

    async with serve(tables(think)) as pipeline:
        assert (await pipeline({"data": 0, "until": 63}))["result"] == 63
        depths.clear()
        with pytest.raises(BackendError, match="node 'think': graphs enter one another 64 deep"):
            await pipeline({"data": 0, "until": 1000})
        assert depths == list(range(64))


@pytest.mark.parametrize("loop", [False, True], ids=["plain", "loop"])
async def test_recursion_through_another_pipeline_has_the_same_bound(loop: bool) -> None:
    async def think(item: Item, call: Any) -> Any:
        return (await call("p", item))["result"]

    declared = tables(think)
    declared["pipeline"]["loop"] = loop
    async with serve(declared) as pipeline:
        pipeline.others = lambda name: pipeline
        with pytest.raises(BackendError, match="64 deep"):
            await pipeline({"data": 0})


async def test_other_pipelines(workshop: Workshop) -> None:
    workshop.acts |= {"first": text, "second": lambda item: "second"}

    async def think(item: Item, call: Any) -> Any:
        answer = await call(item["data"], {"data": "x", "node_name": "nonsense"})
        return answer["result"]

    other = {
        "first": {"backend": "Work"},
        "second": {"backend": "Work"},
        "pipeline": {"entry": "first"},
    }
    async with (
        serve(other, workshop=workshop, name="other") as second,
        serve(tables(think), workshop=workshop) as pipeline,
    ):
        known = {"other": second}

        def others(name: str) -> Pipeline:
            try:
                return known[name]
            except KeyError:
                raise NotFound(f"no pipeline {name!r}") from None

        pipeline.others = others
        assert (await pipeline({"data": "other"}))["result"] == "<x>"
        assert (await pipeline({"data": "other/second"}))["result"] == "second"
        for name, message in (
            ("another", "no pipeline 'another'"),
            ("other/third", "no node 'third'"),
        ):
            with pytest.raises(BackendError, match=message) as caught:
                await pipeline({"data": name})
            assert isinstance(caught.value.__cause__, NotFound)
        assert second.in_flight == 0


async def test_the_deadline_holds_for_a_call_of_another_pipeline(workshop: Workshop) -> None:
    clock = Clock()

    async def think(item: Item, call: Any) -> Any:
        clock.now += item["data"]
        return (await call("other", {"data": 1}))["result"]

    async def echo(item: Item, call: Any) -> Any:
        return call.deadline

    without_executors = tables(echo)
    del without_executors["work"]
    async with (
        serve(without_executors, name="other", clock=clock) as second,
        serve(tables(think), clock=clock, workshop=workshop) as pipeline,
    ):
        pipeline.others = lambda name: second
        begun = clock.now
        assert (await pipeline({"data": 2.0}, timeout=5.0))["result"] == pytest.approx(begun + 5.0)
        with pytest.raises(DeadlineExceeded):
            await pipeline({"data": 6.0}, timeout=5.0)


async def test_a_caller_that_leaves_ends_the_calls_of_another_pipeline(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        await call("other", [{"data": number} for number in range(5)])

    workshop.hold("node")
    async with (
        serve({"node": {"backend": "Work", "max": 1}}, workshop=workshop, name="other") as second,
        serve(tables(think), workshop=workshop) as pipeline,
    ):
        pipeline.others = lambda name: second
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await workshop.begun("node")
        assert (second.in_flight, queued(second, "node")) == (5, 4)
        calling.cancel()
        await turns()
        assert (second.in_flight, queued(second, "node"), pipeline.in_flight) == (0, 0, 0)


# failures


async def test_an_exception_names_node_and_backend_and_keeps_the_users_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def think(item: Item, call: Any) -> Any:
        return dict[str, Any]()["nothing"]  # the line of the traceback

    async with serve(tables(think)) as pipeline:
        with pytest.raises(
            BackendError, match="node 'think': backend Think raised KeyError: 'nothing'"
        ) as caught:
            await pipeline({"data": 1})
        cause = caught.value.__cause__
        assert isinstance(cause, KeyError)
        last = traceback.extract_tb(cause.__traceback__)[-1]
        assert last.filename == __file__
        assert (last.line or "").endswith("# the line of the traceback")
        assert outcomes(pipeline, "think") == {"failed": 1}
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    fields = vars(record)
    assert (fields["pipeline"], fields["node"]) == ("p", "think")


async def test_a_failure_of_the_called_node_is_the_failure_of_the_logic(workshop: Workshop) -> None:
    def act(item: Item) -> Any:
        raise ValueError("on purpose")

    workshop.acts["work"] = act

    async def think(item: Item, call: Any) -> Any:
        await call("work", item)

    async def catches(item: Item, call: Any) -> Any:
        try:
            await call("work", item)
        except BackendError as error:
            return str(error)

    async with serve(tables(think), workshop=workshop) as pipeline:
        with pytest.raises(
            BackendError, match=r"^node 'work': backend Work raised ValueError: on purpose$"
        ):
            await pipeline({"data": 1})
    async with serve(tables(catches), workshop=workshop) as pipeline:
        assert (await pipeline({"data": 1}))[
            "result"
        ] == "node 'work': backend Work raised ValueError: on purpose"


async def test_a_soft_failure_of_the_called_node_is_passed_on_unless_it_is_caught(
    workshop: Workshop,
) -> None:
    def act(item: Item) -> Any:
        raise InvalidInput("no image")

    workshop.acts["work"] = act

    async def think(item: Item, call: Any) -> Any:
        try:
            await call("work", item)
        except InvalidInput:
            if item["data"] == "catch":
                return "caught"
            raise

    async with serve(tables(think), workshop=workshop) as pipeline:
        caught, passed = await pipeline([{"data": "catch"}, {"data": "pass", "key": 1}])
        assert caught["result"] == "caught"
        assert {**passed, "error": str(passed["error"])} == {
            "data": "pass",
            "key": 1,
            "error": "no image",
        }
        with pytest.raises(InvalidInput, match="no image"):
            await pipeline({"data": "pass"})
        assert outcomes(pipeline, "think") == {"ok": 1, "soft": 2}


async def test_an_error_set_in_place_is_a_soft_failure() -> None:
    async def think(item: Item, call: Any) -> Any:
        item["error"] = "not today"
        return "dropped"

    async with serve(tables(think)) as pipeline:
        with pytest.raises(InvalidInput, match="not today"):
            await pipeline({"data": 1})


async def test_logic_that_raises_cancelled_error_itself_has_failed() -> None:
    async def think(item: Item, call: Any) -> Any:
        raise asyncio.CancelledError("mine")

    async with serve(tables(think)) as pipeline:
        with pytest.raises(BackendError, match="backend Think raised CancelledError: mine"):
            await pipeline({"data": 1})


async def test_calls_that_the_logic_stops_waiting_for_are_dropped(workshop: Workshop) -> None:
    go = threading.Event()

    def act(item: Item) -> Any:
        if item["data"] == 0:
            raise ValueError("on purpose")
        assert go.wait(BOUND)

    workshop.acts["work"] = act

    async def think(item: Item, call: Any) -> Any:
        await asyncio.gather(*[call("work", {"data": number}) for number in range(50)])

    async with serve(tables(think, work={"max": 1}), workshop=workshop) as pipeline:
        try:
            with pytest.raises(BackendError, match="on purpose"):
                await pipeline({"data": 1})
            await turns()
            assert queued(pipeline, "work") == 0
        finally:
            go.set()


# ending early


async def test_the_deadline_while_the_logic_waits_for_something_else() -> None:
    ended: list[str] = []
    clock = Clock()
    waits = asyncio.Event()

    async def think(item: Item, call: Any) -> Any:
        try:
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            ended.append("finally")

    async with serve(tables(think), clock=clock) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": 1}, timeout=0.01))
        await waits.wait()
        clock.now += 0.01
        with pytest.raises(DeadlineExceeded, match="node 'think'"):
            await calling
        await until(lambda: len(ended) == 2)
        assert ended == ["cancelled", "finally"]
        assert outcomes(pipeline, "think") == {"expired": 1}


async def test_the_deadline_while_the_logic_waits_for_a_node(workshop: Workshop) -> None:
    clock = Clock()

    async def think(item: Item, call: Any) -> Any:
        await call("work", item)

    workshop.hold("work")
    async with serve(tables(think, work={"max": 1}), workshop=workshop, clock=clock) as pipeline:
        first = asyncio.ensure_future(pipeline({"data": "first"}))
        await workshop.begun("work")
        calling = asyncio.ensure_future(pipeline({"data": "late"}, timeout=0.01))
        await until(lambda: queued(pipeline, "work") == 1)
        clock.now += 0.01
        with pytest.raises(DeadlineExceeded):
            await calling
        assert queued(pipeline, "work") == 0
        workshop.release("work")
        await first
        assert workshop.inputs("work") == ["first"]


class Stubborn(asyncio.Future[Item]):
    """A caller's own future, which raises when it takes an answer."""

    def set_result(self, result: Item, /) -> None:
        super().set_result(result)
        raise ValueError("a mistake of the caller")

    def set_exception(self, error: Any, /) -> None:
        super().set_exception(error)
        raise ValueError("a mistake of the caller")


@pytest.mark.parametrize("place", ["think", "work"])
async def test_a_future_that_raises_leaves_its_neighbours_their_answers(
    place: str, workshop: Workshop
) -> None:
    clock = Clock()

    async def think(item: Item, call: Any) -> Any:
        await asyncio.Event().wait()

    workshop.hold("work")
    async with serve(tables(think, work={"max": 1}), workshop=workshop, clock=clock) as pipeline:
        blocker = asyncio.ensure_future(pipeline({"data": 0, "node_name": "work"}))
        await workshop.begun("work")
        item = {"data": 1, "node_name": place}
        stubborn = pipeline.submit_nowait(item, timeout=0.01, future=Stubborn()).future
        good = pipeline.submit_nowait(item, timeout=0.01).future
        await turns()
        clock.now += 0.01
        for future in (good, stubborn):
            with pytest.raises(DeadlineExceeded):
                await future
        assert pipeline.in_flight == 1
        workshop.release("work")
        await blocker


async def test_a_future_that_raises_leaves_its_neighbours_the_end() -> None:
    async def think(item: Item, call: Any) -> Any:
        await asyncio.Event().wait()

    async with serve(tables(think)) as pipeline:
        stubborn = pipeline.submit_nowait({"data": 1}, future=Stubborn()).future
        good = pipeline.submit_nowait({"data": 1}).future
        await turns()
        await pipeline.close(0)
        for future in (good, stubborn):
            with pytest.raises(NotReady):
                await future
        assert pipeline.in_flight == 0


async def test_an_answer_that_its_future_refuses_holds_no_other_back() -> None:
    release = asyncio.Event()

    async def think(item: Item, call: Any) -> Any:
        await release.wait()
        return item["data"]

    async with serve(tables(think)) as pipeline:
        stubborn = pipeline.submit_nowait({"data": 1}, future=Stubborn()).future
        good = pipeline.submit_nowait({"data": 2}).future
        release.set()
        assert (await good)["result"] == 2
        assert (await stubborn)["result"] == 1
        assert pipeline.in_flight == 0


async def test_requests_without_a_deadline_beside_one_with_a_deadline() -> None:
    """`timeout = inf` is allowed. The timer must find the entries that do have a deadline."""
    release = asyncio.Event()

    async def think(item: Item, call: Any) -> Any:
        await release.wait()
        return call.deadline

    declared = tables(think)
    declared["pipeline"]["timeout"] = float("inf")
    async with serve(declared) as pipeline:
        endless = asyncio.ensure_future(pipeline({"data": 1}))
        with pytest.raises(DeadlineExceeded):
            await pipeline({"data": 1}, timeout=0.001)
        release.set()
        assert (await endless)["result"] == float("inf")


async def test_a_call_with_a_timeout_of_its_own(workshop: Workshop) -> None:
    clock = Clock()

    async def think(item: Item, call: Any) -> Any:
        try:
            await call("work", item, timeout=0.01)
        except DeadlineExceeded:
            return "too late"

    workshop.hold("work")
    async with serve(tables(think, work={"max": 1}), workshop=workshop, clock=clock) as pipeline:
        holding = asyncio.ensure_future(pipeline({"data": "first", "node_name": "work"}))
        await workshop.begun("work")
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await until(lambda: queued(pipeline, "work") == 1)
        clock.now += 0.01
        assert (await calling)["result"] == "too late"
        workshop.release("work")
        await holding


async def test_a_call_gets_no_more_time_than_its_request(workshop: Workshop) -> None:
    clock = Clock()

    async def think(item: Item, call: Any) -> Any:
        assert call.deadline == clock.now + 5.0
        await call("work", item, timeout=float("nan"))
        return (await call("work", item, timeout=100.0))["result"]

    workshop.acts["work"] = lambda item: item["data"]
    async with serve(tables(think), workshop=workshop, clock=clock) as pipeline:
        assert (await pipeline({"data": 1}, timeout=5.0))["result"] == 1


async def test_a_caller_that_leaves_cancels_the_logic_and_its_calls(
    workshop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def think(item: Item, call: Any) -> Any:
        try:
            await asyncio.gather(*[call("work", {"data": number}) for number in range(10)])
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        finally:
            ended.append("finally")

    workshop.hold("work")
    async with serve(tables(think, work={"max": 1}), workshop=workshop) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await workshop.begun("work")
        assert queued(pipeline, "work") == 9
        calling.cancel()
        await turns()
        assert calling.cancelled()
        assert ended == ["cancelled", "finally"]
        assert (queued(pipeline, "work"), waiting(pipeline, "think"), pipeline.in_flight) == (
            0,
            0,
            0,
        )
        assert outcomes(pipeline, "think") == {"cancelled": 1}
        assert [record.message for record in caplog.records] == []  # this is not a failure


async def test_the_result_of_logic_that_swallows_its_cancellation_is_dropped(
    workshop: Workshop,
) -> None:
    waits = asyncio.Event()

    async def think(item: Item, call: Any) -> Any:
        try:
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "a result"

    async with serve(tables(think)) as pipeline:
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await waits.wait()
        calling.cancel()
        await turns()
        assert calling.cancelled()
        assert outcomes(pipeline, "think") == {"cancelled": 1}


async def test_close_cancels_the_logic_and_waits_for_its_cleanup(workshop: Workshop) -> None:
    happened: list[Any] = []

    class Think:
        async def forward(self, item: Item, call: Any) -> Any:
            try:
                await call("work", item)
            finally:
                for _ in range(50):
                    await asyncio.sleep(0)
                try:
                    await call("work", {"data": "help"})
                except NotReady as error:
                    happened.append(str(error))

        def close(self) -> None:
            happened.append("close")

    workshop.hold("work")
    async with asyncio.timeout(BOUND):
        pipeline = Pipeline.load(tables(Think), name="p")
        await pipeline.start()
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await workshop.begun("work")
        closing = asyncio.ensure_future(pipeline.close(timeout=0))
        with pytest.raises(NotReady):
            await calling
        workshop.release("work")
        await closing
        assert happened == ["pipeline 'p' is closed", "close"]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert pipeline.in_flight == 0


async def test_logic_that_never_ends_is_reported_and_left_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    release = asyncio.Event()

    async def think(item: Item, call: Any) -> Any:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    pipeline = Pipeline.load(tables(think), name="p")
    async with asyncio.timeout(BOUND):
        await pipeline.start()
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await turns()
        closing = asyncio.ensure_future(pipeline.close(timeout=0))
        with pytest.raises(NotReady):
            await calling
        await closing
        assert "node think: its logic did not end within 1 s" in caplog.text
        release.set()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_close_lets_logic_end_first(
    workshop: Workshop,
) -> None:
    async def think(item: Item, call: Any) -> Any:
        for _ in range(3):
            await call("work", item)
        return "done"

    async with asyncio.timeout(BOUND):
        pipeline = Pipeline.load(tables(think))
        await pipeline.start()
        calling = asyncio.ensure_future(pipeline({"data": 1}))
        await turns(1)
        await pipeline.close(timeout=BOUND)
        assert (await calling)["result"] == "done"


@pytest.mark.parametrize("streams", [False, True])
async def test_an_item_whose_caller_left_is_freed_without_the_garbage_collector(
    streams: bool,
) -> None:
    class Data:
        pass

    begun = asyncio.Event()

    async def waits(item: Item, call: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def yields(item: Item, call: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()
        yield

    async with serve(tables(yields if streams else waits)) as pipeline:
        gc.collect()
        gc.disable()
        try:
            data = Data()
            gone = weakref.ref(data)
            run = pipeline.submit_nowait({"data": data})
            await begun.wait()
            run.leave()
            del run, data
            for _ in range(10):
                await asyncio.sleep(0)
            assert gone() is None
        finally:
            gc.enable()


# concurrency


async def test_the_variables_of_a_caller_do_not_leak(workshop: Workshop) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    async def think(item: Item, call: Any) -> Any:
        seen.append(variable.get())
        variable.set("its own")
        await call("work", item)
        seen.append(variable.get())

    async with serve(tables(think), workshop=workshop) as pipeline:
        variable.set("the caller's")
        await pipeline({"data": 1})
        await pipeline({"data": 1})
        assert seen == ["none", "its own"] * 2
        assert variable.get() == "the caller's"


@pytest.mark.parametrize("item", [{"data": 1}, [{"data": 1}]])
async def test_a_call_can_not_be_used_after_its_request(workshop: Workshop, item: Any) -> None:
    kept: list[Any] = []

    async def think(item: Item, call: Any) -> Any:
        kept.append(call)
        return (await call("work", {"data": 0}))["result"]

    async with serve(tables(think), workshop=workshop) as pipeline:
        await pipeline({"data": 1})
        with pytest.raises(RuntimeError, match="the request has ended"):
            await kept[0]("work", item)
        assert workshop.inputs("work") == [0]


async def test_several_hundred_requests_at_once(workshop: Workshop) -> None:
    async def think(item: Item, call: Any) -> Any:
        first = await call("work", {"data": item["data"]})
        second, third = await asyncio.gather(
            call("work", {"data": first["result"] + 1}), call("work", {"data": first["result"] + 2})
        )
        return first["result"] + second["result"] + third["result"]

    async with serve(
        tables(think, work={"max": 16, "instance_num": 2}), workshop=workshop
    ) as pipeline:
        answers = await asyncio.gather(*[pipeline({"data": number}) for number in range(400)])
        assert [answer["result"] for answer in answers] == [3 * number + 3 for number in range(400)]
        assert outcomes(pipeline, "think") == {"ok": 400}
        assert outcomes(pipeline, "work") == {"ok": 1200}


async def test_recursion_that_branches_is_bounded() -> None:
    """Logic that calls itself four times would make 4^64 calls before it is 64 deep."""

    async def fan(item: Item, call: Any) -> Any:
        return await asyncio.gather(*[call("fan", item) for _ in range(4)])

    register_backend("Fan", fan)
    async with serve({"fan": {"backend": "Fan"}}) as pipeline:
        with pytest.raises(
            BackendError,
            match=r"node 'fan': graphs enter one another more than [\d,]+ times within one request",
        ):
            await pipeline({"data": 1})


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize("place", ["init", "close"])
async def test_a_base_exception_in_init_or_close(
    error: type[BaseException], place: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Ends:
        async def forward(self, item: Item, call: Any) -> Any:
            return 1

    def ends(*_: Any) -> None:
        raise error

    setattr(Ends, place, ends)
    register_backend("Ends", Ends)
    if place == "init":
        with pytest.raises(BackendError, match=f"node 'a': {error.__name__}"):
            async with serve({"a": {"backend": "Ends"}}):
                pass
        return
    async with serve({"a": {"backend": "Ends"}}) as pipeline:
        assert (await pipeline({"data": 1}))["result"] == 1
    assert [record.message for record in caplog.records] == ["node a: close failed"]


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), BaseException("panic")])
async def test_a_base_exception_fails_its_request_only(
    error: BaseException,
) -> None:
    async def ends(item: Item, call: Any) -> Any:
        raise error

    register_backend("Ends", ends)
    async with serve(
        {"a": {"backend": "Ends"}, "b": {"backend": "Identity"}, "pipeline": {"entry": "a"}}
    ) as pipeline:
        with pytest.raises(
            BackendError, match=f"node 'a': backend Ends raised {type(error).__name__}"
        ):
            await pipeline({"data": 1})
        assert (await pipeline({"data": 1, "node_name": "b"}))["result"] == 1
