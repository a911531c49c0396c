"""What only a GPU can show: each check is a function that returns what it saw, and raises AssertionError for what is wrong."""

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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from penstock.backends.base import Context
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]

NETS = '''
import torch
from torch import nn

class Conv(nn.Module):
    """Small, and its answer depends on every pixel."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(16, 10)
    def forward(self, x):
        return self.head(self.body(x).flatten(1))

class Tag(nn.Module):
    """Answers what it was sent, times three and one: who gets another's answer notices."""
    def forward(self, x):
        return x * 3 + 1

class Huge(nn.Module):
    def forward(self, x):
        return torch.empty(int(x.max()) * 2**30, dtype=torch.uint8, device=x.device).sum()[None].expand(len(x))

class Asserts(nn.Module):
    """Fails on the device, later than the call that asks for it, for an index out of range."""
    def forward(self, x):
        return torch.arange(4, device=x.device)[x.long()]
'''

CHECKS: list[Callable[[Path], str]] = []


def check(function: Callable[[Path], str]) -> Callable[[Path], str]:
    CHECKS.append(function)
    return function


def backend(folder: Path, node: dict[str, Any]) -> Any:
    """The one backend of a node, made and warmed up on this thread."""
    config = load({"net": node})
    group = config.nodes["net"].groups[0]
    made = group.spec.create(Context(node="net", directory=folder, max=group.max))
    made.warm_up()
    return made


def images(count: int, size: int = 32) -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (1, 3, size, size), np.uint8) for _ in range(count)]


def eager(folder: Path, name: str) -> Any:
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    return scope[name]().eval()


def node(name: str, **keys: Any) -> dict[str, Any]:
    return {"backend": "PythonTensor", "model": f"nets.py:{name}", **keys}


@check
def machine(folder: Path) -> str:
    free, total = torch.cuda.mem_get_info()
    libraries = [
        name
        for name in ("tensorrt", "tensorrt_rtx", "torchvision", "safetensors")
        if find_spec(name)
    ]
    name = torch.cuda.get_device_name()
    return f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free; torch {torch.__version__}; {', '.join(libraries) or 'no libraries'}"


