"""Execution contexts: each profile its own, made one at a time, and what TensorRT refuses."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from weakref import ref

import pytest
import torch

from penstock.backends.engines.tensorrt.execution import Execution
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.engines.tensorrt.loaded import LoadedEngine
from penstock.backends.errors import BackendError, DeviceError
from penstock.backends.item import Item

from .stand_in import pair, ranges


def test_every_profile_has_a_context_of_its_own_made_once(
    make: Any, two: Path, fake_two: Any
) -> None:
    backend = make(two, max="4", batched=True)
    for rows in (1, 2, 3, 4, 2, 1):
        backend.forward([{"data": pair(rows, rows), "request_size": rows}])
    runs = {
        context.profile: [shapes[0][0] for shapes in context.runs]
        for context in fake_two.engine.contexts
    }
    assert runs == {0: [1, 1], 1: [2, 2], 2: [3, 4]}


def test_instances_share_the_engine_and_each_has_its_contexts(
    make: Any, two: Path, fake_two: Any
) -> None:
    first, second = make(two, max="4", batched=True), make(two, max="4", batched=True)
    assert len(fake_two.plans) == 1
    for backend in (first, second):
        backend.forward([{"data": pair(1)}])
    assert [context.profile for context in fake_two.engine.contexts] == [0, 0]
    loaded = ref(first.children[0].model._loaded)
    first.close()
    assert loaded() is not None
    second.forward([{"data": pair(2)}])
    second.close()
    assert loaded() is None


def test_a_context_of_a_captured_graph_runs_nothing_else(
    library: Library, fake_two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = Execution(
        library, LoadedEngine(fake_two.engine, None), "net", torch.device("cpu"), 7
    )
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    execution(*pair(1))
    capturing = True
    execution(*pair(2))
    capturing = False
    execution(*pair(3))
    execution(*pair(4))
    assert [len(context.runs) for context in fake_two.engine.contexts] == [2, 2]


TWO = ("FLOAT", (-1, 3))


@pytest.fixture
def twin(fake: Any) -> Any:
    """An engine of TensorRT 8, where a profile has one context, with two profiles for 4 rows."""
    runtime = fake({"a": TWO, "b": TWO}, {"sum": TWO}, ranges(4, 4), lambda a, b: (a + b,))
    runtime.engine.one_context_a_profile = True
    return runtime.engine


def instances(count: int, make: Any, path: Path, **params: Any) -> list[Any]:
    contexts = [{"instance": index, "instances": count} for index in range(count)]
    return [make(path, context, batched=True, **params) for context in contexts]


def test_instances_take_other_profiles_where_each_has_one_context(
    make: Any, two: Path, twin: Any
) -> None:
    first, second = instances(2, make, two, max="4;4")
    for rows in (1, 2, 4, 3):
        for backend in (first, second):
            a, b = pair(rows, rows)
            item: Item = {"data": [a, b], "request_size": rows}
            backend.forward([item])
            assert torch.equal(item["result"], a + b)
    assert [context.active for context in twin.live] in ([0, 1], [1, 0])


def test_a_profile_is_free_again_when_its_instance_is_closed(
    make: Any, two: Path, twin: Any
) -> None:
    first, second, third = instances(3, make, two, max="4;4")
    for backend in (first, second):
        backend.forward([{"data": pair(1)}])
    with pytest.raises(BackendError):
        third.forward([{"data": pair(1)}])
    second.close()
    third.forward([{"data": pair(1)}])
    assert len(twin.live) == 2


def test_an_instance_without_a_profile_is_told_what_to_do(
    make: Any, two: Path, twin: Any, library: Library
) -> None:
    first, second, third = instances(3, make, two, max="4;4")
    for backend in (first, second):
        backend.forward([{"data": pair(1)}])
    for _ in range(2):  # asked once or twice, the answer is the same
        with pytest.raises(BackendError) as caught:
            third.warm_up()
        assert type(caught.value) is BackendError
        assert str(caught.value) == (
            f"node 'net': TensorrtTensor: {two}: instance 2 has no profile for a batch of 4: this "
            f"{library.name} {library.version} gives a profile to one execution context, and "
            "profile 0 (a 1x3 to 4x3, b 1x3 to 4x3) is held by instance 0 of node 'net', 1 (a 1x3 "
            "to 4x3, b 1x3 to 4x3) is held by instance 1 of node 'net'. Use TensorRT 10 or later, "
            "whose contexts share profiles; or instance_num = 1; or as many profiles as instances "
            '(max = "4;4;4")'
        )
        del caught
    assert len(twin.live) == 2, "the refused context is freed"
    first.forward([{"data": pair(1)}])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Error Code 3: API Usage Error (no)", BackendError),
        ("Error Code 2: OutOfMemory (Requested size was 12 bytes.)", MemoryError),
        ("Error Code 1: Cuda Runtime (cudaError 700)", DeviceError),
    ],
)
def test_a_refused_profile_leaves_nothing_half_made(
    make: Any, two: Path, fake_two: Any, message: str, error: Any
) -> None:
    engine = fake_two.engine
    backend = make(two, max="4", batched=True)
    engine.refusing = message
    with pytest.raises(error) as caught:
        backend.forward([{"data": pair(1)}])
    assert "instance 0 can't take profile 0" in str(caught.value)
    assert message in str(caught.value) and not engine.live, "freed while the error is alive"
    engine.refusing = ""
    a, b = pair(1)
    item: Item = {"data": [a, b]}
    backend.forward([item])
    assert torch.equal(item["result"][0], a + b) and len(engine.live) == 1


def test_contexts_are_made_one_at_a_time(make: Any, two: Path, fake_two: Any) -> None:
    """TensorRT 8 ended the process when two threads chose profiles of one engine at once."""
    engine = fake_two.engine
    backends = instances(2, make, two, max="4")
    engine.meeting = Barrier(2, timeout=0.3)
    threads = [Thread(target=backend.forward, args=([{"data": pair(1)}],)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not engine.overlapped and [context.profile for context in engine.contexts] == [0, 0]


def test_graphs_are_given_up_where_they_keep_the_only_context_of_a_profile(
    make: Any,
    two: Path,
    twin: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other profile is left to the other instance."""
    backend, other = instances(2, make, two, max="4;4")
    engine = backend.children[0]
    monkeypatch.setattr(engine.model, "_stream", 7)
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    backend.forward([{"data": pair(1)}])
    capturing = False
    assert engine.can_capture
    for rows in (2, 1):
        a, b = pair(rows, rows)
        item: Item = {"data": [a, b], "request_size": rows}
        backend.forward([item])
        assert torch.equal(item["result"], a + b)
    assert [context.active for context in twin.live] == [0] and not engine.can_capture
    assert caplog.text.count("runs without CUDA graphs") == 1
    other.forward([{"data": pair(1)}])


def test_an_engine_of_fixed_shapes_chooses_no_profile(make: Any, two: Path, fake: Any) -> None:
    """Its instances share the one that TensorRT makes by itself, also in TensorRT 8."""
    tensor = ("FLOAT", (4, 3))
    runtime = fake({"a": tensor, "b": tensor}, {"sum": tensor}, [{}], lambda a, b: (a + b,))
    runtime.engine.one_context_a_profile = True
    for backend in instances(2, make, two, max="4"):
        a, b = pair(1, 4)
        item: Item = {"data": [a, b], "request_size": 4}
        backend.forward([item])
        assert torch.equal(item["result"], a + b)
    assert [context.profile for context in runtime.engine.contexts] == [None, None]
