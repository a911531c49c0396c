"""Where the threads of an instance stay.

No machine of two memory nodes has run this: the nodes are files that the tests write.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.base import Context
from penstock.backends.engines import cores
from penstock.backends.engines.cores import Choice, choose, memory_nodes, parse_list, place
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.engines.processors import processors

from .test_onnx_shared import answers, images, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux pins threads")

LEFT, RIGHT = frozenset(range(4)), frozenset(range(4, 8))


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[set[int]], list[set[int]]]]:
    """Let threads run on processors that this machine may not have. Return where they were put."""

    def allow(processors: set[int]) -> list[set[int]]:
        put: list[set[int]] = []
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: processors)
        monkeypatch.setattr(os, "sched_setaffinity", lambda _, to: put.append(set(to)))
        return put

    before = +cores._claims
    yield allow
    assert +cores._claims == before  # each place was released


def tree(root: Path, **lists: str) -> Path:
    for name, text in lists.items():
        folder = root / "sys/devices/system/node" / name
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(text)
    return root


def tasks() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}


def on_a_thread(work: Callable[..., Any], *given: Any, **keys: Any) -> Any:
    """Return what `work` returns on a thread of its own, as an executor's."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work(*given, **keys)))
    thread.start()
    thread.join(20)
    return found[0]


def test_lists_of_the_kernel() -> None:
    assert parse_list("0-2,5,8-9\n") == {0, 1, 2, 5, 8, 9}
    assert parse_list("\n") == set()


def test_memory_nodes(tmp_path: Path, allowed: Any) -> None:
    allowed(set(range(6)))
    assert memory_nodes(tmp_path) == [set(range(6))]  # the system names none
    two = tree(tmp_path / "two", node0="0-3\n", node1="4-7\n", node2="\n")
    assert memory_nodes(two) == [{0, 1, 2, 3}, {4, 5}]  # of those that the process may run on
    assert memory_nodes(tree(tmp_path / "part", node0="0-3")) == [set(range(6))]
    assert memory_nodes(tree(tmp_path / "odd", node0="all")) == [set(range(6))]


@pytest.mark.parametrize(
    ("claims", "threads", "pins", "expected"),
    [
        ({}, 4, False, (LEFT, LEFT)),
        ({0: 1}, 4, False, (RIGHT, RIGHT)),
        ({0: 1, 4: 1, 5: 1}, 2, False, (LEFT, LEFT)),
        ({}, 8, False, (LEFT | RIGHT, None)),
        ({}, 2, True, ({0, 1}, LEFT)),
        ({0: 1, 1: 1}, 2, True, ({2, 3}, LEFT)),
        ({0: 1, 1: 1, 2: 1}, 2, True, ({4, 5}, RIGHT)),
        ({0: 1, 1: 1, 2: 1}, 5, True, ({3, 4, 5, 6, 7}, None)),
    ],
)
def test_the_processors_with_the_fewest_claims(
    claims: dict[int, int], threads: int, pins: bool, expected: Any
) -> None:
    assert choose([LEFT, RIGHT], claims, threads, pins=pins) == Choice(*expected)


