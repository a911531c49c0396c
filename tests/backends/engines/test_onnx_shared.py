"""Sessions of ONNX Runtime that instances share."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.base import Context
from penstock.backends.engines import onnx_mapped, onnx_shared
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError
from penstock.backends.loaded_files import LoadedFiles
from penstock.backends.shared_files import SharedFiles
from penstock.pipelines.pipeline import Pipeline


def write(
    path: Path, *, seed: int = 0, beside: str = "", classes: int = 4, filters: int = 64
) -> Path:
    """Save a convolution with its batch norm and a matrix: y, N×classes, of x, N×3×8×8."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (filters, 3, 3, 3), "m": (filters, classes)}
    shapes |= dict.fromkeys(("scale", "shift", "mean"), (filters,))
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["var"] = np.abs(weights["mean"]) + 1
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"]),
            helper.make_node("Relu", ["b"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options: Any = {"save_as_external_data": True, "size_threshold": 0, "location": beside}
    onnx.save(model, path, **(options if beside else {}))
    return path


def opened(path: Path, count: int, files: LoadedFiles | None = None, **params: Any) -> list[Any]:
    """Open the instances of one node."""
    backends = [OnnxTensor() for _ in range(count)]
    for number, backend in enumerate(backends):
        backend.init(
            OnnxParams.model_validate({"model": str(path), "max": 4, **params}),
            Context(node="n", instance=number, instances=count, files=files or LoadedFiles()),
        )
    return backends


def answers(backend: Any, images: Any) -> list[bytes]:
    items: list[Any] = [{"data": image} for image in images]
    backend.forward(items)
    return [item["result"].tobytes() for item in items]


def images(count: int) -> list[Any]:
    values = np.random.default_rng(1).normal(size=(count, 1, 3, 8, 8)).astype(np.float32)
    return list(values)


def session_of(backend: Any) -> Any:
    return backend.model.session


def test_instances_of_one_thread_run_one_session(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx")
    first, second = opened(path, 2, threads=1)
    (other_node,) = opened(path, 1, threads=1)
    (normalised,) = opened(path, 1, threads=1, mean="1,2,3")
    assert session_of(first) is session_of(second) is session_of(other_node)
    assert session_of(normalised) is not session_of(first)
    assert session_of(first).get_session_options().intra_op_num_threads == 1


def test_instances_with_pools_of_threads_have_sessions_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx")
    first, second = opened(path, 2, threads=2)
    assert session_of(first) is not session_of(second)
    both = opened(path, 2, threads=1, execution_mode="parallel")
    assert session_of(both[0]) is not session_of(both[1])


def test_as_many_instances_as_processors_share_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    first, second = opened(write(tmp_path / "net.onnx"), 2)
    assert session_of(first) is session_of(second)


def test_answers_side_by_side_are_those_of_an_instance_alone(tmp_path: Path) -> None:
    path, given = write(tmp_path / "net.onnx"), images(16)
    (alone,) = opened(path, 1, threads=2)  # a session of its own
    expected = [answers(alone, [image])[0] for image in given]
    instances = opened(path, 4, threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda number: [answers(instances[number % 4], [image])[0] for image in given],
                range(16),
            )
        )
    assert all(each == expected for each in found)


def test_a_session_ends_with_its_last_instance(tmp_path: Path) -> None:
    first, second = opened(write(tmp_path / "net.onnx"), 2, threads=1)
    gone = weakref.ref(session_of(first))
    first.close()
    gc.collect()
    assert gone() is session_of(second)
    second.close()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("beside", ["", "weights.bin"])
def test_a_file_that_was_replaced_is_not_taken_for_the_one_before(
    tmp_path: Path, beside: str
) -> None:
    path = write(tmp_path / "net.onnx", beside=beside)
    files = LoadedFiles()
    (before,) = opened(path, 1, files, threads=1)
    if beside:  # the model itself stays as it is
        write(tmp_path / "other.onnx", seed=1, beside="other.bin")
        (tmp_path / "other.bin").replace(tmp_path / beside)
    else:
        write(path, seed=1)
    (after,) = opened(path, 1, threads=1)
    given = images(1)
    assert session_of(after) is not session_of(before)
    assert answers(after, given) != answers(before, given)
    with pytest.raises(BackendError, match="has changed on disk since the pipeline was loaded"):
        opened(path, 1, files, threads=1)  # another instance of the node before


def test_the_source_of_an_edited_model_is_not_kept(tmp_path: Path) -> None:
    (backend,) = opened(write(tmp_path / "net.onnx"), 1, mean="1,2,3")
    kept = [value for value in vars(session_of(backend)).values() if isinstance(value, bytes)]
    assert kept == []


def test_freed_memory_goes_back_after_a_large_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(onnx_shared, "give_back_memory", lambda: calls.append(1))
    path = write(tmp_path / "net.onnx")
    opened(path, 1)
    assert calls == []
    monkeypatch.setattr(onnx_shared, "LARGE_BYTES", path.stat().st_size - 1)
    opened(path, 1)
    assert calls == [1]


# Weights that sessions map


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Count the models that are written into memory, of any size."""
    paths: list[Path] = []

    def write_and_count(path: Path, *rest: Any) -> Any:
        paths.append(path)
        return onnx_mapped.write(path, *rest)

    monkeypatch.setattr(onnx_shared, "LARGE_BYTES", 0)
    monkeypatch.setattr(onnx_shared, "write", write_and_count)
    return paths


def maps(backend: Any) -> bool:
    return hasattr(session_of(backend), "penstock_weights")


@pytest.mark.parametrize("keys", [{}, {"mean": "1,2,3", "std": "2"}])
@pytest.mark.parametrize("beside", ["", "weights.bin"])
def test_sessions_with_pools_map_the_weights_of_the_first(
    tmp_path: Path, beside: str, keys: Any, mapped: list[Path]
) -> None:
    path, given = write(tmp_path / "net.onnx", beside=beside, classes=1), images(4)
    (alone,) = opened(path, 1, threads=2, **keys)
    first, second = opened(path, 2, threads=2, **keys)
    assert mapped == [path] and maps(first) and maps(second) and not maps(alone)
    assert session_of(first) is not session_of(second)
    assert answers(first, given) == answers(second, given) == answers(alone, given)
    assert session_of(first).get_session_options().intra_op_num_threads == 2


def test_matrices_are_not_worth_mapping(tmp_path: Path, mapped: list[Path]) -> None:
    first, second = opened(write(tmp_path / "net.onnx", classes=400), 2, threads=2)
    assert not mapped and not maps(first) and not maps(second)


def test_mapped_weights_stay_until_the_last_session_ends(
    tmp_path: Path, mapped: list[Path]
) -> None:
    path, given = write(tmp_path / "net.onnx", classes=1), images(1)
    first, second = opened(path, 2, threads=2)
    before = answers(first, given)
    first.close()
    gc.collect()
    assert answers(second, given) == before
    (again,) = opened(path, 2, threads=2)[:1]
    assert mapped == [path] and answers(again, given) == before


def test_weights_that_can_not_be_mapped_are_read(
    tmp_path: Path, mapped: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    path, given = write(tmp_path / "net.onnx", classes=1), images(1)
    (alone,) = opened(path, 1, threads=2)
    monkeypatch.setattr(onnx_shared, "open_mapped", refuse)
    first, second = opened(path, 2, threads=2)
    assert not maps(first) and answers(first, given) == answers(second, given)
    assert answers(first, given) == answers(alone, given)


def test_children_map_the_weights_of_the_first(tmp_path: Path, mapped: list[Path]) -> None:
    path, given = write(tmp_path / "net.onnx", classes=1), images(2)
    server = SharedFiles()
    found = []
    for number in range(2):  # as in two children, each with what the server sent
        backend = OnnxTensor()
        files = pickle.loads(pickle.dumps(server))
        context = Context(node="n", instance=number, instances=2, alone=True, shared_files=files)
        backend.init(OnnxParams.model_validate({"model": str(path), "threads": 1}), context)
        server.keep()
        assert maps(backend)
        found.append(answers(backend, given))
        backend.close()
        del backend, files, context
        gc.collect()
    assert mapped == [path] and found[0] == found[1]


def test_a_child_that_is_the_only_one_maps_nothing(tmp_path: Path, mapped: list[Path]) -> None:
    backend = OnnxTensor()
    context = Context(node="n", alone=True)
    path = write(tmp_path / "net.onnx", classes=1)
    backend.init(OnnxParams.model_validate({"model": str(path)}), context)
    assert not mapped and not maps(backend)


def mapped_by(process: int) -> set[str]:
    """Return the inodes of the weights that a process maps."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:  # it has ended
        return set()
    return {line.split()[4] for line in lines if "memfd:penstock weights" in line}


def children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.skipif(sys.platform != "linux", reason="process executors need Linux")
async def test_processes_map_one_copy_also_after_a_crash(tmp_path: Path) -> None:
    path, given = write(tmp_path / "net.onnx", classes=1, filters=10_000), images(2)
    before = children()
    node = {"backend": "OnnxTensor", "model": str(path), "executor": "process", "instance_num": 2}
    async with Pipeline.load({"net": {**node, "threads": 1, "warm_up": False}}) as pipeline:
        found = [await pipeline({"data": image}) for image in given]
        first, second = started = children() - before
        (inode,) = mapped_by(first)
        assert mapped_by(second) == {inode}
        os.kill(first, signal.SIGKILL)  # one of them has made what the others find
        os.kill(second, signal.SIGKILL)
        maps: set[str] = set()
        again = found
        with anyio.fail_after(30):
            while not maps:  # other children take their places, and answer
                again = [await pipeline({"data": image}) for image in given]
                maps = {each for new in children() - before - started for each in mapped_by(new)}
        assert maps == {inode}
    for one, other in zip(found, again, strict=True):
        assert np.array_equal(one["result"], other["result"])
