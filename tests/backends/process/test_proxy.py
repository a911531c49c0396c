"""The proxy and its child: start, work, death, end, and nothing left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.errors import DeviceError, InvalidInput, TooLarge, code_and_status
from penstock.backends.expressions import filters
from penstock.backends.expressions.filters import register_filter
from penstock.backends.expressions.registry import find_backend
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.backends.model_metrics import model_metrics
from penstock.backends.process import proxy as process
from penstock.backends.process.failure import Failure, ProcessDiedError, RestartError
from penstock.backends.process.proxy import (
    ProcessBackend,
    obstacles,
)

OPS = """
import logging, os, signal, subprocess, sys, threading, time
from functools import partial
from pathlib import Path
from penstock.backends.base import Backend
from penstock.backends.errors import DeviceError, InvalidInput, TooLarge, code_and_status
from penstock.backends.model_metrics import apply

HERE = Path(__file__).parent

class Echo(Backend):
    parameters = None
    max = 5

    def init(self, params, context):
        self.params, self.context = params, context
        if (HERE / "refuse").exists():
            raise ValueError("refused to load")
        if (HERE / "leave").exists():
            os._exit(3)
        if (HERE / "sys.exit").exists():
            sys.exit(4)
        if (HERE / "wait").exists():
            time.sleep(60)

    def forward(self, batch):
        for item in batch:
            data = item["data"]
            match data if isinstance(data, str) else "":
                case "kill": os.kill(os.getpid(), signal.SIGKILL)
                case "exit": os._exit(5)
                case "sys.exit": sys.exit(6)
                case "abort": os.abort()
                case "sleep": time.sleep(60)
                case "hog":
                    while True: pass
                case "invalid": raise InvalidInput("not readable")
                case "large": raise TooLarge("too large")
                case "device": raise DeviceError("lost")
                case "memory": raise MemoryError
                case "soft": item["error"] = InvalidInput("soft")
                case "unknown": item["result"] = type("Local", (), {})()
                case "fork":  # a grandchild that outlives the child
                    grandchild = subprocess.Popen(["sleep", "60"], close_fds=False)
                    (HERE / "grandchild").write_text(str(grandchild.pid))
                    os._exit(0)
                case "metric":  # it dies before it is told that the metric is there
                    arguments = "declare", f"process {os.getpid()}/0", "of_the_dead", "counter", ""
                    declare = partial(self.context.server.run, apply, *arguments)
                    threading.Thread(target=declare, daemon=True).start()
                    time.sleep(60)
                case "log":
                    logging.getLogger("penstock.ops").info("a log line")
                    try:
                        raise ValueError("why\\nCRITICAL forged")
                    except ValueError:
                        logging.getLogger("ops").exception("%s", "bad\\nCRITICAL forged\\x1b[0m")
                    print("a print")
                case "facts":
                    item["result"] = {
                        "pid": os.getpid(), "params": self.params, "context": self.context,
                        "threads": os.environ["OMP_NUM_THREADS"],
                        "path": sys.path, "PYTHONPATH": os.environ.get("PYTHONPATH"),
                        "group": os.getpgid(0), "session": os.getsid(0), "nice": os.nice(0),
                        "fds": len(os.listdir("/proc/self/fd")),
                    }
                case _: item["result"] = data

    def close(self):
        (HERE / "closed").write_text(str(os.getpid()))
        if (HERE / "hang").exists():
            time.sleep(60)
"""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def gone(pid: int) -> bool:
    """Return whether the process is gone, also as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    fds, threads, processes = descriptors(), set(threading.enumerate()), children()
    yield
    assert descriptors() == fds
    assert set(threading.enumerate()) <= threads  # one of an earlier test may end meanwhile
    assert children() == processes


def children() -> set[str]:
    """Return the ids of our child processes, dead or alive."""
    pids: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            pids.update((task / "children").read_text().split())
    return pids


@pytest.fixture
def ops(tmp_path: Path) -> Path:
    (tmp_path / "ops.py").write_text(OPS)
    return tmp_path


def proxy(ops: Path, params: dict[str, Any] | None = None) -> ProcessBackend:
    return ProcessBackend(Spec("ops.py:Echo", Backend, params or {}))


