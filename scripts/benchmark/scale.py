"""Several processes against one, as ratios: their rates, batches, latency, clients and losses.

All of it comes from one run, on whatever machine it runs. What needs GPUs says so where there are
none.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import scale_gpus
import scale_losses
from figures import Figure, of_runs, say
from scale_servers import (
    DEVICE_SECONDS,
    PICTURES,
    clients_of,
    metric,
    names_of,
    processor_seconds,
    write,
)
from servers import Server, penstock, pss
from wrk import Run, Side, compared, in_turns, load, ratios, require_wrk

from penstock.app.bench.client import HttpClient
from penstock.app.bench.load import open_loop
from penstock.backends.image.decode import decode

PART = "scale"
ONE, ONE_WITH_TWO, TWO = "one", "one, 2 decoders", "two"
FRONTS = ("--processes", "2")
SMALL_MODEL = "decoding and a small model"
LARGE = "1920×1280"
"""The size whose decoding is long enough for two processors to be worth 1.8 times one."""
MOST_PIXELS = 1 << 30
ARRIVALS = 1000.0
"""Requests per second for the device, in an open loop: 10 arrive while a batch runs."""
PROCESSORS = len(os.sched_getaffinity(0))
Group = Callable[[Path, bool], list[Figure]]


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    groups: dict[str, Group] = {"decoding alone": decoding}
    groups |= {f"pictures of {size}": partial(pictures, size) for size in PICTURES}
    groups |= {
        "a model in Python": model_in_python,
        "latency": latency,
        "processes": processes,
        "batches": batches,
        "spread": spread,
        "losses": scale_losses.measure,
    }
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        for what, group in groups.items():
            say(f"   {what}")
            figures += _attempted(what, group, folder, quick)
    return figures + scale_gpus.measure(quick)


def _attempted(what: str, group: Group, folder: Path, quick: bool) -> list[Figure]:
    """Measure a group, or return one figure that says why it could not be measured."""
    try:
        return group(folder, quick)
    except (RuntimeError, OSError) as error:
        say(f"   not measured: {error}")
        return [Figure(PART, what, math.nan, note=str(error).splitlines()[0])]


def decoding(folder: Path, quick: bool) -> list[Figure]:
    """Compare decoding in two processes with one, without a server: what the machine gives."""
    seconds, turns = (0.5, 3) if quick else (1.0, 7)
    figures = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for size in PICTURES:
            jpegs = [path.read_bytes() for path in sorted((folder / size).iterdir())]
            runs = []
            for turn in range(-1, turns):  # the first is to warm up
                alone = pool.submit(decode_for, jpegs, seconds).result()
                both = [pool.submit(decode_for, jpegs, seconds) for _ in range(2)]
                if (ratio := sum(each.result() for each in both) / alone) and turn >= 0:
                    runs.append(ratio)
            what = f"decoding alone, {size}: 2 processes ÷ one"
            figures.append(of_runs(PART, what, runs, note="what the processors allow"))
    return figures


def decode_for(jpegs: Sequence[bytes], seconds: float) -> float:
    """Return the images per second that this process decodes."""
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        decode(jpegs[count % len(jpegs)], max_pixels=MOST_PIXELS)
        count += 1
    return count / elapsed


def pictures(size: str, folder: Path, quick: bool) -> list[Figure]:
    """Compare the rates of a pipeline that decodes."""
    what = f"{SMALL_MODEL}, {size}: 2 processes ÷ one"
    with ExitStack() as running:
        sides = [
            Side(
                name,
                running.enter_context(penstock(folder / f"{file}.toml", *options)),
                "/predict/picture",
                folder / f"{size}.lua",
            )
            for name, file, options in (
                (ONE, "picture_1", ()),
                (ONE_WITH_TWO, "picture_2", ()),
                (TWO, "picture_1", FRONTS),
            )
        ]
        runs = in_turns(sides, 16, quick=quick, turns=7)
    least = 1.8 if size == LARGE else None
    return [
        _gain(what, runs[TWO], runs[ONE], least),
        _gain(f"{what} with instance_num = 2", runs[TWO], runs[ONE_WITH_TWO]),
    ]


def model_in_python(folder: Path, quick: bool) -> list[Figure]:
    """Compare the rates of a model in Python that front processes may run."""
    with ExitStack() as running:
        sides = [
            Side(
                name,
                running.enter_context(penstock(folder / "features.toml", *options)),
                "/predict/features",
                folder / "bytes.lua",
            )
            for name, options in ((ONE, ()), (TWO, FRONTS))
        ]
        runs = in_turns(sides, 16, quick=quick, turns=7)
    what = "a model in Python, front = true: 2 processes ÷ one"
    return [_gain(what, runs[TWO], runs[ONE], 1.8)]


def _gain(
    what: str, ours: Sequence[Run], others: Sequence[Run], least: float | None = None
) -> Figure:
    """Compare two sides, and say what this machine's processors could give at most."""
    spent = median(run.processor + run.generator for run in ours)
    possible = PROCESSORS / (spent / 1e6) / median(run.rate for run in others)
    generator = median(run.generator for run in ours)
    note = (
        f"{compared(ours, others)}; wrk's CPU {generator:.0f} µs; "
        f"{PROCESSORS} processors with nothing idle: {possible:.2f}"
    )
    return of_runs(PART, what, ratios(ours, others), least=least, note=note)


