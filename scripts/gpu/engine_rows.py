"""The rows of `scripts/gpu_bench engines`: the engines, and one process that measures a model."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import models

from penstock.app.server.switch_interval import SHORT_SECONDS
from penstock.backends import timeline
from penstock.backends.base import Backend, Context
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

HERE = Path(__file__).resolve().parent
TURNS = 4
"""Pairs of turns of a row, after one to warm up."""
SWITCH_INTERVAL = "PENSTOCK_BENCH_SWITCH_INTERVAL"
"""An environment variable: another switch interval for the rows with a node, in seconds."""
MEAN, STD = "123.675,116.28,103.53", "58.395,57.12,57.375"

Prepare = Callable[[str, Path, bool], Path]
"""Writes the file of a model into a folder; the last argument says whether a GPU will run it."""


@dataclass(frozen=True)
class Engine:
    """One way to run a model: the backend, its keys, and how its file is made."""

    name: str
    backend: str = "PythonTensor"
    keys: dict[str, Any] = field(default_factory=dict)
    prepare: Prepare | None = None
    needs: str = "any"
    """gpu, cpu, any, gpu:PACKAGE, or the name of a package that runs on the CPU."""
    only: tuple[str, ...] = ()
    """The models to run it for; empty: all."""


def exported(model: str, folder: Path, on_gpu: bool) -> Path:
    """Export the program, in float16 for a GPU."""
    path = folder / f"{model}.pt2"
    torch.export.save(_program(model, on_gpu), path)
    return path


def compiled(model: str, folder: Path, on_gpu: bool) -> Path:
    """Compile a package with AOTInductor."""
    path = folder / f"{model}-aoti.pt2"
    torch._inductor.aoti_compile_and_package(_program(model, on_gpu), package_path=str(path))
    return path


def _program(model: str, on_gpu: bool) -> Any:
    module = models.MODELS[model]().eval()
    size = models.SIZES[model]
    sample = torch.zeros(2, 3, size, size)
    if on_gpu:
        module = models.InPrecision(module, torch.float16).cuda()
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]  # torch's stubs lack it
        sample = sample.cuda()

    batch = torch.export.Dim("batch", min=1, max=1024)
    with torch.no_grad():
        return torch.export.export(module, (sample,), dynamic_shapes=({0: batch},))


def onnx(model: str, folder: Path, on_gpu: bool) -> Path:
    """Write the model as ONNX, in float32: the engine converts it."""
    path = folder / f"{model}.onnx"
    size = models.SIZES[model]
    torch.onnx.export(
        models.MODELS[model]().eval(),
        (torch.zeros(2, 3, size, size),),
        str(path),
        input_names=["image"],
        output_names=["answer"],
        dynamic_axes={"image": {0: "n"}, "answer": {0: "n"}},
        dynamo=False,
    )
    return path


FAST = {"precision": "fp16", "channels_last": True}
BF16 = {"precision": "bf16"}
"""torchao scales 8 bits to bfloat16."""

ENGINES: tuple[Engine, ...] = (
    # Those that matter most come first, and the slow compilers last: the limit of time cuts these.
    Engine("eager fp16", keys=FAST, needs="gpu"),
    Engine("eager", needs="cpu"),
    Engine(
        "ORT CUDA fp16",
        "OnnxTensor",
        {"provider": "cuda", "precision": "fp16"},
        onnx,
        needs="onnxruntime-cuda",
    ),
    Engine(
        "eager fp16, no graphs",
        keys=FAST | {"cuda_graphs": False},
        needs="gpu",
        only=("resnet50",),
    ),
    Engine("eager fp32", needs="gpu", only=("resnet50",)),
    Engine("eager bf16", keys=BF16, needs="gpu", only=("vit",)),
    Engine("export fp16", "TorchExportTensor", {}, exported, needs="gpu", only=("resnet50", "vit")),
    Engine("export", "TorchExportTensor", {}, exported, needs="cpu"),
    Engine("OnnxTensor", "OnnxTensor", {}, onnx, needs="cpu"),
    Engine("OpenvinoTensor", "OpenvinoTensor", {}, onnx, needs="openvino"),
    Engine(
        "ORT TensorRT fp16",
        "OnnxTensor",
        {"provider": "tensorrt", "precision": "fp16"},
        onnx,
        needs="onnxruntime-tensorrt",
        only=("resnet50", "vit"),
    ),
    Engine(
        "compile fp16",
        keys=FAST | {"compile": "default"},
        needs="gpu",
        only=("resnet50", "vit"),
    ),
    Engine("compile", keys={"compile": "default"}, needs="cpu"),
    Engine(
        "AOTInductor fp16",
        "TorchExportTensor",
        {},
        compiled,
        needs="gpu",
        only=("resnet50", "vit"),
    ),
    Engine("AOTInductor", "TorchExportTensor", {}, compiled, needs="cpu"),
    Engine(
        "compile fp16, reduce-overhead",
        keys=FAST | {"compile": "reduce-overhead"},
        needs="gpu",
        only=("resnet50",),
    ),
    Engine(
        "compile bf16, fp8-dynamic",
        keys=BF16 | {"compile": "default", "quantize": "fp8-dynamic"},
        needs="gpu:torchao",
        only=("vit",),
    ),
    Engine(
        "compile bf16, int8-dynamic",
        keys=BF16 | {"compile": "default", "quantize": "int8-dynamic"},
        needs="gpu:torchao",
        only=("vit",),
    ),
)


def can_run(engine: Engine, model: str) -> bool:
    on_gpu = torch.cuda.is_available()
    if engine.only and model not in engine.only:
        return False
    if engine.needs.startswith("gpu:"):
        return on_gpu and find_spec(engine.needs.partition(":")[2]) is not None
    if engine.needs in ("gpu", "cpu", "any"):
        return engine.needs == "any" or (engine.needs == "gpu") == on_gpu
    if engine.needs.startswith("onnxruntime-"):
        if not on_gpu or not find_spec("onnxruntime"):
            return False
        import onnxruntime

        wanted = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
        provider = engine.needs.partition("-")[2]
        has = wanted[provider] in onnxruntime.get_available_providers()
        # The wheel names its TensorRT provider also where TensorRT is not installed.
        return has and (provider != "tensorrt" or find_spec("tensorrt") is not None)
    return not on_gpu and find_spec(engine.needs) is not None


def node(engine: Engine, model: str, file: Path | None, batch: int, **more: Any) -> dict[str, Any]:
    """Return the keys of a node that runs the engine with batches of up to `batch`."""
    size = models.SIZES[model]
    return {
        "backend": engine.backend,
        "model": str(file) if file is not None else f"{HERE}/models.py:{model}",
        "max": f"{batch}x3x{size}x{size}",
        "mean": MEAN,
        "std": STD,
        "batched": True,
        **engine.keys,
        **more,
    }


def create(keys: dict[str, Any]) -> Backend:
    """Create the backend of a node and warm it up, on this thread."""
    config = load({"net": keys})
    group = config.nodes["net"].instance_groups[0]
    backend = group.spec.create(Context(node="net", directory=HERE, max=group.max))
    backend.warm_up()
    return backend


def images(count: int, size: int) -> list[Any]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (1, 3, size, size), np.uint8) for _ in range(count)]


@dataclass
class Turn:
    """What one turn of a side did."""

    rate: float
    """Images per second."""
    times: list[float]
    """Seconds of each batch in the loop, or of each request to the node."""


def loop_turn(engine: Backend, inputs: Sequence[Any], seconds: float) -> Turn:
    """Run the same batch in a bare loop."""
    times: list[float] = []
    started = now = time.perf_counter()
    while now - started < seconds or not times:
        engine.forward([{"data": image} for image in inputs])
        times.append(time.perf_counter() - now)
        now += times[-1]
    return Turn(len(times) * len(inputs) / (now - started), times)


async def node_turn(
    pipeline: Pipeline, inputs: Sequence[Any], callers: int, seconds: float
) -> Turn:
    """Send single images, each caller its next one when it has its answer."""
    times: list[float] = []
    started = time.perf_counter()
    end = started + seconds

    async def call(image: Any) -> None:
        while True:
            begin = time.perf_counter()
            await pipeline({"data": image})
            now = time.perf_counter()
            times.append(now - begin)
            if now >= end:
                return

    await asyncio.gather(*[call(inputs[number % len(inputs)]) for number in range(callers)])
    return Turn(len(times) / (time.perf_counter() - started), times)


def measure(
    engine: Backend, keys: dict[str, Any], batch: int, seconds: float, runner: asyncio.Runner
) -> dict[str, Any]:
    """Return the figures of one row.

    A batch of one has one caller, so the ratio holds all that Penstock adds to a request. Larger
    batches have twice as many callers as images, so that a full batch waits when one ends; two
    instances have four times as many.
    """
    size = int(str(keys["max"]).rpartition("x")[2])
    inputs = images(batch, size)

    def compare(instances: int, callers: int, turns: int) -> tuple[list[Turn], list[Turn], float]:
        """Return the turns of the loop, those of a node, and the node's mean batch."""
        loops: list[Turn] = []
        nodes: list[Turn] = []
        pipeline = runner.run(_enter(keys | {"instance_num": instances}))
        sides: list[Callable[[], None]] = [
            lambda: loops.append(loop_turn(engine, inputs, seconds)),
            lambda: nodes.append(runner.run(node_turn(pipeline, inputs, callers, seconds))),
        ]
        try:
            for _ in range(turns + 1):
                for side in sides:
                    side()
                sides.reverse()  # so that a drift of the machine favours neither
            statistics = pipeline.nodes[0].statistics
            filled = statistics.batch_size.sum / statistics.batches
        finally:
            runner.run(pipeline.__aexit__(None, None, None))
        return loops[1:], nodes[1:], filled  # the first are to warm up

    loops, nodes, filled = compare(1, 1 if batch == 1 else 2 * batch, TURNS)
    others, twos, _ = compare(2, 4 * batch, 2)
    ratios = [ours.rate / bare.rate for bare, ours in zip(loops, nodes, strict=True)]
    recording = timeline.Recording()
    with timeline.record(recording):
        recorded = loop_turn(engine, inputs, seconds)
    pieces: dict[str, float] = {}
    for span in recording.spans:
        milliseconds = 1e3 * (span.end - span.start) / len(recorded.times)
        pieces[span.name] = round(pieces.get(span.name, 0.0) + milliseconds, 3)
    return {
        "batch": batch,
        "loop": median(turn.rate for turn in loops),
        "switch_interval": sys.getswitchinterval(),
        "pieces_ms": pieces,
        "loop_p50_ms": 1e3 * median(each for turn in loops for each in turn.times),
        "node": median(turn.rate for turn in nodes),
        "node_p50_ms": 1e3 * median(each for turn in nodes for each in turn.times),
        "ratio": median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "mean_batch": round(filled, 1),
        "two": median(turn.rate for turn in twos),
        "two_ratio": median(ours.rate / bare.rate for bare, ours in zip(others, twos, strict=True)),
    }


