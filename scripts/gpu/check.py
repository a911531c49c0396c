"""Checks that need a GPU.

A check is a function that returns what it measured, and raises AssertionError if it is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import regions

from penstock.backends.base import Context
from penstock.backends.gpu.free_memory import free_memory
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]

NETS = '''
import torch
from torch import nn

class Conv(nn.Module):
    """A small net whose answer depends on every pixel."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(16, 10)
    def forward(self, x):
        return self.head(self.body(x).flatten(1))

class Tag(nn.Module):
    """Answers three times its input, plus one, so that a swapped answer shows."""
    def forward(self, x):
        return x * 3 + 1

class Huge(nn.Module):
    """Allocates as many GiB as its input says."""
    def forward(self, x):
        size = int(x.max()) * 2**30
        return torch.empty(size, dtype=torch.uint8, device=x.device).sum()[None].expand(len(x))

class Asserts(nn.Module):
    """Fails on the device for an index out of range, later than the call that started it."""
    def forward(self, x):
        return torch.arange(4, device=x.device)[x.long()]
'''

FAR = '''
import torch
from torch import nn

class Memory:
    """Some memory that says it is far larger than it is."""
    def __init__(self, x):
        self.__cuda_array_interface__ = {
            "data": (x.data_ptr(), False), "shape": (2**36,), "typestr": "<f4", "version": 2,
        }

class Far(nn.Module):
    def forward(self, x):
        if x.device == torch.device("cuda", 0) and float(x.max()) == 99:
            x = x + torch.as_tensor(Memory(x), device=x.device)[-1]
        return x * 3 + 1
