"""JPEG -> ResNet-50 over HTTP by several processes, on one GPU and on several.

Not run where there is no GPU: the figures say so.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path

from figures import ROOT, Figure, say
from servers import penstock

from penstock.app.bench.images import synthetic_jpegs

PART = "scale"
LESSER = "JPEG → ResNet-50 ÷ the lesser of decoding alone and engine alone"
CLIENTS, GENERATORS = 510, 3
"""Connections, and the processes that send."""

DECODE = """
[pipeline]
name = "resnet50"

[pipeline.inputs]
data = {{ kind = "image" }}

[decode]
backend = "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]"
resize_h = 224
resize_w = 224
color = "rgb"
force_range = "1,8"
instance_num = {decoders}
next = "net"
"""


def measure(quick: bool) -> list[Figure]:
    gpus = count()
    if not gpus:
        reason = "not run: no GPU on this machine"
        say(f"   {reason}")
        return [
            Figure(PART, LESSER, math.nan, least=0.95, note=reason),
            *(
                Figure(PART, _linear(number), math.nan, least=0.95, note=reason)
                for number in (2, 4)
            ),
            Figure(PART, _latency(), math.nan, most=1.15, note=reason),
        ]
    return on_gpus(gpus, 3.0 if quick else 8.0)


def count() -> int:
    """Return how many GPUs torch can use."""
    try:
        import torch
    except ImportError:
        return 0
    return int(torch.cuda.device_count())


def on_gpus(gpus: int, seconds: float) -> list[Figure]:
    """Measure with 1, 2, 4 and 8 of so many GPUs."""
    sys.path.append(str(ROOT / "scripts" / "gpu"))
    from bench import NET, decode_alone, engine_alone, served

    jpegs = synthetic_jpegs()
    processors = len(os.sched_getaffinity(0))
    decoded = decode_alone("cpu", jpegs, seconds, processors)
    engine, batch = engine_alone(2 * seconds)
    say(f"   decoding alone {decoded:,.0f}, engine alone {engine:,.0f} images/s at batch {batch}")
    net = NET.format(here=ROOT / "scripts" / "gpu", batch=min(batch, 64), instances="{}")
    rates: dict[int, float] = {}
    p50s: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "resnet50.toml")
        for number in [each for each in (1, 2, 4, 8) if each <= gpus]:
            devices = ",".join(f"cuda:{index}" for index in range(number))
            text = DECODE.format(decoders=processors) + net.format(2 * number)
            file.write_text(f'{text}device = "{devices}"\n')
            with penstock(file, "--processes", "auto") as server:
                url = server.url("/predict/resnet50")
                served(url, jpegs, CLIENTS, GENERATORS, 2.0)
                rates[number], _, _ = served(url, jpegs, CLIENTS, GENERATORS, seconds)
                say(f"   {number} GPUs: {rates[number]:,.0f} images/s")
                if number == 1:
                    _, p50s["auto"], _ = served(url, jpegs, 1, 1, seconds / 2)
            if number == 1:
                with penstock(file) as server:
                    _, p50s["one"], _ = served(
                        server.url("/predict/resnet50"), jpegs, 1, 1, seconds / 2
                    )
    note = (
        f"engine {engine:,.0f} (batch {batch}), decoding {decoded:,.0f} images/s, {rates[1]:,.0f}"
    )
    figures = [Figure(PART, LESSER, rates[1] / min(engine, decoded), least=0.95, note=note)]
    for number in (2, 4, 8):
        if number in rates:
            most = min(number * rates[1], decoded)
            note = f"{rates[number]:,.0f} images/s; decoding alone allows {decoded:,.0f}"
            ratio = rates[number] / most
        elif number <= 4:
            note, ratio = f"not run: {gpus} GPU", math.nan
        else:
            continue
        figures.append(Figure(PART, _linear(number), ratio, least=0.95, note=note))
    note = f"{p50s['auto']:.2f} to {p50s['one']:.2f} ms"
    figures.append(Figure(PART, _latency(), p50s["auto"] / p50s["one"], most=1.15, note=note))
    return figures


def _linear(number: int) -> str:
    return f"JPEG → ResNet-50, {number} GPUs ÷ {number} × one, or decoding alone if that is less"


def _latency() -> str:
    return "JPEG → ResNet-50, one client's p50: several processes ÷ one"