def latency(folder: Path, quick: bool) -> list[Figure]:
    """Compare the p50 of one client that waits for each answer."""
    figures = []
    for pipeline, path, scripts in (
        ("picture_1", "/predict/picture", [size for size in PICTURES if size != "96×64"]),
        ("noop", "/predict/noop", ["bytes"]),
    ):
        with ExitStack() as running:
            servers = {
                name: running.enter_context(penstock(folder / f"{pipeline}.toml", *options))
                for name, options in ((ONE, ()), (TWO, FRONTS))
            }
            for script in scripts:
                sides = [
                    Side(name, server, path, folder / f"{script}.lua")
                    for name, server in servers.items()
                ]
                runs = in_turns(sides, 1, quick=quick)
                of_two, of_one = runs[TWO], runs[ONE]
                turns = zip(of_two, of_one, strict=True)
                figures.append(
                    of_runs(
                        PART,
                        f"one client's p50, {script if pipeline != 'noop' else 'no-op, 1 kB'}: "
                        "2 processes ÷ one",
                        [two.p50 / one.p50 for two, one in turns],
                        most=None if pipeline == "noop" else 1.15,
                        note=compared(of_two, of_one),
                    )
                )
    return figures


def processes(folder: Path, quick: bool) -> list[Figure]:
    """Return each process's memory when idle, and what a request costs it."""
    figures: list[Figure] = []
    for pipeline, path, script, what in (
        ("noop", "/predict/noop", "bytes", "no-op, 1 kB"),
        ("picture_1", "/predict/picture", "640×427", f"{SMALL_MODEL}, 640×427"),
    ):
        with penstock(folder / f"{pipeline}.toml", *FRONTS) as server:
            names = names_of(server)
            if pipeline == "picture_1":
                figures += [
                    Figure(PART, f"PSS when idle: {name}", pss(pid), "MB")
                    for name, pid in sorted(names.items())
                ]
            side = Side(what, server, path, folder / f"{script}.lua")
            load(side, 64, 1)
            before = {name: processor_seconds(pid) for name, pid in names.items()}
            run = load(side, 64, 2 if quick else 6)
            spent = {
                name: (processor_seconds(pid) - before[name]) / run.requests * 1e6
                for name, pid in names.items()
            }
            every = ", ".join(f"{name} {each:.0f}" for name, each in sorted(spent.items()))
            figures.append(
                Figure(
                    PART,
                    f"{what}: the model process's CPU per request",
                    spent["models"],
                    "µs",
                    note=f"all: {every} µs a request, at {run.rate:,.0f} requests/s",
                )
            )
    return figures


