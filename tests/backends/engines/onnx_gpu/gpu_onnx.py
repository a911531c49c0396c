"""Tests of OnnxTensor that need a GPU. scripts/gpu_check runs them; pytest does not collect a file
of this name by itself. Named on a machine without a GPU, those run that need none.

They write what they measured to gpu_onnx.jsonl in the folder $OUT.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from penstock.backends.engines.onnx_gpu.providers import provider_options, why_not
from penstock.backends.errors import BackendError
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

from . import models

ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="torch sees no GPU")
KEYS: dict[str, Any] = {"provider": "cuda"} if ON_GPU else {}
MIB = 2**20


@pytest.fixture(autouse=True)
def _without_leftovers() -> Any:
    yield
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()


def report(name: str, **values: Any) -> None:
    print(name, values)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "gpu_onnx.jsonl").open("a") as file:
            file.write(json.dumps({"test": name, **values}) + "\n")


def used() -> float:
    """Return the memory in use on the GPU, as the driver says, in MiB."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return (total - free) / MIB


def relative(one: list[Any], other: list[Any]) -> float:
    """Return the largest difference, as a part of the largest value: TF32 rounds."""
    return furthest(one, other) / max(float(np.abs(result).max()) for result in other)


def furthest(one: list[Any], other: list[Any]) -> float:
    return max(
        float(np.abs(np.asarray(first) - np.asarray(second)).max())
        for first, second in zip(one, other, strict=True)
    )


def per_batch(backend: Any, data: list[Any], count: int = 100) -> float:
    """Return the time of a batch in µs."""
    models.run(backend, *data)
    started = time.perf_counter()
    for _ in range(count):
        models.run(backend, *data)
    return (time.perf_counter() - started) / count * 1e6


def images(count: int, size: int = 32) -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (1, 3, size, size), np.uint8) for _ in range(count)]


def test_the_provider_is_there() -> None:
    if not ON_GPU:
        pytest.skip("torch sees no GPU")
    reason, _ = why_not("cuda")
    report("provider", version=onnxruntime.__version__, reason=reason)
    assert reason == ""


@needs_gpu
def test_the_default_is_the_gpu(tmp_path: Path) -> None:
    path = models.tag(tmp_path)
    assert models.make(path).device.startswith("cuda")
    assert models.make(path, device="cuda:0").device == "cuda:0"
    assert models.make(path, device="cpu").device == ""
    assert models.make(path, provider="cpu").device == ""
    assert models.make(models.texts(tmp_path)).device == ""


@needs_gpu
def test_the_tensorrt_provider_says_what_it_lacks(tmp_path: Path) -> None:
    reason, _ = why_not("tensorrt")
    if not reason:
        pytest.skip("TensorRT is installed")
    report("tensorrt provider", reason=reason)
    with pytest.raises(BackendError, match="libnvinfer"):
        models.make(models.tag(tmp_path), provider="tensorrt")


@pytest.mark.parametrize("precision", [None, "fp32", "fp16"])
def test_results_are_those_of_the_cpu(tmp_path: Path, precision: Any) -> None:
    path = models.net(tmp_path)
    keys: dict[str, Any] = {"max": "8x3x32x32", "mean": "100,110,120", "std": "50,60,70"}
    data = images(8)
    expected = models.run(models.make(path, device="cpu", **keys), *data)
    backend = models.make(path, **keys, **KEYS, precision=precision)
    backend.warm_up()
    worst = 0.0
    for size in (1, 2, 3, 5, 8):
        results = models.run(backend, *data[:size])
        assert all(isinstance(result, np.ndarray) for result in results)
        worst = max(worst, furthest(results, expected[:size]))
    scale = max(float(np.abs(result).max()) for result in expected)
    report("error", precision=precision or "model's", largest=worst, of=scale)
    assert worst <= {"fp32": 1e-4, "fp16": 2e-2}.get(str(precision), 5e-3) * scale
    backend.close()


@needs_gpu
def test_graphs_for_each_bucket(tmp_path: Path) -> None:
    path, data = models.net(tmp_path), images(16)
    keys: dict[str, Any] = {"max": "16x3x32x32", "mean": "0", "std": "255", **KEYS}
    graphed = models.make(path, **keys)
    started = time.perf_counter()
    graphed.warm_up()
    seconds = time.perf_counter() - started
    graphs = len(graphed.children[0]._half._graphs)
    plain = models.make(path, **keys, cuda_graphs=False)
    plain.warm_up()
    for size in range(1, 17):
        assert relative(models.run(graphed, *data[:size]), models.run(plain, *data[:size])) < 2e-3
    times = {
        f"{name} {size}": round(per_batch(backend, data[:size]))
        for name, backend in (("graphs", graphed), ("plain", plain))
        for size in (1, 4, 16)
    }
    report("graphs", graphs=graphs, warm_up_s=round(seconds, 2), microseconds=times)
    graphed.close()
    plain.close()
    assert graphs == 5


