"""JPEG -> ResNet-18 over HTTP, and the best loop without HTTP, in turn.

The server runs 2 instances with batches of up to 8.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from figures import ROOT, Figure, of_runs, say
from resnet_loop import Layout, Loop, layouts, open_sessions, read_model
from servers import Server, penstock

from penstock.app.bench.images import synthetic_jpegs
from penstock.app.bench.measure import Load, bench_url
from penstock.app.bench.report import Report

PART = "ResNet-18"
PATH = "/predict/resnet18"


def measure(quick: bool) -> list[Figure]:
    seconds, pairs = (3.0, 3) if quick else (6.0, 5)
    jpegs = synthetic_jpegs()
    with exported() as folder:
        model = read_model(folder / "resnet18.onnx")
        processors = len(os.sched_getaffinity(0))
        best, figures = best_layout(model, layouts(processors), jpegs, seconds)
        loop = best if best.layout.threads > 1 else Loop(model, Layout(processors, 1, 1), jpegs)
        with penstock(folder / "resnet18_one.toml") as server:
            load(server, jpegs, 16, 1.0)
            shares: dict[int, list[float]] = {16: [], 64: []}
            reports: dict[int, list[Report]] = {16: [], 64: []}
            for _ in range(pairs):
                for clients, ratios in shares.items():
                    plain = best.rate(seconds)
                    report = load(server, jpegs, clients, seconds)
                    reports[clients].append(report)
                    ratios.append(report.qps / plain)
                    say(
                        f"{PART}, {clients}: loop {plain:.1f}, server {report.qps:.1f} images/s, "
                        f"{ratios[-1]:.3f}"
                    )
            for clients, ratios in shares.items():
                rate = median(report.qps for report in reports[clients])
                note = f"{rate:.1f} images/s, {_usage(reports[clients][-1])}"
                what = f"rate ÷ the best loop's, {clients} connections"
                figures.append(of_runs(PART, what, ratios, least=0.98, note=note))
            figures += _single(server, jpegs, loop, pairs, 40 if quick else 100)
    return figures


def _single(
    server: Server, jpegs: Sequence[bytes], loop: Loop, pairs: int, count: int
) -> list[Figure]:
    alone = [
        (loop.single(count), load(server, jpegs, 1, count / 40).latency.p50) for _ in range(pairs)
    ]
    ratios = [ours / plain for plain, ours in alone]
    our_time, plain_time = median(ours for _, ours in alone), median(plain for plain, _ in alone)
    note = f"{our_time:.1f} to {plain_time:.1f} ms, one thread a run"
    return [
        of_runs(
            PART,
            "p50 at one connection ÷ one image's time in the loop",
            ratios,
            most=1.1,
            note=note,
        )
    ]


def best_layout(
    model: bytes,
    candidates: list[Layout],
    jpegs: Sequence[bytes],
    seconds: float,
    opener: Callable[[bytes, Layout], list[Any]] = open_sessions,
) -> tuple[Loop, list[Figure]]:
    """Try all layouts, and return the fastest loop."""
    loops = [Loop(model, layout, jpegs, opener) for layout in candidates]
    rates: dict[Layout, list[float]] = {layout: [] for layout in candidates}
    for _ in range(3):
        for loop in loops:
            rates[loop.layout].append(loop.rate(seconds / 3))
    best = max(loops, key=lambda loop: median(rates[loop.layout]))
    others = "; ".join(
        f"{layout}: {median(runs):.1f}" for layout, runs in rates.items() if layout != best.layout
    )
    return best, [
        of_runs(PART, f"best loop: {best.layout}", rates[best.layout], "images/s", note=others)
    ]


def _usage(report: Report) -> str:
    usage = report.usage
    return (
        ""
        if usage.cpu_percent is None or usage.rss_max_mb is None
        else f"CPU {usage.cpu_percent:.0f} %, {usage.rss_max_mb:.0f} MB"
    )


def load(server: Server, jpegs: Sequence[bytes], clients: int, seconds: float) -> Report:
    """Run a closed loop from this process. Raises RuntimeError unless every answer is a 200."""
    report = asyncio.run(
        bench_url(
            server.url(PATH), Load(jpegs, clients, seconds=seconds, warm_up=clients), server.pid
        )
    )
    if set(report.outcomes) != {"200"}:
        raise RuntimeError(f"not all requests were answered: {report.outcomes}")
    return report


@contextmanager
def exported() -> Iterator[Path]:
    """Yield a folder with the ResNet example and its exported model."""
    example = ROOT / "examples" / "resnet"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in example.glob("*.toml"):
            shutil.copy(file, folder)
        command = [
            sys.executable,
            str(example / "export.py"),
            "resnet18",
            "--output",
            str(folder / "resnet18.onnx"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                "ResNet-18 can't be exported, which needs PyTorch: "
                f"{done.stderr.strip().splitlines()[-1]}"
            )
        yield folder
