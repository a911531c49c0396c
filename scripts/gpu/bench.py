"""JPEG -> ResNet-50 over HTTP, compared with its parts.

These are one engine behind a lock at batch 1, the engine alone, and decoding alone.
`scripts/gpu_bench engines` and `scripts/gpu_bench images` measure other things; both have --help.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmark"))

from figures import Figure, machine, say, table
from servers import penstock

from penstock.app.bench.images import synthetic_jpegs
from penstock.app.bench.measure import Load, bench_url
from penstock.backends.base import Backend, Context
from penstock.backends.malloc import keep_memory
from penstock.pipelines.config.load import load

HERE = Path(__file__).resolve().parent
PART = "GPU"
BATCHES = (1, 8, 16, 32, 64, 128)

NET = """
[net]
backend = "S[PythonTensor,SoftmaxArgMaxTensor]"
model = "{here}/models.py:resnet50"
precision = "fp16"
channels_last = true
mean = "123.675,116.28,103.53"
std = "58.395,57.12,57.375"
max = "{batch}x3x224x224"
instance_num = {instances}
"""

DECODE = {
    "cpu": """
[decode]
backend = "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]"
resize_h = 224
resize_w = 224
color = "rgb"
force_range = "1,8"
executor = "process"
instance_num = {decoders}
next = "net"
""",
    **dict.fromkeys(
        ("nvjpeg", "nvimgcodec"),
        """
[decode]
backend = "S[DecodeTensor,ResizeTensor,CvtColorTensor]"
decoder = "{decode}"
resize_h = 224
resize_w = 224
color = "rgb"
max = 32
instance_num = {decoders}
next = "net"
""",
    ),
}


def pipeline(decode: str, *, batch: int, instances: int, decoders: int) -> str:
    """Return the text of a pipeline file."""
    text = DECODE[decode] + NET
    return text.format(
        here=HERE, decode=decode, batch=batch, instances=instances, decoders=decoders
    )


def create_backend(text: str, node: str) -> Backend:
    """Create the backend of one node and warm it up, on this thread."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text.replace('executor = "process"\n', ""))
        file.flush()
        config = load(Path(file.name))
    group = config.nodes[node].instance_groups[0]
    backend = group.spec.create(Context(node=node, directory=config.directory, max=group.max))
    backend.warm_up()
    return backend


def rate(work: Callable[[], int], seconds: float, threads: int = 1) -> float:
    """Call `work` from `threads` for `seconds`, and return the items per second.

    Each call returns how many items it did.
    """
    done = [0] * threads
    end = time.perf_counter() + seconds

    def run(index: int) -> None:
        while time.perf_counter() < end:
            done[index] += work()

    running = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    started = time.perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def engine_alone(seconds: float) -> tuple[float, int]:
    """Return the images per second of one instance at its best batch, and that batch.

    The images are arrays in memory.
    """
    engine = create_backend(pipeline("cpu", batch=max(BATCHES), instances=1, decoders=1), "net")
    images = [
        np.random.default_rng(number).integers(0, 256, (1, 3, 224, 224), np.uint8)
        for number in range(max(BATCHES))
    ]
    rates = {}
    for batch in BATCHES:

        def work(batch: int = batch) -> int:
            engine.forward([{"data": image} for image in images[:batch]])
            return batch

        work()
        rates[batch] = rate(work, seconds / len(BATCHES))
        say(f"{PART}, engine alone at batch {batch}: {rates[batch]:,.0f} images/s")
    engine.close()
    best = max(rates, key=lambda batch: rates[batch])
    return rates[best], best


def decode_alone(decode: str, jpegs: Sequence[bytes], seconds: float, threads: int) -> float:
    """Return the images per second that `threads` decode and resize, with nothing else at work."""
    text = pipeline(decode, batch=1, instances=1, decoders=1)
    local = threading.local()
    batch = 8 if decode == "cpu" else 32

    def work() -> int:
        if not hasattr(local, "backend"):
            local.backend = create_backend(text, "decode")
        local.backend.forward([{"data": jpegs[index % len(jpegs)]} for index in range(batch)])
        return batch

    rate(work, 1.0, threads)
    return rate(work, seconds, threads)