@needs_gpu
def test_tensors_on_the_gpu_are_taken(tmp_path: Path) -> None:
    backend = models.make(models.tag(tmp_path), max="4x4", **KEYS)
    backend.warm_up()
    for device in ("cuda", "cpu"):
        data = [torch.full((1, 4), float(value), device=device) for value in range(3)]
        results = models.run(backend, *data)
        assert [result[0, 0] for result in results] == [1, 4, 7]


def test_other_models(tmp_path: Path) -> None:
    """Optional inputs, rows that do not stay apart, a fixed batch, a batch on another axis."""
    two = np.array([[1, 2]], np.float32)
    pair = models.make(models.pair(tmp_path), max=4, **KEYS)
    pair.warm_up()
    results = models.run(pair, [two, two], [two, two, np.array([2, 3], np.float32)])
    assert [part.tolist() for part in results[0]] == [[[2, 4]], [[0, 0]]]
    assert [part.tolist() for part in results[1]] == [[[4, 12]], [[0, 0]]]
    places = models.make(models.places(tmp_path), max=4, **KEYS)
    assert places.max == 1
    (found,) = models.run(places, np.array([[0], [1], [1]], np.float32))
    assert found.tolist() == [[1, 0], [2, 0]]
    four = models.make(models.fixed(tmp_path), **KEYS)
    four.warm_up()
    rows = [np.full((1, 3), value, np.float32) for value in (1, 2)]
    assert [result[0, 0] for result in models.run(four, *rows)] == [2, 4]
    steps = models.make(models.steps(tmp_path), max=4, batch_axis={"h": 1, "next": 1}, **KEYS)
    x, state = np.ones((1, 2, 3), np.float32), np.full((2, 1, 3), 4, np.float32)
    for result in models.run(steps, [x, state], [x, state]):
        assert result.shape == (2, 1, 3) and (result == 5).all()


@needs_gpu
def test_weights_are_shared(tmp_path: Path) -> None:
    """Of 256 MiB of weights a second instance takes none; its session has memory of its own."""
    path = models.linear(tmp_path, 8192)
    # Its log says if ONNX Runtime can't take a weight from outside.
    keys: dict[str, Any] = {"max": "2x8192", "cuda_graphs": False, "log_level": "warning", **KEYS}
    small = models.make(models.linear(tmp_path, 64), provider="cuda")
    models.run(small, models.floats(1, 64))  # CUDA's libraries keep memory of their own
    small.close()
    begin = used()
    alone = models.make(path, **keys)
    one = used() - begin
    alone.close()
    del alone
    closed = used() - begin
    first = models.make(path, 0, 2, **keys)
    pair = used() - begin
    second = models.make(path, 1, 2, **keys)
    both = used() - begin
    row = models.floats(1, 8192)
    for backend in (first, second):
        backend.warm_up()
    assert furthest(models.run(first, row), models.run(second, row)) == 0
    warm = used() - begin
    first.close()
    second.close()
    del first, second, backend
    left = used() - begin
    report("weights in MiB", one=one, closed=closed, first=pair, both=both, warm=warm, left=left)
    assert both - pair < 128 < 256 <= pair
    assert left < 64 and closed < 64


@needs_gpu
def test_memory_is_given_back_at_close(tmp_path: Path) -> None:
    path, data = models.net(tmp_path, 128), images(32, 224)
    levels = []
    for _ in range(4):
        backend = models.make(path, max="32x3x224x224", mean="0", std="255", **KEYS)
        backend.warm_up()
        models.run(backend, *data)
        busy = used()
        backend.close()
        del backend
        levels.append((round(busy), round(used())))
    report("busy and closed, MiB", levels=levels)
    assert levels[-1][1] - levels[0][1] < 64
    assert levels[-1][0] - levels[-1][1] > 100


@needs_gpu
def test_arena_limit(tmp_path: Path) -> None:
    """A batch beyond the limit fails in words; the next one runs."""
    path = models.net(tmp_path, 128)
    backend = models.make(path, max=64, arena_limit=256, cuda_graphs=False, **KEYS)
    small, large = images(1), images(64, 512)
    models.run(backend, *[image.astype(np.float32) for image in small])
    with pytest.raises(MemoryError, match=r"out of memory on cuda.*ONNX Runtime says") as caught:
        models.run(backend, *[image.astype(np.float32) for image in large])
    report("arena limit", text=str(caught.value)[:300])
    models.run(backend, *[image.astype(np.float32) for image in small])
    backend.close()


