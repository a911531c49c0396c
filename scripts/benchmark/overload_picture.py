"""Draw docs/explanation/overload.svg: what a server answers before, during and after overload.

`python scripts/benchmark/overload_picture.py` loads a pipeline with half of its capacity, then with
three times as much, then with half again, with default settings. The model sleeps, as one on a GPU
does, seen from the processor.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path

import uvloop
from figures import ROOT, say
from open_loops import PATIENCE_SECONDS, REFUSED, Target, lateness, measure_pace, outcomes
from servers import penstock

from penstock.app.bench.client import HttpClient
from penstock.app.bench.load import Sample, open_loop
from penstock.app.bench.report import OK

FILE = ROOT / "docs" / "explanation" / "overload.svg"
PHASES = ((0.5, 10.0), (3.0, 20.0), (0.5, 15.0))
"""The load as a multiple of the capacity, and for how many seconds."""
IN_TIME_SECONDS = 1.0
KINDS = (
    ("answered within a second", "#2e7d32"),
    ("answered later", "#f9a825"),
    ("refused at once", "#90a4ae"),
    ("given up after 5 s", "#c62828"),
)

MODEL = """
import time


class Model:
    def forward(self, batch):
        time.sleep(0.04 + 0.005 * len(batch))
        for item in batch:
            item["result"] = 0
"""
PIPELINE = """
[pipeline]
name = "model"

[pipeline.inputs]
data = { kind = "bytes" }

[model]
backend = "Python[sleeping_model.py:Model]"
max = 8
instance_num = 2
"""

Counts = list[list[int]]
"""For each second the number of requests by kind; a request counts when it was due."""


async def measure() -> tuple[Counts, float]:
    """Return the counts of each second, and the capacity in requests per second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sleeping_model.py").write_text(MODEL)
        (folder / "model.toml").write_text(PIPELINE)
        with penstock(folder / "model.toml") as server:
            url = server.url("/predict/model")
            target = Target("Penstock", url, server.pid, [b"x" * 1000], [1])
            pace = await measure_pace(target, 3.0)
            client = HttpClient(url, patience=PATIENCE_SECONDS)
            begun = time.perf_counter()

            async def phase(start: float, factor: float, seconds: float) -> Sequence[Sample]:
                await asyncio.sleep(begun + start - time.perf_counter())
                rate = factor * pace.capacity
                record = await open_loop(client.send, target.bodies, rate, seconds=seconds)
                text = outcomes(record.samples, IN_TIME_SECONDS)
                say(f"{factor} ×: {text}; {lateness(record)}")
                return record.samples

            starts = accumulate((seconds for _, seconds in PHASES), initial=0.0)
            samples = chain.from_iterable(
                await asyncio.gather(
                    *[phase(start, *of) for start, of in zip(starts, PHASES, strict=False)]
                )
            )
            await client.close()
    counts: Counts = [[0] * len(KINDS) for _ in range(int(sum(s for _, s in PHASES)))]
    for sample in samples:
        second = min(int(sample.started - begun), len(counts) - 1)
        counts[second][_kind(sample)] += 1
    return counts, pace.capacity


def _kind(sample: Sample) -> int:
    """Return the index in `KINDS`."""
    if sample.status == OK:
        return 0 if sample.latency <= IN_TIME_SECONDS else 1
    return 2 if sample.status in REFUSED else 3


WIDTH, HEIGHT = 720, 290
LEFT, RIGHT, TOP, BOTTOM = 62, 700, 62, 250
"""The edges of the plot, in pixels."""


def draw(counts: Counts, capacity: float) -> str:
    """Draw bars of each second's requests, stacked by kind, and the capacity."""
    step = (RIGHT - LEFT) / len(counts)
    highest = max(map(sum, counts))

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value / highest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, (kind, colour) in enumerate(KINDS):
        x = LEFT + number * 165
        parts += [
            f'<rect x="{x}" y="10" width="12" height="12" fill="{colour}"/>',
            f'<text x="{x + 18}" y="20">{kind}</text>',
        ]
    for index, second in enumerate(counts):
        base = 0
        for count, (_, colour) in zip(second, KINDS, strict=True):
            if count:
                parts.append(
                    f'<rect x="{LEFT + index * step:.1f}" y="{y(base + count):.1f}" '
                    f'width="{step - 0.6:.1f}" height="{y(base) - y(base + count):.1f}" '
                    f'fill="{colour}"/>'
                )
            base += count
    line = y(capacity)
    parts += [
        f'<path d="M{LEFT} {line:.1f}H{RIGHT}" stroke="#000" stroke-dasharray="4 3"/>',
        f'<text x="{LEFT - 6}" y="{line + 4:.1f}" text-anchor="end">capacity</text>',
        f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" fill="none" stroke="#000"/>',
        f'<text x="{LEFT}" y="{TOP - 12}">requests per second, by when they came</text>',
    ]
    parts += [
        f'<text x="{LEFT + second * step:.1f}" y="{BOTTOM + 18}" text-anchor="middle">'
        f"{second} s</text>"
        for second in range(0, len(counts) + 1, 5)
    ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    FILE.write_text(draw(*uvloop.run(measure())))


if __name__ == "__main__":
    main()