def behind_a_lock(jpegs: Sequence[bytes], seconds: float, threads: int) -> float:
    """Return the images per second without a server.

    Each thread decodes an image and then takes its turn at the one engine, at batch 1.
    """
    text = pipeline("cpu", batch=1, instances=1, decoders=1)
    engine = create_backend(text, "net")
    lock = threading.Lock()
    local = threading.local()

    def work() -> int:
        if not hasattr(local, "decoder"):
            local.decoder = create_backend(text, "decode")
        item: dict[str, Any] = {"data": jpegs[0]}
        local.decoder.forward([item])
        item["data"] = item.pop("result")
        with lock:
            engine.forward([item])
        return 1

    rate(work, 1.0, threads)
    images_per_second = rate(work, seconds, threads)
    engine.close()
    return images_per_second


def _load(
    url: str, jpegs: Sequence[bytes], clients: int, seconds: float
) -> tuple[float, float, float]:
    report = asyncio.run(
        bench_url(url, Load(jpegs, clients, seconds=seconds, warm_up=clients), None)
    )
    if set(report.outcomes) != {"200"}:
        raise RuntimeError(f"not all requests were answered: {report.outcomes}")
    return report.qps, report.latency.p50, report.latency.p99


def served(
    url: str, jpegs: Sequence[bytes], clients: int, processes: int, seconds: float
) -> tuple[float, float, float]:
    """Load a server from `processes`, and return the requests per second, p50 and p99 in ms.

    The percentiles are those of the slowest process.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_load, url, jpegs, clients // processes, seconds) for _ in range(processes)
        ]
        rates, p50s, p99s = zip(*(future.result() for future in futures), strict=True)
    return sum(rates), max(p50s), max(p99s)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu_bench", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="length of each measurement; default: 8"
    )
    parser.add_argument("--decode", choices=[*DECODE], default="cpu", help="what decodes JPEGs")
    parser.add_argument(
        "--decoders",
        type=int,
        default=0,
        help="decoding instances; default: 4 of 5 processors, or 3 if a GPU decodes",
    )
    parser.add_argument(
        "--clients",
        type=int,
        default=0,
        help="connections; default: 510, or 1020 if a GPU decodes",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=0,
        help="processes of the clients; default: 3, or 6 if a GPU decodes",
    )
    parser.add_argument(
        "--instances",
        type=int,
        default=0,
        help="engine instances; default: 3, or 2 if a GPU decodes",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU on this machine")
    cv2.setNumThreads(1)
    keep_memory()
    jpegs = synthetic_jpegs()
    processors = len(os.sched_getaffinity(0))
    on_cpu = arguments.decode == "cpu"
    decoders = arguments.decoders or (max(2, round(processors * 0.8)) if on_cpu else 3)
    clients, processes = (
        arguments.clients or (510 if on_cpu else 1020),
        arguments.processes or (3 if on_cpu else 6),
    )
    instances = arguments.instances or (3 if on_cpu else 2)
    seconds = arguments.seconds
    locked = behind_a_lock(jpegs, seconds, processors)
    say(f"{PART}, behind a lock: {locked:,.0f} images/s")
    alone, best = engine_alone(2 * seconds)
    decoded = 0.0
    for threads in sorted({decoders, processors // 2, processors} if on_cpu else {decoders}):
        decoding = decode_alone(arguments.decode, jpegs, seconds / 2, threads)
        say(f"{PART}, decoding alone, {threads} threads: {decoding:,.0f} images/s")
        decoded = max(decoded, decoding)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "resnet50.toml")
        file.write_text(
            pipeline(arguments.decode, batch=min(best, 64), instances=instances, decoders=decoders)
        )
        with penstock(file) as server:
            url = server.url("/predict/resnet50")
            served(url, jpegs, clients, processes, 2.0)
            over_http, p50, p99 = served(url, jpegs, clients, processes, seconds)
    lesser = min(alone, decoded)
    name = torch.cuda.get_device_name()
    note = (
        f"{name}; {clients} connections, p50 {p50:.0f} ms, p99 {p99:.0f} ms; "
        f"{decoders} decoders, {instances} instances"
    )
    parts_note = (
        f"engine {alone:,.0f} (batch {best}), "
        f"decoding on the {arguments.decode} {decoded:,.0f} images/s"
    )
    figures = [
        Figure(PART, "ResNet-50 over HTTP", over_http, "images/s", note=note),
        Figure(
            PART,
            "÷ one engine behind a lock at batch 1",
            over_http / locked,
            least=3.5,
            note=f"{locked:,.0f} images/s",
        ),
        Figure(
            PART,
            "÷ the lesser of engine alone and decoding alone",
            over_http / lesser,
            least=0.9,
            note=parts_note,
        ),
    ]
    print(table(figures, machine(), False))
    if arguments.json:
        arguments.json.write_text(
            json.dumps(
                {
                    "machine": machine(),
                    "device": name,
                    "figures": [figure.to_dict() for figure in figures],
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