def batches(folder: Path, quick: bool) -> list[Figure]:
    """Compare the mean batches at equal rates: one process, several, and servers apart."""
    seconds, turns = (2.0, 3) if quick else (4.0, 5)
    with ExitStack() as running:
        file = folder / "device.toml"
        one, other = (running.enter_context(penstock(file)) for _ in range(2))
        groups = {
            ONE: [one],
            "2 processes": [running.enter_context(penstock(file, *FRONTS))],
            "4 processes": [running.enter_context(penstock(file, "--processes", "4"))],
            "2 servers apart": [one, other],
        }
        means: dict[str, list[float]] = {name: [] for name in groups}
        order = list(groups)
        for turn in range(-1, turns):  # the first is to warm up
            for name in order:
                mean = asyncio.run(_mean_batch(groups[name], seconds if turn >= 0 else 0.5, turn))
                if turn >= 0:
                    means[name].append(mean)
            order.reverse()
    figures = []
    for name in list(groups)[1:]:
        runs = [ours / alone for ours, alone in zip(means[name], means[ONE], strict=True)]
        note = f"{median(means[name]):.1f} to {median(means[ONE]):.1f} items"
        least = None if "apart" in name else 0.95
        figures.append(
            of_runs(PART, f"mean batch, {name} ÷ one process", runs, least=least, note=note)
        )
    say(f"   mean batches: {means}; a batch takes {DEVICE_SECONDS * 1000:.0f} ms")
    return figures


async def _mean_batch(servers: Sequence[Server], seconds: float, seed: int) -> float:
    """Load servers in an open loop, in equal shares, and return the mean batch of all."""
    clients = [HttpClient(server.url("/predict/device")) for server in servers]
    before = [_batches(server) for server in servers]
    records = await asyncio.gather(
        *(
            open_loop(
                client.send, [b"x" * 1024], ARRIVALS / len(servers), seconds=seconds, seed=number
            )
            for number, client in enumerate(clients, seed * len(clients))
        )
    )
    for client in clients:
        await client.close()
    statuses = Counter(sample.status for record in records for sample in record.samples)
    if statuses[200] < 0.99 * statuses.total():
        raise RuntimeError(f"too many requests failed: {dict(statuses)}")
    after = [_batches(server) for server in servers]
    rows, count = (
        sum(new[index] - old[index] for new, old in zip(after, before, strict=True))
        for index in (0, 1)
    )
    return rows / count


def _batches(server: Server) -> tuple[float, float]:
    """Return the rows and the number of the batches so far."""
    return metric(server, "penstock_batch_size_sum"), metric(server, "penstock_batch_size_count")


def spread(folder: Path, quick: bool) -> list[Figure]:
    """Compare the fronts' shares of 8 keep-alive connections, which are new ones in each run."""
    turns, seconds = (3, 1) if quick else (9, 2)
    figures = []
    for balance, most in (("even", 1.2), ("kernel", None)):
        with penstock(folder / "noop.toml", *FRONTS, "--balance", balance) as server:
            side = Side(balance, server, "/predict/noop", folder / "bytes.lua")
            load(side, 8, 1)
            shares = [asyncio.run(_shares(side, seconds)) for _ in range(turns)]
        held = ", ".join("/".join(str(each) for each, _ in share) for share in shares)
        used = median(
            max(times) / max(min(times), 0.01)
            for times in ([seconds for _, seconds in share] for share in shares)
        )
        ratios = [
            max(counts) / max(min(counts), 1)
            for counts in ([each for each, _ in share] for share in shares)
        ]
        figures.append(
            of_runs(
                PART,
                f"busiest front ÷ idlest, 8 connections, balance {balance}",
                ratios,
                most=most,
                note=f"connections {held}; processor time {used:.2f}",
            )
        )
    return figures


async def _shares(side: Side, seconds: int) -> list[tuple[int, float]]:
    """Load a server with 8 connections. Return each front's number of them, and the processor time
    that it used.
    """
    server = side.server
    fronts = [pid for name, pid in names_of(server).items() if name.startswith("front")]
    before = [processor_seconds(pid) for pid in fronts]
    running = asyncio.create_task(asyncio.to_thread(load, side, 8, seconds))
    await asyncio.sleep(seconds / 2)
    connections = [len(clients_of(pid, server.port)) for pid in fronts]
    await running
    used = [processor_seconds(pid) - time for pid, time in zip(fronts, before, strict=True)]
    return list(zip(connections, used, strict=True))
