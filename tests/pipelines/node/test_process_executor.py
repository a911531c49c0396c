"""Pipelines with `executor = "process"`: failures, answers, readiness, and what is left."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    NotReady,
)
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.node.executor import Executor
from penstock.pipelines.pipeline import Pipeline

LOOPS = ["uvloop"]
"""Children take long. Their executors meet a loop as those of threads do, in test_node.py."""

OPS = """
import os, signal, time
from pathlib import Path
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput

HERE = Path(__file__).parent

class Work(Backend):
    parameters = None
    max = 16

    def init(self, params, context):
        if (HERE / "refuse").exists():
            raise ValueError("refused to load")
        while (HERE / "wait").exists():
            time.sleep(0.01)

    def forward(self, batch):
        with (HERE / "runs").open("a") as file:
            print(os.getpid(), [text_of(item) for item in batch], file=file)
        for item in batch:
            match text_of(item):
                case "kill": os.kill(os.getpid(), signal.SIGKILL)
                case "sleep": time.sleep(60)
                case "first": (HERE / "ran").exists() or ((HERE / "ran").touch(), signal.pause())
                case "nap": rest()
                case "raise": raise ValueError("a secret")
                case "soft": raise InvalidInput("not readable")
            item["result"] = item["data"]
            item["pid"] = os.getpid()

def rest():
    while not (HERE / "rested").exists():
        time.sleep(0.01)

def text_of(item):
    return item["data"] if isinstance(item["data"], str) else ""

def plus(x):
    return x + 1
"""


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    (tmp_path / "ops.py").write_text(OPS)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    fds, threads, processes = descriptors(), set(threading.enumerate()), children()
    yield
    gc.collect()
    assert set(threading.enumerate()) <= threads  # one of an earlier test may end meanwhile
    assert descriptors() == fds
    assert children() == processes  # none of ours is left, dead or alive


def children() -> set[str]:
    """Our child processes, dead or alive; other tests have some too (the resource tracker of
    shared memory).
    """
    pids: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            pids.update((task / "children").read_text().split())
    return pids


def descriptors() -> int:
    """Pipes, sockets and files in memory; the loop of the test has its own before and after."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return sum("memfd" in link for link in links)


def table(ops: Path, **keys: Any) -> dict[str, Any]:
    return {"work": {"backend": f"Python[{ops}/ops.py:Work]", "executor": "process", **keys}}


@asynccontextmanager
async def running(ops: Path, **keys: Any) -> AsyncIterator[Pipeline]:
    async with asyncio.timeout(50), Pipeline.load(table(ops, **keys)) as pipeline:
        yield pipeline


@contextmanager
def patience(pipeline: Pipeline) -> Iterator[None]:
    """Let a healthy child stand still, as the whole machine may, without being killed for it."""
    scheduler = pipeline.nodes[0].scheduler
    bound, scheduler.stuck_after = scheduler.stuck_after, 60.0
    yield
    scheduler.stuck_after = bound


async def outcomes(pipeline: Pipeline, *data: Any) -> list[Any]:
    answers: list[Any] = await asyncio.gather(
        *[pipeline({"data": value}) for value in data], return_exceptions=True
    )
    return [answer["result"] if isinstance(answer, dict) else answer for answer in answers]


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def runs(ops: Path) -> list[tuple[int, str]]:
    lines = [line.split(" ", 1) for line in (ops / "runs").read_text().splitlines()]
    return [(int(pid), what) for pid, what in lines]


async def test_a_pipeline_of_threads_and_processes(ops: Path) -> None:
    chain = {
        "first": {"backend": f"Python[{ops}/ops.py:plus]", "next": "second"},
        "second": {
            "backend": f"S[Python[{ops}/ops.py:plus],Identity]",
            "executor": "process",
            "next": "third",
        },
        "third": {"backend": f"Python[{ops}/ops.py:plus]"},
    }
    async with Pipeline.load(chain) as pipeline:
        assert (await pipeline({"data": 1}))["result"] == 4
        image = np.zeros((2000, 2000, 3), np.uint8)
        answer = await pipeline({"data": image})
        assert answer["data"] is image
        assert (answer["result"] == 3).all() and answer["result"].flags.owndata
    for node in pipeline.nodes:
        assert not node.statistics.restarts


