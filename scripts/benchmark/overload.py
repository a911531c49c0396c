"""The ResNet-18 server under an open loop of twice its capacity: what it still answers in time.

Each request has a deadline of 500 ms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import mean, median

from figures import Figure, say
from resnet import PATH, exported, load
from servers import Server, penstock

from penstock.app.bench.client import HttpClient
from penstock.app.bench.images import synthetic_jpegs
from penstock.app.bench.load import Record, closed_loop, open_loop
from penstock.app.bench.measure import DEADLINE_HEADER
from penstock.app.bench.report import Report
from penstock.app.bench.usage import Monitor

PART = "overload"
DEADLINE_SECONDS = 0.5
CLIENTS = 64
MOST_GROWTH_MB = 200.0
"""1024 requests in flight (max_requests) of 100 kB each, twice: as received, and as a body."""


def measure(quick: bool) -> list[Figure]:
    seconds = 6.0 if quick else 20.0
    jpegs = synthetic_jpegs()
    with exported() as folder, penstock(folder / "resnet18_one.toml") as server:
        load(server, jpegs, CLIENTS, 2.0)
        before = load(server, jpegs, CLIENTS, seconds / 3).qps
        normal = load(server, jpegs, 1, 2.0).latency.p50
        report, start_rss, after = asyncio.run(_overload(server, jpegs, 2 * before, seconds))
        again = load(server, jpegs, CLIENTS, seconds / 3).qps
    say(f"{PART}: capacity {before:.1f} before, {again:.1f} after\n{report}")
    recovered = Figure(
        PART,
        "one client's p50 a second after ÷ before",
        after / normal,
        most=1.25,
        note=f"before {normal:.1f} ms",
    )
    grown = (report.usage.rss_max_mb or 0.0) - start_rss
    memory = Figure(
        PART,
        "RSS growth at most",
        grown,
        "MB",
        most=MOST_GROWTH_MB,
        note=f"{report.usage.rss_max_mb or 0:.0f} MB at most",
    )
    return [*_answers(report, mean((before, again))), memory, recovered]


async def _overload(
    server: Server, jpegs: Sequence[bytes], rate: float, seconds: float
) -> tuple[Report, float, float]:
    """Return the report, the RSS before in MB, and one client's median latency after, in ms.

    That client's requests count from one second after the overload.
    """
    client = HttpClient(server.url(PATH), {DEADLINE_HEADER: f"{DEADLINE_SECONDS * 1000:.0f}"})
    async with Monitor(server.pid, 0.1) as usage:
        await asyncio.sleep(0.2)
        start_rss = usage.rss_mb or 0.0
        begun = time.perf_counter()
        record = await open_loop(client.send, jpegs, rate, seconds=seconds)
        alone = await closed_loop(
            client.send, jpegs, 1, seconds=begun + seconds + 2.0 - time.perf_counter()
        )
    await client.close()
    late = [sample.latency for sample in alone.samples if sample.started > begun + seconds + 1.0]
    report = Report.of(
        Record(record.samples, seconds, record.late),
        seconds=seconds,
        open_loop=True,
        deadline=DEADLINE_SECONDS,
        usage=usage,
    )
    return report, start_rss, median(late) * 1000


def _answers(report: Report, capacity: float) -> list[Figure]:
    goodput = report.goodput or 0.0
    outcomes = ", ".join(f"{name}: {count}" for name, count in report.outcomes.items())
    rates = f"{goodput:.1f} in time of {report.offered or 0:.1f} offered to {capacity:.1f} images/s"
    note = f"{rates}; {outcomes}; TP99 {report.latency.p99:.0f} ms"
    figures = [Figure(PART, "goodput ÷ capacity", goodput / capacity, least=0.95, note=note)]
    for status, latency in report.latency_by_status.items():
        if status == "429":
            note = (
                f"{latency.count} refusals, p50 {latency.p50:.1f} ms; "
                f"generator at most {report.generator_late_ms:.0f} ms late"
            )
            figures.append(
                Figure(PART, "refusals (429), p99", latency.p99, "ms", most=10, note=note)
            )
        elif status != "200":
            figures.append(
                Figure(
                    PART,
                    f"status {status}, p99",
                    latency.p99,
                    "ms",
                    note=f"{latency.count} answers, p50 {latency.p50:.1f} ms",
                )
            )
    return figures