@check
def engines_against_eager(folder: Path) -> str:
    """TorchScript, torch.export and Python, on the GPU, in float32, against eager on the CPU."""
    net = eager(folder, "Conv")
    sample = torch.zeros(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.jit.save(torch.jit.trace(net, sample), str(folder / "conv.pt"))
    torch.export.save(
        torch.export.export(net, (sample,), dynamic_shapes=({0: batch},)), folder / "conv.pt2"
    )
    given = images(8)
    statistics = {"mean": "100,110,120", "std": "50,60,70", "max": "8x3x32x32"}
    wanted = net((torch.from_numpy(np.concatenate(given)).float() - torch.tensor([100.0, 110, 120]).view(1, 3, 1, 1))
                 / torch.tensor([50.0, 60, 70]).view(1, 3, 1, 1)).detach()  # fmt: skip
    seen = []
    for name, keys in (
        ("TorchScriptTensor", {"backend": "TorchScriptTensor", "model": "conv.pt"}),
        ("TorchExportTensor", {"backend": "TorchExportTensor", "model": "conv.pt2"}),
        ("PythonTensor", node("Conv")),
        ("PythonTensor channels_last", node("Conv", channels_last=True)),
        ("PythonTensor fp16", node("Conv", precision="fp16")),
        ("PythonTensor bf16", node("Conv", precision="bf16")),
    ):
        made = backend(folder, keys | statistics)
        assert made.device.startswith("cuda"), made.device
        worst = 0.0
        for size in (1, 2, 3, 5, 8):
            items = [{"data": image} for image in given[:size]]
            made.forward(items)
            found = torch.cat([item["result"] for item in items])
            assert found.device.type == "cpu"
            worst = max(worst, float((found - wanted[:size]).abs().max()))
        made.close()
        limit = (
            1e-1 if "bf16" in name else 2e-2 if "fp16" in name else 2e-3
        )  # TF32 in cuDNN's convolutions
        assert worst < limit, f"{name}: {worst}"
        seen.append(f"{name} {worst:.1e}")
    return "largest difference: " + ", ".join(seen)


@check
def graphs_and_buckets(folder: Path) -> str:
    """A graph a bucket; every batch size gives what eager gives; replay is faster than launching."""
    made = backend(folder, node("Conv", max="16x3x32x32", mean="0", std="255"))
    graphs = len(made.children[0]._half._graphs)
    assert graphs == 5, f"{graphs} graphs, expected one for each of 1, 2, 4, 8, 16"
    plain = backend(folder, node("Conv", max="16x3x32x32", mean="0", std="255", cuda_graphs=False))
    given = images(16)
    times = {}
    for size in range(1, 17):
        ours, theirs = (
            [{"data": image} for image in given[:size]],
            [{"data": image} for image in given[:size]],
        )
        made.forward(ours)
        plain.forward(theirs)
        difference = (
            (
                torch.cat([item["result"] for item in ours])
                - torch.cat([item["result"] for item in theirs])
            )
            .abs()
            .max()
        )
        assert difference < 2e-3, f"batch {size}: {difference}"
    for name, each in (("graph", made), ("launched", plain)):
        begun = time.perf_counter()
        for _ in range(300):
            each.forward([{"data": image} for image in given[:4]])
        times[name] = (time.perf_counter() - begun) / 300 * 1e6
    made.close()
    plain.close()
    return f"5 graphs; batch of 4: {times['graph']:.0f} µs with graphs, {times['launched']:.0f} µs without"


@check
def many_instances_without_cross_talk(folder: Path) -> str:
    """20,000 requests at once through 4 instances on one device: each gets its own answer, and memory stays."""

    async def main() -> str:
        node_keys = (
            'backend = "PythonTensor"\nmodel = "nets.py:Tag"\nmax = "32x4"\ninstance_num = 4\n'
        )
        config = load(_file(folder, "tags.toml", node_keys + "[pipeline]\nmax_requests = 30000\n"))
        async with Pipeline(config) as pipeline:
            groups = {id(executor.group) for executor in pipeline.nodes[0].executors}
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
            begun = time.perf_counter()
            await asyncio.gather(*[one(number) for number in range(20_000)])
            seconds = time.perf_counter() - begun
            after = torch.cuda.memory_reserved()
            assert after <= before + 2**20, f"{before} bytes before, {after} after"
            batches = pipeline.nodes[0].statistics
            size = batches.batch_size.sum / batches.batches
            return f"20,000 right answers in {seconds:.2f} s, batches of {size:.1f}; {after / 2**20:.0f} MiB reserved before and after"

    return asyncio.run(main())


@check
def sharing_weights(folder: Path) -> str:
    """A second instance takes no second copy of the weights."""
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
    for made in (first, second, third):
        made.close()
    assert shared < 2**20 < own, (shared, own)
    return f"of 256 MiB of weights a second instance takes {shared / 2**20:.1f} MiB, without sharing {own / 2**20:.0f} MiB"


@check
def out_of_memory(folder: Path) -> str:
    """A batch that asks for too much fails with what is free; the next one runs."""

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
                raise AssertionError("100,000 GiB were there")
            assert "out of memory" in text and "free" in text, text
            assert not pipeline.not_ready, pipeline.not_ready
            answer = await pipeline({"data": torch.full((1,), 1.0)})
            assert answer["result"].numel() == 1
            return text.splitlines()[0][:220]

    return asyncio.run(main())


@check
def device_error(folder: Path) -> str:
    """An error that the device reports late fails its own batch, and the node says that it is not ready. In a process of its own:
    CUDA does not recover from it.
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
    """The torch image backends, from JPEG to a tensor on the GPU, against the CPU's."""
    from penstock.app.bench.images import synthetic_jpegs

    jpegs = synthetic_jpegs(4)
    chain = {
        "backend": "S[DecodeTensor,ResizeTensor,CvtColorTensor]",
        "resize_h": 224,
        "resize_w": 224,
        "color": "rgb",
    }
    on_gpu = backend(folder, chain)
    items = [{"data": jpeg} for jpeg in jpegs]
    on_gpu.forward(items)
    config = load({"net": chain})
    on_cpu = config.nodes["net"].groups[0].spec.create(Context(node="net", device="cpu"))
    others = [{"data": jpeg} for jpeg in jpegs]
    on_cpu.forward(others)
    worst = 0.0
    for ours, theirs in zip(items, others, strict=True):
        found, wanted = ours["result"], theirs["result"]
        assert found.is_cuda and not wanted.is_cuda
        assert found.shape == wanted.shape, (found.shape, wanted.shape)
        worst = max(worst, float((found.cpu().float() - wanted.float()).abs().mean()))
    assert worst < 3.0, worst
    return f"mean difference of a pixel to the CPU's decoder: {worst:.2f} of 255"


@check
def two_devices(folder: Path) -> str:
    """One node on two GPUs: a group each, both at work, every answer right, wherever its input lies; and twice the rate of one."""
    if torch.cuda.device_count() < 2:
        return "NOT RUN: one GPU here"
    second = backend(folder, node("Conv", device="cuda:1", max="8x3x32x32", mean="0", std="255"))
    graphs = len(second.children[0]._half._graphs)
    first = backend(folder, node("Conv", device="cuda:0", max="8x3x32x32", mean="0", std="255"))
    given = images(8)
    for size in (1, 3, 8):
        ours, theirs = (
            [{"data": image} for image in given[:size]],
            [{"data": image} for image in given[:size]],
        )
        second.forward(ours)
        first.forward(theirs)
        difference = (
            (
                torch.cat([item["result"] for item in ours])
                - torch.cat([item["result"] for item in theirs])
            )
            .abs()
            .max()
        )
        assert difference < 1e-5, f"batch {size}: {difference}"
    assert graphs == 4, f"{graphs} graphs on cuda:1, expected one for each of 1, 2, 4, 8"
    first.close()
    second.close()

    async def right() -> str:
        keys = 'backend = "PythonTensor"\nmodel = "nets.py:Tag"\nmax = "32x4"\ninstance_num = 4\ndevice = "cuda:0,cuda:1"\n'
        async with Pipeline(
            load(_file(folder, "both.toml", keys + "[pipeline]\nmax_requests = 30000\n"))
        ) as pipeline:
            found = pipeline.nodes[0]
            assert sorted(found.devices) == ["cuda:0", "cuda:1"], sorted(found.devices)
            names = {id(group): name for name, group in found.devices.items()}
            ran: dict[str, int] = {}
            found.watch_starts(
                lambda batch: ran.update(
                    {(name := names[id(batch.executor.group)]): ran.get(name, 0) + 1}
                )
            )
            places = [torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")]

            async def one(number: int) -> None:
                value = torch.full((1, 4), float(number), device=places[number % 3])
                answer = await pipeline({"data": value})
                assert torch.equal(answer["result"], torch.full((1, 4), number * 3.0 + 1)), (
                    f"request {number} got {answer['result']}"
                )

            await asyncio.gather(*[one(number) for number in range(20_000)])
            assert min(ran.get(name, 0) for name in names.values()) > 50, ran
            return ", ".join(f"{name} {count}" for name, count in sorted(ran.items()))

    async def rate(device: str, instances: int) -> float:
        (folder / "deep.py").write_text(
            "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n"
            "    return nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(64)])\n"
        )
        keys = f'backend = "PythonTensor"\nmodel = "deep.py:net"\nmax = "64x4096"\ninstance_num = {instances}\ndevice = "{device}"\n'
        async with Pipeline(
            load(_file(folder, "deep.toml", keys + "[pipeline]\nmax_requests = 5000\n"))
        ) as pipeline:
            value = torch.zeros(1, 4096)

            async def some(count: int) -> None:
                for _ in range(count):
                    await pipeline({"data": value})

            await asyncio.gather(*[some(2) for _ in range(512)])
            begun = time.perf_counter()
            await asyncio.gather(*[some(20) for _ in range(512)])
            return 512 * 20 / (time.perf_counter() - begun)

    batches = asyncio.run(right())
    one, both = asyncio.run(rate("cuda:0", 2)), asyncio.run(rate("cuda:0,cuda:1", 4))
    return f"20,000 right answers, batches: {batches}; a deep net: {one:,.0f} requests/s on one, {both:,.0f} on both ({both / one:.2f})"


@check
def tensorrt(folder: Path) -> str:
    if not find_spec("tensorrt") and not find_spec("tensorrt_rtx"):
        return "NOT RUN: no TensorRT library here"
    net = eager(folder, "Conv")
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, 32, 32),),
        str(folder / "conv.onnx"),
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "n"}},
    )
    made = backend(folder, {"backend": "TensorrtTensor", "model": "conv.onnx", "max": 8})
    given = images(8)
    items = [{"data": image.astype(np.float32)} for image in given]
    made.forward(items)
    wanted = net(torch.from_numpy(np.concatenate(given)).float()).detach()
    worst = float((torch.cat([item["result"].cpu() for item in items]) - wanted).abs().max())
    made.close()
    assert worst < 5e-2, worst
    return f"largest difference to eager {worst:.1e}"


@check
def tests_that_need_a_gpu(folder: Path) -> str:
    """`gpu_*.py` among the tests, by pytest alone: the project's settings of it name plugins that need not be here."""
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
    path = folder / name
    head, separator, tail = text.partition("[pipeline]")
    path.write_text(f"[net]\n{head}{separator}{tail}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check", description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "nets.py").write_text(NETS)
        for function in CHECKS:
            begun = time.perf_counter()
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
                    "seconds": round(time.perf_counter() - begun, 1),
                }
            )
    print("| check | | seen | s |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['check']} | {row['status']} | {row['seen'].splitlines()[0]} | {row['seconds']} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if any(row["status"] == "**wrong**" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
