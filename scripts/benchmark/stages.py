"""Where a small request's microseconds go on the server: `scripts/bench profile`.

wrk sends the requests of the part `http`, at 64 connections, to a server whose event loop is
sampled (sampled_server.py). Each tick of the clock of the loop's thread is counted for one stage,
by the innermost function of the stack that `STAGES` names. The processor time that the thread used
is shared among the stages by their ticks. Other threads have a row of their own, so the rows add
up to the processor time of the whole process. The timer is a part of neither: it takes the server
about 10 µs a tick, and the kernel ticks 100 to 1000 times a second.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from figures import PROFILE, ROOT, Figure, say
from http_noop import NOOP, PIPELINE, WRK
from servers import process
from wrk import Side, load, require_wrk

CONNECTIONS = 64
ANSWER_SECONDS = 10.0
"""Time in which the server must write what it has measured."""


class Stage(NamedTuple):
    name: str
    places: tuple[tuple[str, str], ...]
    """Files or folders of the packages, each with a pattern for the names of its functions."""


ANY = r".*"
LOOP = "event loop; reading from the sockets (uvloop and the kernel)"
OTHER_THREADS = "executor's thread: taking the batch, running it, waking the loop"
RUNNING = "running the batch on the loop"
WHOLE = "the whole process"
STAGES = (
    Stage(LOOP, (("app/server/serve.py", ANY), ("app/cli", ANY))),  # the callers of the loop
    Stage(
        "writing to the sockets (uvloop and the kernel)", (("app/server/connection.py", "write"),)
    ),
    Stage(
        "finding and parsing the head; the connection's state",
        (
            ("app/server/connection.py", ANY),
            ("app/server/connections.py", ANY),
            ("app/server/head.py", ANY),
        ),
    ),
    Stage("memory budget", (("backends/memory.py", ANY), ("app/http/body.py", "reserve_body"))),
    Stage(
        "finish: rendering, Server-Timing, the answer's head",
        (
            ("app/http/render.py", ANY),
            ("app/http/predict_call.py", r"write.*|success.*|.*timing"),
            ("app/server/direct.py", r"set_result|_s[eu].*"),
            ("app/server/direct_predict.py", r"_finish|_succeed|_head_of.*"),
        ),
    ),
    Stage("route, keys, limits, id, kind of body", (("app/server", ANY), ("app/http", ANY))),
    Stage("admission and the run", (("pipelines/pipeline.py", ANY), ("pipelines/runs", ANY))),
    Stage(RUNNING, (("pipelines/node/executor.py", r"run_batch|_run.*|_outcome.*"),)),
    Stage(
        "queue, decision, hand-over, delivery, statistics",
        (("pipelines/node", ANY), ("pipelines/running_graph.py", ANY)),
    ),
    Stage(RUNNING, (("backends", ANY), ("noop_backend.py", ANY))),
    Stage("rest of Penstock", (("app", ANY), ("pipelines", ANY))),
)
"""The first stage that names a function has it."""

PACKAGES = tuple(f"{ROOT}/penstock/{name}" for name in ("app", "pipelines", "backends"))


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "noop_backend.py").write_text(NOOP)
        (folder / "post.lua").write_text(WRK)
        for executor in ("thread", "loop"):
            (folder / "noop.toml").write_text(f'{PIPELINE}executor = "{executor}"\n')
            measured, requests = _measure(folder, 3 if quick else 12)
            figures += _figures(executor, measured, requests)
    return figures


def _measure(folder: Path, seconds: int) -> tuple[dict[str, Any], int]:
    """Return what sampled_server.py has measured, and for how many requests."""
    file = folder / "measured.json"
    file.unlink(missing_ok=True)
    script = str(Path(__file__).with_name("sampled_server.py"))
    command = [sys.executable, script, str(file), "serve", str(folder / "noop.toml")]
    with process([*command, "--log-level", "warning"], "/health/ready") as server:
        side = Side("", server, "/predict/noop", folder / "post.lua")
        load(side, CONNECTIONS, 1)  # to warm up
        os.kill(server.pid, signal.SIGUSR2)
        run = load(side, CONNECTIONS, seconds)
        os.kill(server.pid, signal.SIGUSR2)
        until = time.monotonic() + ANSWER_SECONDS
        while not file.exists():
            if time.monotonic() > until:
                raise RuntimeError("the sampled server wrote nothing")
            time.sleep(0.05)
    return json.loads(file.read_text()), run.requests


def _figures(column: str, measured: dict[str, Any], requests: int) -> list[Figure]:
    ticks = by_stage(measured["stacks"])
    total = sum(ticks.values())
    loop, process = (measured[key] / requests * 1e6 for key in ("loop", "process"))
    say(f"profile, {column}: {requests} requests, {total} ticks in {measured['loop']:.1f} s")
    costs = {name: loop * count / max(1, total) for name, count in ticks.items()}
    costs[OTHER_THREADS] = max(0.0, process - loop)
    return [
        Figure(PROFILE, name, cost, "µs", column=f'executor = "{column}"')
        for name, cost in (*costs.items(), (WHOLE, process))
    ]


def by_stage(stacks: Sequence[tuple[int, Sequence[tuple[str, str]]]]) -> dict[str, int]:
    """Count the ticks of each stage, those without any too."""
    ticks = Counter(dict.fromkeys([stage.name for stage in STAGES], 0))
    for count, stack in stacks:
        ticks[stage_of(stack)] += count
    return dict(ticks)


def stage_of(stack: Sequence[tuple[str, str]]) -> str:
    """Return the stage of a stack: that of its innermost function that has one.

    So what a library does counts for the stage that called it.
    """
    for file, function in stack:
        path = _path_of(file)
        if path is None:
            continue
        for stage in STAGES:
            if any(
                (path == place or path.startswith(f"{place}/")) and re.fullmatch(pattern, function)
                for place, pattern in stage.places
            ):
                return stage.name
    return LOOP


def _path_of(file: str) -> str | None:
    """Return a file of the packages by its path in them, as in `app/server/head.py`.

    The pipeline's own file by its name. None for other files.
    """
    for package in PACKAGES:
        if file.startswith(f"{package}/"):
            return file.removeprefix(f"{ROOT}/penstock/")
    return Path(file).name if file.endswith("/noop_backend.py") else None