def context(ops: Path) -> Context:
    return Context("pipeline", "node", ops, max=4)


@pytest.fixture
def echo(ops: Path) -> Iterator[ProcessBackend]:
    backend = proxy(ops, {"key": [1, "x"]})
    backend.create(context(ops))
    yield backend
    backend.close()


def run(backend: Backend, *data: Any) -> list[Any]:
    batch: list[Item] = [{"data": value} for value in data]
    backend.forward(batch)
    return [item.get("result", item.get("error")) for item in batch]


def test_a_batch_there_and_back(echo: ProcessBackend) -> None:
    assert (echo.min, echo.max) == (1, 5)
    image = np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), np.uint8)
    received, text, nothing = run(echo, image, "text", None)
    assert (text, nothing) == ("text", None)
    assert received.flags.owndata and np.array_equal(received, image)
    item: Item = {"data": image, "kept": 1}
    echo.forward([item])
    assert item["data"] is image and item["kept"] == 1
    run(echo, image[:10])
    assert np.array_equal(received, image)  # memory of its own, not a buffer


def test_the_surroundings_of_the_child(
    echo: ProcessBackend, ops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (facts,) = run(echo, "facts")
    assert facts["pid"] == echo.pid != os.getpid()
    assert facts["group"] == echo.pid  # Ctrl-C in a terminal does not reach it
    # The event loop goes first if both want a processor. Linux may compare nice values within a
    # session only (autogroup), so the child has to be in ours.
    assert (facts["nice"], facts["session"]) == (min(19, os.nice(0) + 10), os.getsid(0))
    assert facts["params"] == {"key": [1, "x"]}
    assert facts["context"] == replace(context(ops), alone=True)
    assert facts["threads"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert facts["PYTHONPATH"] == os.environ.get("PYTHONPATH")
    # Nothing more, and nothing else first.
    assert facts["path"] == list(dict.fromkeys(entry or str(Path.cwd()) for entry in sys.path))


def test_failures_keep_their_class(echo: ProcessBackend) -> None:
    for data, kind, text in [
        ("invalid", InvalidInput, "not readable"),
        ("large", TooLarge, "too large"),
        ("device", DeviceError, "lost"),
        ("memory", MemoryError, "in process"),
        ("unknown", Exception, "Can't pickle|Can't get"),
    ]:
        with pytest.raises(kind, match=text) as caught:
            run(echo, data)
        assert type(caught.value) is kind or data == "unknown"
        assert caught.value.penstock_backend == "Echo"  # type: ignore[attr-defined]
    soft, fine = run(echo, "soft", "fine")
    assert (
        type(soft).__name__ == "InvalidInput"
        and isinstance(soft, InvalidInput)
        and str(soft) == "soft"
    )
    assert fine == "fine"


@pytest.mark.parametrize(
    ("data", "how"),
    [
        ("kill", "was killed by SIGKILL"),
        ("exit", "exited with code 5"),
        ("abort", "was killed by SIGABRT"),
    ],
)
def test_a_child_that_dies_is_replaced(
    echo: ProcessBackend, data: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    restarts = []
    echo.on_restart = lambda: restarts.append(echo.ready)
    first, fds = echo.pid, descriptors()
    with pytest.raises(ProcessDiedError, match=f"process {first} .*{how}") as caught:
        run(echo, data)
    assert caught.value.penstock_backend == "Backend"  # type: ignore[attr-defined]
    assert restarts == [False] and echo.ready
    assert run(echo, "next") == ["next"]
    assert echo.pid != first and gone(first or 0)
    assert descriptors() == fds
    assert how in caplog.text and "node node" in caplog.text


def test_a_child_survives_what_its_backend_raises(echo: ProcessBackend) -> None:
    pid = echo.pid
    with pytest.raises(SystemExit, match="6"):
        run(echo, "sys.exit")
    assert run(echo, "next") == ["next"]
    assert echo.pid == pid


def test_a_child_that_died_between_two_batches_costs_none(echo: ProcessBackend) -> None:
    first = echo.pid or 0
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: gone(first))
    wait_until(lambda: echo._child is not None and echo._child.exited)
    assert run(echo, "innocent") == ["innocent"]
    assert echo.pid != first
    echo.revive()
    assert run(echo, "again") == ["again"]


def test_on_exit_is_called(ops: Path) -> None:
    exits = threading.Event()
    backend = proxy(ops)
    backend.on_exit = exits.set
    backend.create(context(ops))
    os.kill(backend.pid or 0, signal.SIGKILL)
    assert exits.wait(20)
    backend.close()


class SlowConnection:
    """A connection that runs what a child asks for when the child has gone."""

    def __init__(self) -> None:
        self.asked, self.may_run = threading.Event(), threading.Event()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.asked.set()
        assert self.may_run.wait(60)
        return function(*arguments)

    def close(self) -> None: ...


def test_no_metric_of_a_child_outlives_it(ops: Path) -> None:
    """Not even one that it asked for as its last act."""
    connection: Any = SlowConnection()
    backend = ProcessBackend(Spec("ops.py:Echo", Backend, {}), connect=lambda _: connection)
    backend.on_exit = connection.may_run.set
    backend.create(context(ops))

    def run_batch() -> None:
        with suppress(ProcessDiedError):
            run(backend, "metric")

    batch = threading.Thread(target=run_batch)
    batch.start()
    assert connection.asked.wait(60)
    backend.kill()
    batch.join()
    backend.close()
    assert [family.name for family in model_metrics.shown()] == []


def test_a_child_that_can_not_be_replaced_ends_the_thread(echo: ProcessBackend, ops: Path) -> None:
    (ops / "refuse").touch()
    with pytest.raises(
        RestartError,
        match="was killed by SIGKILL, and can't be started again: ValueError: refused to load",
    ):
        run(echo, "kill")
    assert not echo.ready
    assert not issubclass(RestartError, Exception)


def test_a_grandchild_that_lives_on_does_not_delay_the_answer(
    echo: ProcessBackend, ops: Path
) -> None:
    with pytest.raises(ProcessDiedError, match="exited with code 0"):
        run(echo, "fork")
    grandchild = int((ops / "grandchild").read_text())
    assert not gone(grandchild)
    os.kill(grandchild, signal.SIGKILL)


@pytest.mark.parametrize(
    ("file", "kind", "text"),
    [
        ("refuse", ValueError, "refused to load"),
        ("sys.exit", SystemExit, "4"),
        ("leave", ProcessDiedError, "exited with code 3 while it loaded"),
    ],
)
def test_a_child_that_does_not_load(
    ops: Path, file: str, kind: type[BaseException], text: str
) -> None:
    (ops / file).touch()
    with pytest.raises(kind, match=text):
        proxy(ops).create(context(ops))
    assert file == "leave" or (ops / "closed").exists()


def test_a_batch_that_can_not_be_sent_fails_alone(echo: ProcessBackend) -> None:
    pid = echo.pid
    with pytest.raises(TypeError, match="cannot pickle"):
        run(echo, "fine", threading.Lock())
    assert run(echo, "fine") == ["fine"]
    assert echo.pid == pid


def test_close_closes_the_backend_and_waits_for_it(ops: Path) -> None:
    backend = proxy(ops)
    backend.create(context(ops))
    pid = backend.pid or 0
    backend.close()
    assert (ops / "closed").read_text() == str(pid)
    assert gone(pid)
    backend.close()
    with pytest.raises(ProcessDiedError):
        run(backend, 1)


def test_close_has_a_time_limit(ops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_SECONDS", 0.2)
    backend = proxy(ops)
    backend.create(context(ops))
    (ops / "hang").touch()
    pid = backend.pid or 0
    started = time.monotonic()
    backend.close()
    assert gone(pid)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("data", ["sleep", "hog"])
def test_kill_ends_the_running_child_and_starts_no_other(echo: ProcessBackend, data: str) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            run(echo, data)
        except BaseException as error:
            errors.append(error)

    first = echo.pid or 0
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    echo.kill()
    thread.join(20)
    assert [type(error) for error in errors] == [ProcessDiedError]
    assert gone(first) and echo.pid is None
    with pytest.raises(ProcessDiedError):
        run(echo, 1)


def test_kill_while_it_loads(ops: Path) -> None:
    (ops / "wait").touch()
    backend = proxy(ops)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            backend.create(context(ops))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: backend.pid is not None)
    backend.kill()
    thread.join(20)
    assert [type(error) for error in errors] == [ProcessDiedError]


def test_kill_before_it_starts(ops: Path) -> None:
    backend = proxy(ops)
    backend.kill()
    with pytest.raises(ProcessDiedError, match="SIGKILL while it loaded"):
        backend.create(context(ops))


def test_signals_to_the_whole_group_leave_it_alone(echo: ProcessBackend) -> None:
    pid = echo.pid or 0
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert run(echo, 1) == [1]
    assert echo.pid == pid


def test_descriptors_of_the_child(echo: ProcessBackend) -> None:
    (before,) = run(echo, "facts")
    run(echo, *["x"] * 5)
    read, write = os.pipe()
    os.set_inheritable(write, True)
    run_again = run(echo, "facts")[0]
    os.close(read)
    os.close(write)
    # At most the standard ones, the channel's, and that of the listing itself.
    assert before["fds"] == run_again["fds"] <= 3 + 3 + 1


PROGRAM = """
import logging, sys, time
from pathlib import Path
from penstock.backends.base import Backend, Context
from penstock.backends.process.proxy import ProcessBackend
from penstock.backends.expressions.spec import Spec

logging.basicConfig(level="INFO")
backend = ProcessBackend(Spec("ops.py:Echo", Backend, {}))
backend.create(Context("pipeline", "node", Path(sys.argv[1])))
print(backend.pid, flush=True)
backend.forward([{"data": sys.argv[2]}])
sys.stdin.read()
"""


@pytest.mark.parametrize("data", ["idle", "sleep", "hog"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_with_its_parent(ops: Path, data: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ops), data],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.1)
        assert not gone(pid)
        parent.send_signal(number)
        parent.wait(20)
        wait_until(
            lambda: gone(pid) or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
        )


def test_output_of_the_child_goes_to_stderr(ops: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(ops), "log"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    pid = done.stdout.strip()
    assert pid.isdigit()  # and nothing else
    assert f"pipeline/node#0 (process {pid}): INFO penstock.ops: a log line\n" in done.stderr
    assert "a print\n" in done.stderr
    assert f"(process {pid}): ERROR ops: bad\\nCRITICAL forged\\x1b[0m\n  | Trace" in done.stderr
    assert "\n  | ValueError: why\n  | CRITICAL forged\n" in done.stderr


def test_built_ins_and_chains(ops: Path) -> None:
    decode, chain = find_backend("DecodeMat"), find_backend("Sequential")
    assert decode.parameters is not None and chain.parameters is not None
    members = (Spec("DecodeMat", decode, decode.parameters()), Spec("ops.py:Echo", Backend, {}))
    backend = ProcessBackend(Spec("S", chain, chain.parameters(), members))
    backend.create(context(ops))
    try:
        assert backend.max == 5
        png = (Path(__file__).parents[3] / "examples" / "digits" / "digit.png").read_bytes()
        image, broken = run(backend, png, b"no image")
        assert image.shape == (8, 8, 3) and image.flags.owndata
        assert isinstance(broken, InvalidInput)
    finally:
        backend.close()


def test_a_filter_that_no_other_process_knows_is_an_obstacle(
    monkeypatch: pytest.MonkeyPatch, bound: Callable[..., Spec]
) -> None:
    monkeypatch.setattr(filters, "_registered", {})
    register_filter("mine", lambda item: filters.Status.RUN)
    (obstacle,) = obstacles(
        bound("S[Identity,(or)Identity,SyncTensor[S[Identity,(mine)Identity]]]")
    )
    assert obstacle.startswith(
        "the filter mine was registered in this process, so a child process can't find it"
    )


def test_a_status_that_is_set_on_the_exception_itself() -> None:
    error = InvalidInput("too much")
    error.status = 429
    rebuilt = Failure.of(error).rebuild("a child")
    assert isinstance(rebuilt, InvalidInput)
    assert (type(rebuilt), str(rebuilt)) == (InvalidInput, "too much")
    assert code_and_status(rebuilt) == ("invalid_input", 429)