async def _enter(keys: dict[str, Any]) -> Pipeline:
    """Load a pipeline of one node."""
    # As `penstock serve` does for such a node.
    sys.setswitchinterval(float(os.environ.get(SWITCH_INTERVAL, SHORT_SECONDS)))
    pipeline = Pipeline.load({"net": keys, "pipeline": {"max_requests": 4096}})
    await pipeline.__aenter__()
    return pipeline


# one model, in a process of its own


def run_model(model: str, wanted: Sequence[str], batches: Sequence[int], seconds: float) -> None:
    """Prepare the engines of a model, until all are or a line comes on standard input. After a
    second line measure them, and write a line of JSON for each row.
    """
    quiet()
    enough, go = threading.Event(), threading.Event()

    def read() -> None:
        for event in (enough, go):
            sys.stdin.readline()
            event.set()

    threading.Thread(target=read, daemon=True).start()
    on_gpu = torch.cuda.is_available()
    ready: list[tuple[Engine, Backend, Path | None]] = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[Prepare, Path] = {}
        for engine in ENGINES:
            if engine.name not in wanted or not can_run(engine, model):
                continue
            if enough.is_set():
                emit(event="row", engine=engine.name, batch=0, error="no time to prepare it")
                continue
            emit(event="preparing", engine=engine.name)
            started = time.perf_counter()
            try:
                if engine.prepare is not None and engine.prepare not in files:
                    files[engine.prepare] = engine.prepare(model, Path(folder), on_gpu)
                file = files.get(engine.prepare) if engine.prepare is not None else None
                made = create(node(engine, model, file, max(batches)))
                ready.append((engine, made, file))
            except Exception as error:
                traceback.print_exc()
                emit(event="row", engine=engine.name, batch=0, error=reason(error))
                continue
            emit(event="prepared", engine=engine.name, seconds=time.perf_counter() - started)
        emit(event="ready")
        go.wait()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            for engine, made, file in ready:
                for batch in batches:
                    keys = node(engine, model, file, batch)
                    try:
                        figures = measure(made, keys, batch, seconds, runner)
                    except Exception as error:
                        traceback.print_exc()
                        figures = {"batch": batch, "error": reason(error)}
                    emit(event="row", engine=engine.name, **figures)
                made.close()


