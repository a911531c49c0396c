"""The life of a pipe: closing, losing its last reference, forks, interrupts, the end of the
interpreter.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

from penstock.backends.base import Backend
from penstock.backends.errors import BackendError, NotReady
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.blocking.pipe import Pipe, pipe

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

BOUND = 20.0


class Held:
    """Data that holds its executor until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()


class Hold(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            if isinstance(item["data"], Held):
                item["data"].entered.set()
                assert item["data"].opened.wait(BOUND)
            item["result"] = "done"


@pytest.fixture(autouse=True)
def hold(own_registry: None) -> None:
    register_backend("Hold", Hold)


class Caller(threading.Thread):
    """Calls a pipe on a thread of its own, and keeps the item's result or the exception."""

    def __init__(self, p: Pipe, item: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.pipe = p
        self.item = item
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.pipe(self.item)
            self.answer = self.item["result"]
        except BaseException as error:
            self.answer = error
        del self.pipe

    def outcome(self) -> Any:
        self.join(BOUND)
        assert not self.is_alive()
        return self.answer


def until(condition: Callable[[], object]) -> None:
    """Wait until another thread has brought something about."""
    pause = threading.Event()
    for _ in range(int(BOUND / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not happen")


def threads_left() -> list[str]:
    """Return the names of the threads of the pipe `forgotten`."""
    return sorted(thread.name for thread in threading.enumerate() if "forgotten" in thread.name)


# close


def test_close_ends_the_threads_and_may_be_called_again() -> None:
    before = set(threading.enumerate())
    p = pipe({"backend": "Hold", "instance_num": 2}, name="closing")
    assert {thread.name for thread in set(threading.enumerate()) - before} == {
        "penstock:closing",
        "closing/main#0",
        "closing/main#1",
    }
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)
    p.close()
    assert set(threading.enumerate()) == before
    p.close()
    with p:
        pass
    item = {"data": 1, "result": "stale"}
    with pytest.raises(NotReady, match="pipeline 'closing' is closed"):
        p(item)
    assert item == {"data": 1}
    assert repr(p) == "<pipe closing: closed, 0 active, 0 queued>"


def test_close_lets_work_end_and_fails_what_waits() -> None:
    p = pipe({"a": {"backend": "Hold", "max": 1, "next": "b"}, "b": {"backend": "Hold"}})
    held = Held()
    running = Caller(p, {"data": held})
    assert held.entered.wait(BOUND)
    queued = Caller(p, {"data": 1, "result": "stale"})
    until(lambda: p._runner.pipeline.nodes[0].scheduler.queued == 1)
    closers = [threading.Thread(target=p.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    assert isinstance(queued.outcome(), NotReady)
    assert queued.item == {"data": 1}
    with pytest.raises(NotReady):
        p({"data": 1})
    assert all(closer.is_alive() for closer in closers)
    held.opened.set()
    assert running.outcome() == "done"  # through the second node, too
    for closer in closers:
        closer.join(BOUND)


def test_close_does_not_wait_longer_than_its_timeout(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    p = pipe("Hold", name="stuck")
    running = Caller(p, {"data": held})
    assert held.entered.wait(BOUND)
    executor = next(thread for thread in threading.enumerate() if thread.name == "stuck/main#0")
    with caplog.at_level(logging.WARNING, "penstock.node"):
        p.close(timeout=0.01)
    assert "stuck/main#0 did not stop within 1 s and is left running" in caplog.text
    assert isinstance(running.outcome(), NotReady)
    held.opened.set()
    executor.join(BOUND)


def test_a_pipe_that_can_not_be_loaded_leaves_no_threads() -> None:
    class Broken(Backend):
        def init(self, params: Any, context: Any) -> None:
            raise FileNotFoundError("no such model")

    register_backend("Broken", Broken)
    before = set(threading.enumerate())
    with pytest.raises(BackendError, match="FileNotFoundError: no such model"):
        pipe({"a": {"backend": "Hold", "next": "b"}, "b": {"backend": "Broken"}})
    until(lambda: set(threading.enumerate()) == before)


def test_a_loop_that_dies_fails_its_calls(caplog: pytest.LogCaptureFixture) -> None:
    p = pipe("Hold", name="dying")
    held = Held()
    running = Caller(p, {"data": held})
    assert held.entered.wait(BOUND)

    def die() -> None:
        raise SystemExit("for the test")

    p._runner.loop.call_soon_threadsafe(die)
    assert isinstance(running.outcome(), NotReady)
    assert "pipe dying: its loop died" in caplog.text
    with pytest.raises(NotReady):
        p({"data": 1})
    executor = next(thread for thread in threading.enumerate() if thread.name == "dying/main#0")
    p._runner.pipeline.nodes[0].executors[0].stop()
    held.opened.set()
    executor.join(BOUND)
    p.close()


# without references


def test_an_unclosed_pipe_ends_with_its_last_reference() -> None:
    p = pipe("Hold", name="forgotten")
    item = {"data": 1}
    p(item)
    assert threads_left() == ["forgotten/main#0", "penstock:forgotten"]
    with pytest.warns(
        ResourceWarning,
        match=r"unclosed <pipe forgotten: ready, 0 active, 0 queued>: call close\(\)",
    ):
        del p
    until(lambda: not threads_left())


def test_a_pipe_in_a_cycle_ends_with_the_collector() -> None:
    p = pipe("Hold", name="forgotten")
    cycle: list[Any] = [p]
    cycle.append(cycle)
    del p
    with pytest.warns(ResourceWarning, match="unclosed"):
        del cycle
        gc.collect()
    until(lambda: not threads_left())


def test_a_closed_pipe_gives_no_warning() -> None:
    p = pipe("Hold", name="forgotten")
    p.close()
    del p
    gc.collect()
    assert not threads_left()


# processes of their own

PREAMBLE = """
import os, signal, sys, threading, time, warnings
import penstock as tp
from penstock.backends.errors import BackendError, NotReady

hold = threading.Event()
entered = threading.Event()

@tp.register_backend("Work")
class Work(tp.Backend):
    def forward(self, batch):
        for item in batch:
            if item["data"] == "hold":
                entered.set()
                hold.wait(60)  # longer than any script may take
            item["result"] = "done"

def call(p, data=1):
    item = {"data": data}
    p(item)
    return item["result"]
"""


def script(text: str, timeout: float = 55.0) -> tuple[int, str, str]:
    """Run a script with warnings as errors. Return its exit status, its stdout and its stderr."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore:This process:DeprecationWarning",
        "-c",
        PREAMBLE + textwrap.dedent(text),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_after_a_fork_the_child_gets_a_clear_error_and_the_parent_goes_on() -> None:
    status, out, err = script("""
        p = tp.pipe("Work", name="forked")
        assert call(p) == "done"
        event = tp.Event()
        p({"data": 1, "event": event})
        busy = threading.Thread(target=lambda: [call(p) for _ in range(300)])
        busy.start()
        child = os.fork()
        if child == 0:
            for use in (
                lambda: call(p),
                lambda: p({"data": 1, "event": tp.Event()}),
                lambda: p([{"data": 1}]),
            ):
                try:
                    use()
                except RuntimeError as error:
                    text = str(error)
                    parts = ("forked", "fork of it", "in the child")
                    assert all(part in text for part in parts), text
                else:
                    os._exit(1)
            p.close()
            with tp.pipe("Work") as own:  # the child may make one
                assert call(own) == "done"
            del p
            print("child", flush=True)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        busy.join()
        event.Wait()
        assert call(p) == "done"
        p.close()
        print("parent")
    """)
    assert (status, out, err) == (0, "child\nparent\n", "")


def test_a_forked_child_that_never_touches_the_pipe_ends_in_silence() -> None:
    status, out, err = script("""
        p = tp.pipe("Work")
        child = os.fork()
        if child == 0:
            del p
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert call(p) == "done"
        print("parent")
        p.close()
    """)
    assert (status, out, err) == (0, "parent\n", "")


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "p.close()",
        "sys.exit(0)",
        "del p",
        "p.again = p; del p",
        "q = [p]; q.append(q); del p, q",
    ],
)
def test_the_interpreter_ends(ending: str) -> None:
    """The pipe may be closed or not. One that loses its last reference before the end warns, and
    nothing else is printed.
    """
    status, out, err = script(f"""
        p = tp.pipe("Work")
        print(call(p))
        {ending}
    """)
    assert (status, out) == (0, "done\n")
    if ending == "del p":
        assert (
            "ResourceWarning: unclosed <pipe" in err
            and "Traceback" not in err.split("ResourceWarning")[1]
        )
    elif ending in ("", "p.close()", "sys.exit(0)"):
        assert err == ""


def test_the_interpreter_ends_after_an_error() -> None:
    status, _, err = script("""
        p = tp.pipe("Work")
        1 / 0
    """)
    assert status == 1
    assert err.count("Traceback") == 1 and err.endswith("ZeroDivisionError: division by zero\n")


def test_the_interpreter_ends_while_daemons_call() -> None:
    status, out, err = script("""
        p = tp.pipe({"backend": "Work", "max": 1})
        def forever():
            while True:
                call(p)
        for _ in range(4):
            threading.Thread(target=forever, daemon=True).start()
        threading.Thread(target=call, args=(p, "hold"), daemon=True).start()
        entered.wait(10)
        p({"data": 1, "event": tp.Event()})
        threading.Timer(0.2, hold.set).start()
        print("end")
    """)
    assert (status, out, err) == (0, "end\n", "")


def test_a_running_batch_ends_and_its_backend_is_closed_at_the_end() -> None:
    """Native code on a daemon thread may crash while the interpreter is finalized."""
    status, out, err = script("""
        @tp.register_backend("Slow")
        class Slow(tp.Backend):
            def forward(self, batch):
                entered.set()
                hold.wait(0.3)
                print("ran")
            def close(self):
                print("closed")
        p = tp.pipe("Slow")
        p({"data": 1, "event": tp.Event()})
        entered.wait(10)
    """)
    assert (status, out, err) == (0, "ran\nclosed\n", "")


def test_threads_that_are_not_daemons_get_their_answers_first() -> None:
    status, out, err = script("""
        p = tp.pipe("Work")
        def late():
            hold.wait(10)
            print(call(p))
        threading.Thread(target=late).start()
        threading.Timer(0.2, hold.set).start()
    """)
    assert (status, out, err) == (0, "done\n", "")


def test_an_interrupt_cancels_the_waiting_call() -> None:
    status, out, err = script("""
        with tp.pipe({"backend": "Work", "max": 1}) as p:
            inside = lambda: p._runner.pipeline.in_flight
            threading.Thread(target=call, args=(p, "hold"), daemon=True).start()
            entered.wait(10)
            def interrupt():
                while p._runner.pipeline.nodes[0].scheduler.queued < 3:
                    time.sleep(0.001)
                os.kill(os.getpid(), signal.SIGINT)
            for items in [{"data": 1, "result": "stale"}] * 3, :
                threading.Thread(target=interrupt).start()
                items = [dict(item) for item in items]
                try:
                    p(items)
                except KeyboardInterrupt:
                    print("interrupted", items)
                while inside() > 1:
                    time.sleep(0.001)
                print(p)
            hold.set()
            print(call(p))
    """)
    item = "{'data': 1}"
    expected = (
        f"interrupted [{item}, {item}, {item}]\n<pipe pipeline: ready, 1 active, 0 queued>\ndone\n"
    )
    assert (status, out, err) == (0, expected, "")


def test_an_interrupt_while_loading_ends_the_threads() -> None:
    status, out, err = script("""
        @tp.register_backend("Slow")
        class Slow(tp.Backend):
            def init(self, params, context):
                os.kill(os.getpid(), signal.SIGINT)
                hold.wait(10)
        try:
            tp.pipe("Slow")
        except KeyboardInterrupt:
            print("interrupted")
        hold.set()
        while threading.active_count() > 1:
            time.sleep(0.001)
    """)
    assert (status, out, err) == (0, "interrupted\n", "")


def test_an_interrupt_of_wait_leaves_the_work_alone() -> None:
    status, out, err = script("""
        with tp.pipe("Work") as p:
            event = tp.Event()
            item = {"data": "hold", "event": event}
            p(item)
            entered.wait(10)
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                event.Wait()
            except KeyboardInterrupt:
                hold.set()
                event.Wait()
                print(item["result"])
    """)
    assert (status, out, err) == (0, "done\n", "")