@needs_gpu
def test_shrinking_arena(tmp_path: Path) -> None:
    backend = models.make(models.net(tmp_path, 128), max=32, shrink_mem_arena=True, **KEYS)
    small, large = images(1), [image.astype(np.float32) for image in images(32, 256)]
    models.run(backend, small[0].astype(np.float32))
    before = used()
    models.run(backend, *large)
    after = used()
    report("shrinking arena, MiB", before=before, after=after)
    assert after - before < 200
    backend.close()


def test_many_instances_without_cross_talk(tmp_path: Path) -> None:
    """Requests at once through 4 instances on one device get their own answers."""
    total = 20_000 if ON_GPU else 500

    async def main() -> None:
        node = {
            "backend": "OnnxTensor",
            "model": str(models.tag(tmp_path)),
            "max": "32x4",
            "instance_num": 4,
            **KEYS,
        }
        async with Pipeline(load({"tags": node, "pipeline": {"max_requests": 30_000}})) as pipeline:

            async def one(number: int) -> None:
                value = np.full((1, 4), number, np.float32)
                answer = await pipeline({"data": value})
                assert np.array_equal(answer["result"], value * 3 + 1), (number, answer["result"])

            started = time.perf_counter()
            await asyncio.gather(*[one(number) for number in range(total)])
            seconds = time.perf_counter() - started
            statistics = pipeline.nodes[0].statistics
            size = statistics.batch_size.sum / statistics.batches
            report("cross-talk", requests=total, seconds=seconds, batch=size)

    asyncio.run(main())


@needs_gpu
def test_captures_beside_running_batches(tmp_path: Path) -> None:
    """Loading, capturing and closing sessions does not disturb the batches of other threads."""
    path, failures, stop = models.net(tmp_path), [], threading.Event()
    data = images(4)
    keys: dict[str, Any] = {"max": "4x3x32x32", "mean": "0", "std": "255", **KEYS}

    def serve() -> None:
        try:
            backend = models.make(path, **keys)
            backend.warm_up()
            expected, count = models.run(backend, *data), 0
            while not stop.is_set():
                size = count % 4 + 1
                assert relative(models.run(backend, *data[:size]), expected[:size]) < 2e-3
                torch.empty(1 << 22, device="cuda").fill_(1)
                count += 1
            backend.close()
            report("batches beside captures", count=count)
        except BaseException as error:
            failures.append(error)

    def reload() -> None:
        try:
            for _ in range(8):
                backend = models.make(path, **keys)
                backend.warm_up()
                assert len(backend.children[0]._half._graphs) == 3
                backend.close()
        except BaseException as error:
            failures.append(error)

    serving = [threading.Thread(target=serve) for _ in range(2)]
    loading = [threading.Thread(target=reload) for _ in range(2)]
    for thread in (*serving, *loading):
        thread.start()
    for thread in loading:
        thread.join(80)
    stop.set()
    for thread in serving:
        thread.join(20)
    assert not failures, failures


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet50") / "resnet50.onnx"
    torch.onnx.export(
        torchvision.models.resnet50(weights=None).eval(),
        (torch.zeros(2, 3, 224, 224),),
        str(path),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        dynamo=False,
    )
    return path


