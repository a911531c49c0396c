"""JPEG -> ResNet-18 by OpenVINO: over HTTP, in process, and the best loops, in turn.

Server and pipeline run 2 instances with batches of up to 8. (The module is not called openvino,
since that is the name of the package.)
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from figures import Figure, of_runs, say
from resnet import best_layout, exported, load
from resnet_loop import Layout, Loop, layouts, read_model
from servers import penstock

from penstock.app.bench.images import synthetic_jpegs
from penstock.backends.engines.openvino.library import capabilities, core
from penstock.pipelines.pipeline import Pipeline

PART = "OpenVINO"
CLIENTS = 16
SIZES = {True: (3.0, 3), False: (6.0, 5)}
"""Quick or not -> the seconds of a run, and how many there are of each kind."""


class Session:
    """A request of a compiled model, with the methods of ONNX Runtime's session."""

    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._inputs = [SimpleNamespace(name=0)]

    def get_inputs(self) -> list[Any]:
        return self._inputs

    def run(self, _: None, feed: dict[int, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [self._request.infer(feed, share_inputs=True, share_outputs=True)[0]]


def open_sessions(model: bytes, layout: Layout, precision: str) -> list[Session]:
    """Compile the model once, with a stream for each thread of a layout."""
    compiled = core().compile_model(
        core().read_model(model),
        "CPU",
        {
            "NUM_STREAMS": layout.threads,
            "INFERENCE_NUM_THREADS": layout.threads * layout.threads_per_run,
            "INFERENCE_PRECISION_HINT": precision,
            "ENABLE_CPU_PINNING": False,
        },
    )
    return [Session(compiled) for _ in range(layout.threads)]


def measure(quick: bool) -> list[Figure]:
    seconds, _ = SIZES[quick]
    jpegs = synthetic_jpegs()
    figures = []
    with exported() as folder:
        model = read_model(folder / "resnet18.onnx")
        candidates = layouts(len(os.sched_getaffinity(0)))
        onnx, _ = best_layout(model, candidates, jpegs, seconds)
        names = {"fp32": "f32", "bf16": "bf16"}
        for precision in ("fp32", *(["bf16"] if "BF16" in capabilities() else [])):
            opener = partial(open_sessions, precision=names[precision])
            loop, found = best_layout(model, candidates, jpegs, seconds, opener)
            figures += [
                Figure(PART, f"{precision}, {each.what}", each.value, each.unit, runs=each.runs)
                for each in found
            ]
            figures += _compare(_pipeline(folder, precision), precision, (onnx, loop), jpegs, quick)
    return figures


def _pipeline(folder: Path, precision: str) -> Path:
    """Write the example's pipeline of one node with OpenvinoTensor, and return its file."""
    text = (folder / "resnet18_one.toml").read_text().replace("OnnxTensor", "OpenvinoTensor")
    file = folder / f"{precision}.toml"
    file.write_text(f'{text}precision = "{precision}"\n')
    return file


def _compare(
    file: Path,
    precision: str,
    loops: tuple[Loop, Loop],
    jpegs: Sequence[bytes],
    quick: bool,
) -> list[Figure]:
    onnx, loop = loops
    seconds, pairs = SIZES[quick]
    rates: dict[str, list[float]] = {"onnx": [], "loop": [], "pipeline": [], "16": [], "64": []}
    costs: dict[str, list[float]] = {"loop": [], "server": []}
    with penstock(file) as server:
        load(server, jpegs, CLIENTS, 1.0)
        for _ in range(pairs):
            rates["onnx"].append(onnx.rate(seconds))
            used = time.process_time()
            rates["loop"].append(loop.rate(seconds))
            used = time.process_time() - used
            costs["loop"].append(used / (rates["loop"][-1] * seconds) * 1000)
            report = load(server, jpegs, 16, seconds)
            rates["16"].append(report.qps)
            costs["server"].append((report.usage.cpu_percent or math.nan) * 10 / report.qps)
            rates["loop"].append(loop.rate(seconds))
            rates["64"].append(load(server, jpegs, 64, seconds).qps)
    for _ in range(pairs):
        rates["loop"].append(loop.rate(seconds))
        rates["pipeline"].append(asyncio.run(_drive(file, jpegs, seconds)))
    say(f"{PART}, {precision}: { {name: [round(r, 1) for r in v] for name, v in rates.items()} }")
    before, after = rates["loop"][: 2 * pairs : 2], rates["loop"][1 : 2 * pairs : 2]
    alone = rates["loop"][2 * pairs :]

    def ratio(what: str, ours: list[float], others: list[float], **more: Any) -> Figure:
        ratios = [our / other for our, other in zip(ours, others, strict=True)]
        note = f"{median(ours):.1f} to {median(others):.1f} images/s"
        return of_runs(PART, f"{precision}, {what}", ratios, note=note, **more)

    spent = [ours / other for ours, other in zip(costs["server"], costs["loop"], strict=True)]
    note = f"{median(costs['server']):.1f} to {median(costs['loop']):.1f} ms"
    what = f"{precision}, the server's processor time an image ÷ the best loop's"
    return [
        of_runs(PART, what, spent, most=1.05, note=note),
        ratio("best loop ÷ ONNX Runtime's best loop", before, rates["onnx"]),
        ratio("HTTP ÷ the best loop, 16 connections", rates["16"], before, least=0.95),
        ratio("HTTP ÷ the best loop, 64 connections", rates["64"], after, least=0.95),
        ratio("in process ÷ the best loop, 16 callers", rates["pipeline"], alone, least=0.95),
    ]


async def _drive(file: Path, jpegs: Sequence[bytes], seconds: float) -> float:
    """Return the images per second of a pipeline in this process, with CLIENTS callers."""
    source = itertools.cycle(jpegs)
    async with Pipeline.load(file) as pipeline:
        await asyncio.gather(*(pipeline({"data": next(source)}) for _ in range(CLIENTS)))
        started = time.perf_counter()
        counts = [0] * CLIENTS

        async def client(index: int) -> None:
            while time.perf_counter() < started + seconds:
                await pipeline({"data": next(source)})
                counts[index] += 1

        await asyncio.gather(*(client(index) for index in range(CLIENTS)))
        return sum(counts) / (time.perf_counter() - started)