async def test_only_the_item_that_kills_fails(ops: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(ops) as pipeline:
        answers = await outcomes(pipeline, "a", "kill", "b", "raise", "soft", "c")
        assert [answers[index] for index in (0, 2, 5)] == ["a", "b", "c"]
        killed, raised, soft = (answers[index] for index in (1, 3, 4))
        assert type(killed) is BackendError and "Work raised ProcessDiedError: process " in str(
            killed
        )
        assert str(killed).endswith("was killed by SIGKILL") and "node 'work'" in str(killed)
        assert (
            type(raised) is BackendError
            and str(raised) == "node 'work': backend Work raised ValueError: a secret"
        )
        assert isinstance(raised.__cause__, ValueError)
        assert type(soft) is InvalidInput and str(soft) == "not readable"
        first, *singly = runs(ops)
        assert first[1] == "['a', 'kill', 'b', 'raise', 'soft', 'c']"
        assert [what for _, what in singly] == [
            f"[{value!r}]" for value in ("a", "kill", "b", "raise", "soft", "c")
        ]
        assert len({pid for pid, _ in runs(ops)}) == 3
        assert pipeline.nodes[0].statistics.restarts == 2
        assert await outcomes(pipeline, "next") == ["next"]
        assert not pipeline.not_ready
    assert 'ValueError("a secret")' in caplog.text  # the line in the child, of the remote traceback
    assert "was killed by SIGKILL; starting it again" in caplog.text


async def test_what_can_not_be_sent_names_the_backend_and_not_its_proxy(ops: Path) -> None:
    async with running(ops) as pipeline:
        answers = await outcomes(pipeline, "a", threading.Lock())
        assert answers[0] == "a" and type(answers[1]) is BackendError
        assert str(answers[1]).startswith(
            "node 'work': backend Work raised TypeError: cannot pickle"
        )


async def test_without_retry_the_whole_batch_fails(ops: Path) -> None:
    async with running(ops, retry=False) as pipeline:
        answers = await outcomes(pipeline, "a", "kill")
        assert [type(answer) for answer in answers] == [BackendError, BackendError]
        assert await outcomes(pipeline, "b") == ["b"]


async def test_a_node_is_not_ready_while_its_child_is_down(ops: Path) -> None:
    async with running(ops) as pipeline:
        pid = (await pipeline({"data": "x"}))["pid"]
        (ops / "wait").touch()
        os.kill(pid, signal.SIGKILL)  # nothing runs, so no call to the child notices it
        await until(lambda: pipeline.not_ready)
        assert pipeline.not_ready == "node 'work': 1 of 1 executors are not running"
        waiting = asyncio.create_task(outcomes(pipeline, "meanwhile"))
        await until(lambda: pipeline.in_flight == 1)
        assert not waiting.done()
        (ops / "wait").unlink()
        assert await waiting == ["meanwhile"]
        assert not pipeline.not_ready
        assert pipeline.nodes[0].statistics.restarts == 1


async def test_a_child_that_can_not_load_again_is_tried_until_it_can(ops: Path) -> None:
    async with running(ops) as pipeline:
        (ops / "refuse").touch()
        answers = await outcomes(pipeline, "a", "kill")
        assert all(
            type(answer) is BackendError and "RestartError" in str(answer) for answer in answers
        )
        assert "refused to load" in str(answers[0])
        await until(lambda: pipeline.not_ready)
        for answer in await outcomes(pipeline, "meanwhile", "too"):
            assert type(answer) is NotReady and str(answer) == pipeline.not_ready
        (ops / "refuse").unlink()
        await until(lambda: not pipeline.not_ready)
        assert await outcomes(pipeline, "b") == ["b"]


async def test_while_one_child_is_down_the_other_serves(ops: Path) -> None:
    async with running(ops, instance_num=2) as pipeline:
        pid = (await pipeline({"data": "x"}))["pid"]
        (ops / "wait").touch()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pipeline.not_ready)
        assert await outcomes(pipeline, "a", "b") == ["a", "b"]  # the other one runs both
        assert pipeline.not_ready
        assert pipeline.nodes[0].executor_count == 1  # half as much can be answered
        (ops / "wait").unlink()
        await until(lambda: not pipeline.not_ready)
        assert pipeline.nodes[0].executor_count == 2