'''

Check = Callable[[Path], str]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check. It gets a folder with `nets.py`."""
    CHECKS.append(function)
    return function


def backend(folder: Path, node: dict[str, Any]) -> Any:
    """Create the backend of a node and warm it up, on this thread."""
    config = load({"net": node})
    group = config.nodes["net"].instance_groups[0]
    created = group.spec.create(Context(node="net", directory=folder, max=group.max))
    created.warm_up()
    return created


def images(count: int, size: int = 32) -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (1, 3, size, size), np.uint8) for _ in range(count)]


def eager(name: str) -> Any:
    """Return a net of NETS, on the CPU."""
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    return scope[name]().eval()


def largest_difference(one: Any, other: Any, inputs: list[Any]) -> float:
    """Run the same batch on two backends and compare their results."""
    batches = [[{"data": image} for image in inputs] for _ in range(2)]
    one.forward(batches[0])
    other.forward(batches[1])
    first, second = (torch.cat([item["result"] for item in batch]) for batch in batches)
    return float((first - second).abs().max())


def node(name: str, **keys: Any) -> dict[str, Any]:
    return {"backend": "PythonTensor", "model": f"nets.py:{name}", **keys}


@check
def machine(folder: Path) -> str:
    """The GPU, its memory, and the libraries that are installed."""
    free, total = torch.cuda.mem_get_info()
    libraries = [
        name
        for name in ("tensorrt", "tensorrt_rtx", "torchvision", "safetensors")
        if find_spec(name)
    ]
    name = torch.cuda.get_device_name()
    memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return f"{name}, {memory}; torch {torch.__version__}; {', '.join(libraries) or 'no libraries'}"


@check
def engines_against_eager(folder: Path) -> str:
    """TorchScript, torch.export and Python on the GPU give what eager gives on the CPU."""
    net = eager("Conv")
    sample = torch.zeros(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    jit: Any = torch.jit  # untyped
    jit.save(jit.trace(net, sample), str(folder / "conv.pt"))
    torch.export.save(
        torch.export.export(net, (sample,), dynamic_shapes=({0: batch},)), folder / "conv.pt2"
    )
    inputs = images(8)
    statistics = {"mean": "100,110,120", "std": "50,60,70", "max": "8x3x32x32"}
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ([100.0, 110.0, 120.0], [50.0, 60.0, 70.0])
    )
    expected = net((torch.from_numpy(np.concatenate(inputs)).float() - mean) / std).detach()
    seen = []
    for name, keys in (
        ("TorchScriptTensor", {"backend": "TorchScriptTensor", "model": "conv.pt"}),
        ("TorchExportTensor", {"backend": "TorchExportTensor", "model": "conv.pt2"}),
        ("PythonTensor", node("Conv")),
        ("PythonTensor channels_last", node("Conv", channels_last=True)),
        ("PythonTensor fp16", node("Conv", precision="fp16")),
        ("PythonTensor bf16", node("Conv", precision="bf16")),
    ):
        engine = backend(folder, keys | statistics)
        assert engine.device.startswith("cuda"), engine.device
        worst = 0.0
        for size in (1, 2, 3, 5, 8):
            items = [{"data": image} for image in inputs[:size]]
            engine.forward(items)
            results = torch.cat([item["result"] for item in items])
            assert results.device.type == "cpu"
            worst = max(worst, float((results - expected[:size]).abs().max()))
        engine.close()
        # In float32 too the convolutions of cuDNN round: they use TF32.
        limit = 1e-1 if "bf16" in name else 2e-2 if "fp16" in name else 2e-3
        assert worst < limit, f"{name}: {worst}"
        seen.append(f"{name} {worst:.1e}")
    return "largest difference: " + ", ".join(seen)


@check
def graphs_and_buckets(folder: Path) -> str:
    """There is a CUDA graph per bucket, and every batch size gives the same without graphs."""
    graphed = backend(folder, node("Conv", max="16x3x32x32", mean="0", std="255"))
    graphs = len(graphed.children[0]._half._graphs)
    assert graphs == 5, f"{graphs} graphs, expected one for each of 1, 2, 4, 8, 16"
    plain = backend(folder, node("Conv", max="16x3x32x32", mean="0", std="255", cuda_graphs=False))
    inputs = images(16)
    for size in range(1, 17):
        difference = largest_difference(graphed, plain, inputs[:size])
        assert difference < 2e-3, f"batch {size}: {difference}"
    times = []
    for engine in (graphed, plain):
        started = time.perf_counter()
        for _ in range(300):
            engine.forward([{"data": image} for image in inputs[:4]])
        times.append((time.perf_counter() - started) / 300 * 1e6)
        engine.close()
    return f"5 graphs; batch of 4: {times[0]:.0f} µs with graphs, {times[1]:.0f} µs without"


@check
def many_instances_without_cross_talk(folder: Path) -> str:
    """20,000 requests at once through 4 instances on one GPU get their own answers.

    The memory that torch reserves does not grow.
    """

    async def main() -> str:
        node_keys = (
            'backend = "PythonTensor"\nmodel = "nets.py:Tag"\nmax = "32x4"\ninstance_num = 4\n'
        )
        config = load(_file(folder, "tags.toml", node_keys + "[pipeline]\nmax_requests = 30000\n"))
        async with Pipeline(config) as pipeline:
            groups = {id(executor.device_group) for executor in pipeline.nodes[0].executors}
            assert len(groups) == 1, "the instances of one device are one group"

            async def one(number: int) -> None:
                value = torch.full((1, 4), float(number))
                answer = await pipeline({"data": value})
                assert torch.equal(answer["result"], value * 3 + 1), (
                    f"request {number} got {answer['result']}"
                )

            await asyncio.gather(*[one(number) for number in range(1000)])
            torch.cuda.synchronize()
            before = torch.cuda.memory_reserved()
            started = time.perf_counter()
            await asyncio.gather(*[one(number) for number in range(20_000)])
            seconds = time.perf_counter() - started
            after = torch.cuda.memory_reserved()
            assert after <= before + 2**20, f"{before} bytes before, {after} after"
            statistics = pipeline.nodes[0].statistics
            size = statistics.batch_size.sum / statistics.batches
            return (
                f"20,000 right answers in {seconds:.2f} s, batches of {size:.1f}; "
                f"{after / 2**20:.0f} MiB reserved before and after"
            )

    return asyncio.run(main())


@check
def sharing_weights(folder: Path) -> str:
    """A second instance needs no second copy of the weights."""
    (folder / "wide.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Linear(8192, 8192)\n"
    )
    keys = {"backend": "PythonTensor", "model": "wide.py:net", "cuda_graphs": False}
    first = backend(folder, keys)
    one = torch.cuda.memory_allocated()
    second = backend(folder, keys)
    shared = torch.cuda.memory_allocated() - one
    third = backend(folder, keys | {"ENABLE_WEIGHT_SHARING": False})
    own = torch.cuda.memory_allocated() - one
    for engine in (first, second, third):
        engine.close()
    assert shared < 2**20 < own, (shared, own)
    return (
        f"of 256 MiB of weights a second instance takes {shared / 2**20:.1f} MiB, "
        f"without sharing {own / 2**20:.0f} MiB"
    )


@check
def out_of_memory(folder: Path) -> str:
    """A batch that asks for too much memory fails and says what is free; the next one runs."""

    async def main() -> str:
        file = _file(
            folder,
            "huge.toml",
            'backend = "PythonTensor"\nmodel = "nets.py:Huge"\ncuda_graphs = false\nmax = 4\n',
        )
        async with Pipeline.load(file) as pipeline:
            try:
                await pipeline({"data": torch.full((1,), 100_000.0)})
            except Exception as error:
                text = str(error)
            else:
                raise AssertionError("100,000 GiB were allocated")
            assert "out of memory" in text and "free" in text, text
            assert not pipeline.not_ready, pipeline.not_ready
            answer = await pipeline({"data": torch.full((1,), 1.0)})
            assert answer["result"].numel() == 1
            return text.splitlines()[0][:220]

    return asyncio.run(main())


@check
def device_error(folder: Path) -> str:
    """An error that the device reports late fails its own batch and makes the node not ready.

    It runs in a process of its own, because CUDA does not recover from it.
    """
    file = _file(
        folder,
        "asserts.toml",
        'backend = "PythonTensor"\nmodel = "nets.py:Asserts"\ncuda_graphs = false\nmax = 4\n',
    )
    code = f"""
        import asyncio, torch
        from penstock.pipelines.pipeline import Pipeline
        from penstock.backends.errors import BackendError
        async def main():
            async with Pipeline.load({str(file)!r}) as pipeline:
                print("first", (await pipeline({{"data": torch.tensor([2.0])}}))["result"].tolist())
                try:
                    await pipeline({{"data": torch.tensor([99.0])}})
                except BackendError as error:
                    print(type(error).__name__, str(error).splitlines()[0][:160])
                print("not ready:", pipeline.not_ready)
        asyncio.run(main())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = run.stdout.splitlines()
    assert lines and lines[0] == "first [2]", run.stdout + run.stderr[-2000:]
    assert any(line.startswith("DeviceError") for line in lines), run.stdout + run.stderr[-2000:]
    assert any(line.startswith("not ready: node") for line in lines), run.stdout
    return lines[1]


@check
def images_on_the_gpu(folder: Path) -> str:
    """The torch image backends give nearly the same tensors on the GPU as on the CPU."""
    from penstock.app.bench.images import synthetic_jpegs

    jpegs = synthetic_jpegs(4)
    chain = {
        "backend": "S[DecodeTensor,ResizeTensor,CvtColorTensor]",
        "resize_h": 224,
        "resize_w": 224,
        "color": "rgb",
    }
    on_gpu = backend(folder, chain)
    items: list[dict[str, Any]] = [{"data": jpeg} for jpeg in jpegs]
    on_gpu.forward(items)
    config = load({"net": chain})
    on_cpu = config.nodes["net"].instance_groups[0].spec.create(Context(node="net", device="cpu"))
    others: list[dict[str, Any]] = [{"data": jpeg} for jpeg in jpegs]
    on_cpu.forward(others)
    worst = 0.0
    for ours, theirs in zip(items, others, strict=True):
        result, expected = ours["result"], theirs["result"]
        assert result.is_cuda and not expected.is_cuda
        assert result.shape == expected.shape, (result.shape, expected.shape)
        worst = max(worst, float((result.cpu().float() - expected.float()).abs().mean()))
    assert worst < 3.0, worst
    return f"mean difference of a pixel to the CPU's decoder: {worst:.2f} of 255"


@check
def two_devices(folder: Path) -> str:
    """One node on two GPUs has a group on each, both work, and every answer is right.

    Inputs lie on either GPU or on the CPU. The rate is compared with that of one GPU.
    """
    if torch.cuda.device_count() < 2:
        return "NOT RUN: this machine has one GPU"
    second = backend(folder, node("Conv", device="cuda:1", max="8x3x32x32", mean="0", std="255"))
    graphs = len(second.children[0]._half._graphs)
    first = backend(folder, node("Conv", device="cuda:0", max="8x3x32x32", mean="0", std="255"))
    inputs = images(8)
    for size in (1, 3, 8):
        difference = largest_difference(first, second, inputs[:size])
        assert difference < 1e-5, f"batch {size}: {difference}"
    assert graphs == 4, f"{graphs} graphs on cuda:1, expected one for each of 1, 2, 4, 8"
    first.close()
    second.close()

    async def right() -> str:
        keys = (
            'backend = "PythonTensor"\nmodel = "nets.py:Tag"\nmax = "32x4"\n'
            'instance_num = 4\ndevice = "cuda:0,cuda:1"\n'
        )
        async with Pipeline(
            load(_file(folder, "both.toml", keys + "[pipeline]\nmax_requests = 30000\n"))
        ) as pipeline:
            node = pipeline.nodes[0]
            assert sorted(node.devices) == ["cuda:0", "cuda:1"], sorted(node.devices)
            names = {id(group): name for name, group in node.devices.items()}
            ran: Counter[str] = Counter()
            node.watch_starts(lambda batch: ran.update([names[id(batch.executor.device_group)]]))
            devices = [torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")]

            async def one(number: int) -> None:
                value = torch.full((1, 4), float(number), device=devices[number % 3])
                answer = await pipeline({"data": value})
                assert torch.equal(answer["result"], torch.full((1, 4), number * 3.0 + 1)), (
                    f"request {number} got {answer['result']}"
                )

            await asyncio.gather(*[one(number) for number in range(20_000)])
            assert min(ran[name] for name in names.values()) > 50, ran
            return ", ".join(f"{name} {count}" for name, count in sorted(ran.items()))

    async def rate(device: str, instances: int) -> float:
        (folder / "deep.py").write_text(
            "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n"
            "    return nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(64)])\n"
        )
        keys = (
            'backend = "PythonTensor"\nmodel = "deep.py:net"\nmax = "64x4096"\n'
            f'instance_num = {instances}\ndevice = "{device}"\n'
        )
        async with Pipeline(
            load(_file(folder, "deep.toml", keys + "[pipeline]\nmax_requests = 5000\n"))
        ) as pipeline:
            value = torch.zeros(1, 4096)

            async def some(count: int) -> None:
                for _ in range(count):
                    await pipeline({"data": value})

            await asyncio.gather(*[some(2) for _ in range(512)])
            started = time.perf_counter()
            await asyncio.gather(*[some(20) for _ in range(512)])
            return 512 * 20 / (time.perf_counter() - started)

    batches = asyncio.run(right())
    one, both = asyncio.run(rate("cuda:0", 2)), asyncio.run(rate("cuda:0,cuda:1", 4))
    return (
        f"20,000 right answers, batches: {batches}; a deep net: {one:,.0f} requests/s on one, "
        f"{both:,.0f} on both ({both / one:.2f})"
    )


@check
def every_device(folder: Path) -> str:
    """`device = "all"` has instances on each GPU, and `any` takes one whose memory is free."""
    count = torch.cuda.device_count()
    if count < 2:
        return "NOT RUN: this machine has one GPU"
    free = [free_memory(f"cuda:{number}") for number in range(count)]
    for number, figure in enumerate(free):
        assert figure is not None, "NVML does not say how much memory is free"
        seen, _ = torch.cuda.mem_get_info(number)  # this takes a context, some hundred MiB
        assert abs(seen - figure) < 2**30, f"cuda:{number}: NVML says {figure}, torch {seen}"
    held = torch.empty(8 * 2**30, dtype=torch.uint8, device="cuda:0")

    async def placed(device: str) -> list[str]:
        keys = (
            f'backend = "PythonTensor"\nmodel = "nets.py:Tag"\nmax = "8x4"\ndevice = "{device}"\n'
        )
        async with Pipeline(load(_file(folder, "placed.toml", keys))) as pipeline:
            answers = await asyncio.gather(
                *[pipeline({"data": torch.full((1, 4), float(n))}) for n in range(200)]
            )
            for number, answer in enumerate(answers):
                assert torch.equal(answer["result"], torch.full((1, 4), number * 3.0 + 1))
            return sorted(executor.device for executor in pipeline.nodes[0].executors)

    everywhere, somewhere = asyncio.run(placed("all")), asyncio.run(placed("any"))
    del held
    assert everywhere == [f"cuda:{number}" for number in range(count)], everywhere
    assert len(somewhere) == 1 and somewhere != ["cuda:0"], somewhere
    return f"{len(everywhere)} devices; any: {somewhere[0]}, while 8 GiB of cuda:0 are taken"


@check
def failed_device(folder: Path) -> str:
    """A batch that fails with its device runs again on another, and the node stays ready.

    It runs in a process of its own, because CUDA does not recover from it. On cuda:0 the net reads
    far behind its memory.
    """
    if torch.cuda.device_count() < 2:
        return "NOT RUN: this machine has one GPU"
    (folder / "far.py").write_text(FAR)
    file = _file(
        folder,
        "far.toml",
        'backend = "PythonTensor"\nmodel = "far.py:Far"\ncuda_graphs = false\nmax = 4\n'
        'device = "cuda:0,cuda:1"\ninstance_num = 2\n',
    )
    code = f"""
        import asyncio, torch
        from penstock.pipelines.pipeline import Pipeline
        async def main():
            async with Pipeline.load({str(file)!r}) as pipeline:
                node = pipeline.nodes[0]
                for _ in range(20):  # until cuda:0 has had it
                    answer = await pipeline({{"data": torch.tensor([99.0])}})
                    assert answer["result"].tolist() == [298.0], answer
                for number in range(200):
                    answer = await pipeline({{"data": torch.tensor([float(number)])}})
                    assert answer["result"].tolist() == [number * 3.0 + 1], answer
                print(node.devices_in_use, node.moved, repr(pipeline.not_ready))
        asyncio.run(main())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = "{'cuda:0': False, 'cuda:1': True} 1 ''"
    assert run.stdout.strip() == expected, run.stdout + run.stderr[-2000:]
    return "220 right answers; cuda:0 is out, and the node is ready"


@check
def tensorrt(folder: Path) -> str:
    """A TensorRT engine gives what eager gives."""
    if not find_spec("tensorrt") and not find_spec("tensorrt_rtx"):
        return "NOT RUN: no TensorRT library is installed"
    net = eager("Conv")
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, 32, 32),),
        str(folder / "conv.onnx"),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}},
    )
    engine = backend(folder, {"backend": "TensorrtTensor", "model": "conv.onnx", "max": 8})
    inputs = images(8)
    items = [{"data": image.astype(np.float32)} for image in inputs]
    engine.forward(items)
    expected = net(torch.from_numpy(np.concatenate(inputs)).float()).detach()
    worst = float((torch.cat([item["result"].cpu() for item in items]) - expected).abs().max())
    engine.close()
    assert worst < 5e-2, worst
    return f"largest difference from eager {worst:.1e}"


@check
def cuda_shared_memory_by_http(folder: Path) -> str:
    """A server in another process reads and writes memory that this one has on the GPU."""
    return regions.run(folder, grpc=False)


@check
def cuda_shared_memory_by_grpc(folder: Path) -> str:
    """The same by gRPC."""
    return regions.run(folder, grpc=True)


@check
def tests_that_need_a_gpu(folder: Path) -> str:
    """The tests named `gpu_*.py` pass.

    Pytest runs them without the project's settings, which name plugins that may be missing here.
    """
    missing = [name for name in ("pytest", "sklearn") if not find_spec(name)]
    if missing:
        return f"NOT RUN: needs {' and '.join(missing)}"
    files = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/**/gpu_*.py"))]
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(ROOT),
        "--import-mode=importlib",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    lines = run.stdout.strip().splitlines()
    assert run.returncode == 0, (
        f"{lines[-1] if lines else ''}\n{run.stdout[-4000:]}{run.stderr[-2000:]}"
    )
    return f"{len(files)} modules: {lines[-1].strip('= ')}"


def _file(folder: Path, name: str, text: str) -> Path:
    """Write a pipeline file with the one node `net`; `text` may end with a table [pipeline]."""
    path = folder / name
    head, separator, tail = text.partition("[pipeline]")
    path.write_text(f"[net]\n{head}{separator}{tail}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU on this machine")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nets.py").write_text(NETS)
        for function in CHECKS:
            started = time.perf_counter()
            try:
                seen, right = function(folder), True
            except Exception as error:
                seen, right = f"{type(error).__name__}: {error}", False
                traceback.print_exc()
            status = "not run" if seen.startswith("NOT RUN") else "ok" if right else "**wrong**"
            rows.append(
                {
                    "check": function.__name__.replace("_", " "),
                    "status": status,
                    "seen": seen,
                    "seconds": round(time.perf_counter() - started, 1),
                }
            )
    print("| check | | seen | s |\n|---|---|---|---|")
    for row in rows:
        first_line = row["seen"].splitlines()[0]
        print(f"| {row['check']} | {row['status']} | {first_line} | {row['seconds']} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if any(row["status"] == "**wrong**" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