def _loop_factory() -> Any:
    if not find_spec("uvloop"):
        return None
    import uvloop

    return uvloop.new_event_loop


def quiet() -> None:
    warnings.simplefilter("ignore")  # exporters and compilers warn of their own insides
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


def emit(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def reason(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# the weights


def weigh(model: str, name: str) -> None:
    """Write what 1 and 4 instances of an engine take on the device (on a CPU: of the process), in
    MiB, as a line of JSON.
    """
    quiet()
    on_gpu = torch.cuda.is_available()
    engine = next(engine for engine in ENGINES if engine.name == name)
    with tempfile.TemporaryDirectory() as folder:
        file = engine.prepare(model, Path(folder), on_gpu) if engine.prepare is not None else None
        if on_gpu:
            torch.cuda.empty_cache()
        taken, tensors = {}, {}
        for instances in (1, 1, 4):  # the first load also loads the device's libraries
            before, allocated = _memory(), _allocated()
            keys = node(engine, model, file, 8, instance_num=instances)
            with asyncio.Runner() as runner:
                pipeline = runner.run(_enter(keys))
                taken[instances] = _memory() - before
                tensors[instances] = _allocated() - allocated
                runner.run(pipeline.__aexit__(None, None, None))
            left = _memory() - before
        parameters = sum(tensor.nbytes for tensor in models.MODELS[model]().state_dict().values())
    emit(
        event="row",
        engine=name,
        weights=parameters / 2**20,
        one=taken[1],
        four=taken[4],
        one_tensors=tensors[1],
        four_tensors=tensors[4],
        left=left,
    )


def _allocated() -> float:
    """Return the MiB of torch's tensors on the device."""
    return torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def _memory() -> float:
    """Return the MiB in use: on the device, or by this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**20
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