async def test_an_item_that_never_ran_is_no_answer(
    ops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Executor, "ready", True)  # as if the items came before the child's end
    async with running(ops) as pipeline:
        pid = (await pipeline({"data": "x"}))["pid"]
        process: Any = pipeline.nodes[0].executors[0]._process
        (ops / "wait").touch()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not process.ready)
        # The thread that starts another child finds these items when it is done, but it dies.
        waiting = asyncio.create_task(outcomes(pipeline, "a", "b"))
        await until(lambda: pipeline.nodes[0].scheduler.running)
        (ops / "refuse").touch()
        (ops / "wait").unlink()
        for answer in await waiting:
            assert type(answer) is BackendError and "RestartError" in str(answer)
        (ops / "refuse").unlink()
        await until(lambda: not pipeline.not_ready)
        assert await outcomes(pipeline, "c") == ["c"]


async def test_instances_are_children_and_work_at_once(ops: Path) -> None:
    async with running(ops, instance_num=2, max=1) as pipeline:
        napping = asyncio.gather(*[pipeline({"data": "nap"}) for _ in range(2)])
        await until(lambda: (ops / "runs").exists() and len(runs(ops)) == 2)
        (ops / "rested").touch()
        answers = await napping
        (ops / "rested").unlink()
        pids = {answer["pid"] for answer in answers}
        assert len(pids) == 2 and os.getpid() not in pids
        # One child dies, the other one goes on.
        killing, napping_on = [
            asyncio.ensure_future(pipeline({"data": data})) for data in ("kill", "nap")
        ]
        with pytest.raises(BackendError):
            await killing
        (ops / "rested").touch()
        assert (await napping_on)["pid"] in pids


async def test_a_child_that_does_not_load_fails_the_start(ops: Path) -> None:
    (ops / "refuse").touch()
    with pytest.raises(BackendError, match="node 'work': ValueError: refused to load"):
        async with Pipeline.load(table(ops)):
            pytest.fail("it started")


async def test_close_while_it_works(ops: Path) -> None:
    pipeline = Pipeline.load(table(ops))
    await pipeline.start()
    working = asyncio.create_task(pipeline({"data": "sleep"}))
    await until((ops / "runs").exists)
    async with asyncio.timeout(50):  # the sleep takes 60 s
        await pipeline.close(0.3)
    with pytest.raises((NotReady, asyncio.CancelledError)):
        await working


async def test_close_kills_a_child_whose_caller_left(ops: Path) -> None:
    pipeline = Pipeline.load(table(ops))
    await pipeline.start()
    working = asyncio.create_task(pipeline({"data": "sleep"}))
    await until((ops / "runs").exists)
    working.cancel()
    async with asyncio.timeout(50):  # the sleep takes 60 s, and the limit is longer
        await pipeline.close(1e6)
    assert pipeline.state == "closed"


async def test_close_while_it_loads(ops: Path) -> None:
    (ops / "wait").touch()
    pipeline = Pipeline.load(table(ops))
    starting = asyncio.create_task(pipeline.start())
    await asyncio.sleep(0.3)
    await pipeline.close(0.1)
    with pytest.raises(NotReady):
        await starting