@needs_gpu
@pytest.mark.parametrize(
    ("precision", "search", "nhwc"),
    [
        ("fp32", "heuristic", 0),
        ("fp32", "heuristic", 1),
        ("fp16", "heuristic", 0),
        ("fp16", "heuristic", 1),
        ("fp16", "exhaustive", 0),
    ],
)
def test_options_of_resnet50(
    resnet50: Path, precision: str, search: str, nhwc: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record how long a load takes, the first batch of a size, and a batch, with each option."""

    def options(*given: Any, **keys: Any) -> Any:
        (name, cuda), *rest = provider_options(*given, **keys)
        return [(name, {**cuda, "prefer_nhwc": nhwc}), *rest]

    engine = "penstock.backends.engines.onnx_gpu.engine"
    monkeypatch.setattr(f"{engine}.provider_options", options)
    data = images(64, 224)
    started = time.perf_counter()
    backend = models.make(
        resnet50,
        max="64x3x224x224",
        mean="0",
        std="255",
        batched=True,
        precision=precision,
        cudnn_conv_algo_search=search,
        cuda_graphs=False,
        warm_up=False,
        **KEYS,
    )
    loaded = time.perf_counter()
    first = []
    for size in (1, 8, 64):
        begun = time.perf_counter()
        models.run(backend, *data[:size])
        first.append(round((time.perf_counter() - begun) * 1e3, 1))
    times = {size: round(per_batch(backend, data[:size], 30)) for size in (1, 8, 64)}
    (answer,) = models.run(backend, data[0])
    report(
        "resnet50",
        precision=precision,
        search=search,
        nhwc=nhwc,
        load_s=round(loaded - started, 2),
        first_ms=first,
        batch_us=times,
        answer=[round(float(value), 3) for value in answer[0][:4]],
    )
    backend.close()


FAILING = """
import asyncio, sys, numpy as np, torch
from penstock.backends.errors import BackendError
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

async def main():
    node = {"backend": "OnnxTensor", "provider": "cuda", "model": sys.argv[1], "max": "4x4"}
    async with Pipeline(load({"net": node})) as pipeline:
        for broken in (False, True):
            if broken:
                there = torch.zeros(2, device="cuda")
                there[torch.tensor([99], device="cuda")]
            try:
                answer = await pipeline({"data": np.ones((1, 4), np.float32)})
                print("answer", answer["result"].tolist(), flush=True)
            except BackendError as error:
                print(type(error).__name__, str(error).splitlines()[0][:200], flush=True)
        print("not ready:", pipeline.not_ready, flush=True)

asyncio.run(main())
"""


@needs_gpu
def test_a_device_that_fails_makes_the_node_not_ready(tmp_path: Path) -> None:
    """In a process of its own, since CUDA does not recover from an index out of range."""
    command = [sys.executable, "-c", FAILING, str(models.tag(tmp_path))]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    lines = ran.stdout.strip().splitlines()
    report("device error", lines=lines, error=ran.stderr[-600:])
    assert lines[:1] == ["answer [[4.0, 4.0, 4.0, 4.0]]"], ran.stderr[-2000:]
    assert lines[1].startswith("DeviceError"), lines
    assert "net" in lines[2], lines


CAPTURE = """
import sys, json, time, torch, onnxruntime, numpy as np
path, kind = sys.argv[1:]
stream = torch.cuda.Stream()
torch.cuda.set_stream(stream)
options = onnxruntime.SessionOptions()
cuda = {"device_id": 0, "user_compute_stream": stream.cuda_stream}
cuda["enable_cuda_graph"] = 1
session = onnxruntime.InferenceSession(
    path, options, providers=[("CUDAExecutionProvider", cuda), ("CPUExecutionProvider", {})]
)
run = onnxruntime.RunOptions()
run.add_run_config_entry("disable_synchronize_execution_providers", "1")
run.add_run_config_entry("gpu_graph_id", "1" if kind == "onnxruntime's" else "-1")
x, y = torch.rand(4, 3, 32, 32, device="cuda"), torch.zeros(4, 10, device="cuda")
def once():
    binding = session.io_binding()
    binding.bind_input("x", "cuda", 0, np.float32, (4, 3, 32, 32), x.data_ptr())
    binding.bind_output("scores", "cuda", 0, np.float32, (4, 10), y.data_ptr())
    session.run_with_iobinding(binding, run)
for _ in range(3):
    once()
stream.synchronize()
replay = once
if kind.startswith("torch"):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        once()
    torch.cuda.set_stream(stream)
    replay = graph.replay
errors = []
cpu = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
for _ in range(3):
    x.uniform_()
    replay()
    stream.synchronize()
    (expected,) = cpu.run(None, {"x": x.cpu().numpy()})
    errors.append(float(np.abs(y.cpu().numpy() - expected).max()))
started = time.perf_counter()
for _ in range(300):
    replay()
    stream.synchronize()
seconds = time.perf_counter() - started
print(json.dumps({"errors": errors, "us": round(seconds / 300 * 1e6, 1)}))
"""


@needs_gpu
@pytest.mark.parametrize("kind", ["torch's", "onnxruntime's"])
def test_who_may_capture(tmp_path: Path, kind: str) -> None:
    """Record which captures give right answers. The engine uses the first."""
    command = [sys.executable, "-c", CAPTURE, str(models.net(tmp_path)), kind]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    lines = ran.stdout.strip().splitlines()
    report("capture", kind=kind, result=lines[-1:], error=ran.stderr[-1500:], rc=ran.returncode)
    if kind == "torch's":
        assert max(json.loads(lines[-1])["errors"]) < 5e-2, ran.stderr[-1500:]