def test_instances_take_the_memory_nodes_in_turn(
    allowed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = allowed(set(range(8)))
    monkeypatch.setattr(cores, "memory_nodes", lambda: [LEFT, RIGHT])

    def start(instance: int) -> Any:
        context = Context(node="n", instance=instance, instances=4)
        return place(context, 2, pins=False, engine="OnnxTensor")

    places = [on_a_thread(start, number) for number in range(4)]
    assert [placed.node for placed in places] == [LEFT, RIGHT, LEFT, RIGHT]
    assert put == [LEFT, RIGHT, LEFT, RIGHT]
    places[0].release()
    again = on_a_thread(start, 0)  # an instance that is started again
    assert again.node == LEFT
    for placed in (*places[1:], again):
        placed.release()


def test_children_choose_as_if_they_knew_each_other(allowed: Any) -> None:
    put = allowed(set(range(8)))
    for instance in range(3):  # each in a process of its own
        context = Context(node="n", instance=instance, instances=4, alone=True)
        placed = on_a_thread(place, context, 2, pins=True, engine="OnnxTensor")
        placed.release()
    assert put == [{0, 1}, {2, 3}, {4, 5}]


def test_a_placed_thread_counts_the_processors_of_the_process(allowed: Any) -> None:
    put = allowed({0, 1})

    def work() -> list[int]:
        context = Context(node="n", instances=2)
        placed = place(context, 1, pins=True, engine="OnnxTensor")
        inner = place(context, 1, pins=True, engine="OnnxTensor")  # another engine of the node
        inside = processors()
        inner.release()
        placed.release()
        return [inside, processors()]

    assert on_a_thread(work) == [2, 2]
    assert put == [{0}, {0, 1}]


@pytest.mark.parametrize(
    ("context", "threads", "quota", "reason"),
    [
        ({"instances": 4}, 1, None, "have 4 threads, and the process may use 2 processors"),
        ({"instances": 1}, 1, 0.5, "the process has a quota of 0.5 processors, and none of its"),
        ({"instances": 1, "opens_only": True}, 1, None, ""),
    ],
)
def test_threads_stay_where_they_are(
    context: Any, threads: int, quota: Any, reason: str, allowed: Any, monkeypatch: Any, caplog: Any
) -> None:
    put = allowed({0, 1})
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    placed = place(Context(node="n", **context), threads, pins=True, engine="OnnxTensor")
    assert placed.node is None and put == []
    assert caplog.text.count("n: OnnxTensor: pin_cores is left out: ") == bool(reason)
    assert reason in caplog.text


def test_a_system_that_refuses(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    placed = place(Context(node="n"), 1, pins=True, engine="OnnxTensor")
    placed.release()
    assert "a thread can't be kept on processors of its own: [Errno 22]" in caplog.text


# Real threads


needs_two = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two processors"
)


@needs_two
def test_pinned_instances_run_on_processors_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    path, given = write(tmp_path / "net.onnx"), images(1)
    usual = os.sched_getaffinity(0)
    found: list[Any] = []

    def work(instance: int, ready: threading.Barrier) -> None:
        backend = OnnxTensor()
        params = OnnxParams.model_validate({"model": str(path), "pin_cores": True, "threads": 1})
        backend.init(params, Context(node="n", instance=instance, instances=2))
        answer = answers(backend, given)
        ready.wait(20)  # both are placed
        pinned = os.sched_getaffinity(0)
        backend.close()
        found.append((pinned, answer, os.sched_getaffinity(0)))

    ready = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(number, ready)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    (first, one, after), (second, other, _) = found
    assert len(first) == len(second) == 1 and first != second
    assert one == other and after == usual


@needs_two
def test_threads_of_the_engine_stay_with_the_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(cores, "choose", lambda *_, **__: Choice(frozenset({core}), None))
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    path = write(tmp_path / "net.onnx")

    def work() -> list[set[int]]:
        before = tasks()
        backend = OnnxTensor()
        params = OnnxParams.model_validate({"model": str(path), "pin_cores": True, "threads": 2})
        backend.init(params, Context(node="n", instances=1))
        started = tasks() - before
        masks = [os.sched_getaffinity(number) for number in started]
        backend.close()
        return masks

    masks = on_a_thread(work)
    assert masks and all(mask == {core} for mask in masks)


@needs_two
def test_sessions_are_shared_within_a_memory_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = [frozenset({core}) for core in sorted(os.sched_getaffinity(0))[:2]]
    monkeypatch.setattr(cores, "memory_nodes", lambda: [left, right])
    path = write(tmp_path / "net.onnx")
    backends: list[Any] = []

    def work(instance: int) -> None:
        backend = OnnxTensor()
        params = OnnxParams.model_validate({"model": str(path), "threads": 1})
        backend.init(params, Context(node="n", instance=instance, instances=4))
        backends.append(backend)

    for number in range(4):
        on_a_thread(work, number)
    sessions = [id(backend.model.session) for backend in backends]
    assert sessions[0] == sessions[2] != sessions[1] == sessions[3]
    for backend in backends:
        backend.close()