async def test_a_child_that_hangs_is_killed_and_replaced(
    ops: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(ops, stuck_after=0.5) as pipeline:
        with patience(pipeline):
            pid = (await pipeline({"data": "x"}))["pid"]
        for _ in range(2):
            with pytest.raises(DeadlineExceeded, match=r"longer than 0.5 s \(stuck_after\)"):
                await pipeline({"data": "sleep"})
        with patience(pipeline):
            after = await pipeline({"data": "y"})
        assert after["result"] == "y" and after["pid"] != pid
        assert not pipeline.not_ready
        assert pipeline.nodes[0].statistics.restarts == 2
        assert pipeline.nodes[0].estimate.batches == 2  # those that did not hang
    assert [what for _, what in runs(ops)] == ["['x']", "['sleep']", "['sleep']", "['y']"]
    assert f"which waits for process {pid}" in caplog.text and "recv" in caplog.text
    assert "Its child process is killed and replaced" in caplog.text


async def test_the_neighbours_of_an_item_that_hangs_run_again(ops: Path) -> None:
    async with running(ops, stuck_after=1.0) as pipeline:
        before, hung, after = await outcomes(pipeline, "a", "sleep", "b")
        assert (before, after) == ("a", "b")
        assert type(hung) is DeadlineExceeded and "stuck_after" in str(hung)
        assert not pipeline.not_ready


async def test_without_retry_a_hang_fails_the_batch(ops: Path) -> None:
    async with running(ops, stuck_after=0.5, retry=False) as pipeline:
        answers = await outcomes(pipeline, "a", "sleep")
        assert [type(answer) for answer in answers] == [DeadlineExceeded, DeadlineExceeded]
        with patience(pipeline):
            assert await outcomes(pipeline, "b") == ["b"]


async def test_a_hang_in_one_child_holds_no_other(ops: Path) -> None:
    async with running(ops, stuck_after=1.0, instance_num=2, max=1) as pipeline:
        hanging = asyncio.ensure_future(outcomes(pipeline, "sleep"))
        await until((ops / "runs").exists)
        with patience(pipeline):
            assert await outcomes(pipeline, "a", "b") == ["a", "b"]
        assert type((await hanging)[0]) is DeadlineExceeded


async def test_an_item_whose_child_was_killed_runs_once_more(ops: Path) -> None:
    async with running(ops) as pipeline:
        working = asyncio.ensure_future(pipeline({"data": "first"}))
        await until((ops / "ran").exists)
        ((pid, _),) = runs(ops)
        os.kill(pid, signal.SIGKILL)
        assert (await working)["result"] == "first"
        assert [what for _, what in runs(ops)] == ["['first']"] * 2
        assert pipeline.nodes[0].statistics.restarts == 1


async def test_an_item_that_kills_twice_fails(ops: Path) -> None:
    async with running(ops) as pipeline:
        (error,) = await outcomes(pipeline, "kill")
        assert type(error) is BackendError and "was killed by SIGKILL" in str(error)
        assert [what for _, what in runs(ops)] == ["['kill']"] * 2
        assert await outcomes(pipeline, "b") == ["b"]


async def test_without_retry_an_item_runs_once(ops: Path) -> None:
    async with running(ops, retry=False) as pipeline:
        (error,) = await outcomes(pipeline, "kill")
        assert type(error) is BackendError
        assert [what for _, what in runs(ops)] == ["['kill']"]


async def test_other_pipelines_go_on_while_a_child_computes(ops: Path) -> None:
    async with running(ops) as busy, Pipeline.load("Identity") as other:
        task = asyncio.create_task(busy({"data": "nap"}))
        await until((ops / "runs").exists)
        for _ in range(20):
            await other({"data": 1})
        assert not task.done()
        (ops / "rested").touch()
        assert (await task)["result"] == "nap"


# load errors


def double(x: Any) -> Any:
    return 2 * x


def problem(source: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(source)
    return str(caught.value)


@pytest.mark.usefixtures("own_registry")
def test_a_registered_name_is_a_load_error() -> None:
    register_backend("Double", double)
    load({"work": {"backend": "S[Double,Identity]"}})
    assert problem({"work": {"backend": "S[Double,Identity]", "executor": "process"}}) == (
        "[work] executor: Double was registered in this process, so a child process can't find it: "
        "give its place, as in Python[module:Class] or Python[file.py:Class]"
    )
    assert "Double was registered" in problem(
        {"work": {"backend": "Python[Double]", "executor": "process"}}
    )


def test_main_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    monkeypatch.setattr(__main__, "double", double, raising=False)
    load({"work": {"backend": "Python[__main__:double]"}})
    assert problem({"work": {"backend": "Python[__main__:double]", "executor": "process"}}) == (
        "[work] executor: __main__:double: a child process can't import the __main__ of this one: "
        "move the class to a module or a file of its own"
    )


def test_another_executor_is_a_load_error() -> None:
    assert "input should be 'auto', 'thread', 'process' or 'loop'" in problem(
        {"work": {"backend": "Identity", "executor": "fork"}}
    )


def test_elsewhere_than_on_linux_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert (
        problem({"work": {"backend": "Identity", "executor": "process"}})
        == '[work] executor: executor = "process" needs Linux'
    )


def test_logging_is_left_alone() -> None:
    assert not logging.getLogger("penstock.process").handlers
