"""Measure engines alone and in a node: images/s and p50 for each engine, model and batch size.

Each row alternates two sides in one process: `forward` of the engine in a bare loop, and callers
that send single images to a pipeline with that node. Their ratio is what Penstock keeps of the
engine's rate. Each model has a process of its own, so that a crash takes no other model with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import models
import torch
from engine_rows import ENGINES, can_run, run_model, weigh

TARGETS = {1: 0.9}
"""Batch -> the least ratio."""
TARGET = 0.97
"""The least ratio of other batches."""
LARGE, SMALL = ("resnet50", "vit", "detector"), ("convnet", "transformer")
PREPARING = 0.5
"""The share of the time in which engines are compiled, at most."""
CRASHED = {"batch": 0, "error": "the process crashed"}


class Child:
    """A process that prepares and measures one model."""

    def __init__(
        self,
        arguments: Sequence[str],
        model: str,
        row_added: Callable[[dict[str, Any]], None],
    ) -> None:
        self.model = model
        self._row_added = row_added
        self.rows: list[dict[str, Any]] = []
        self.current = ""
        """The engine that is being prepared or measured."""
        self.ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", model, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        output: IO[str] = self.process.stdout  # type: ignore[assignment]  # a pipe, by Popen
        for line in output:
            try:
                values = json.loads(line)
                event = values.pop("event")
            except (ValueError, KeyError, AttributeError):
                say(line.rstrip())  # a library wrote it
                continue
            if event == "row":
                self.current = values["engine"]
                self.rows.append({"model": self.model, **values})
                say(row_text(self.rows[-1]))
                self._row_added(self.rows[-1])
            elif event == "ready":
                self.ready.set()
            else:
                self.current = values["engine"]
                took = f" in {values['seconds']:.1f} s" if "seconds" in values else ""
                say(f"{self.model}, {self.current}: {event}{took}")
        self.ready.set()

    def tell(self) -> None:
        """Send a line: at first that it has prepared enough, then that it is to measure."""
        pipe: IO[str] = self.process.stdin  # type: ignore[assignment]  # a pipe, by Popen
        with suppress(OSError):  # it has ended, as `wait` says
            pipe.write("\n")
            pipe.flush()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; kill it after `seconds`. Return whether it crashed."""
        try:
            self.process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            say(f"{self.model}: stopped, because the time is over")
            self._reader.join()
            return False
        self._reader.join()
        if self.process.returncode:
            say(f"{self.model}: ended with {self.process.returncode} at {self.current!r}")
        return self.process.returncode != 0


def run_all(
    arguments: argparse.Namespace,
    known: set[tuple[str, str]],
    row_added: Callable[[dict[str, Any]], None],
) -> None:
    """Prepare the models side by side and measure one after another. `known` are the models and
    engines to leave out.
    """
    end = time.monotonic() + arguments.limit
    together = max(1, (os.cpu_count() or 1) // 5)
    left_out = {model: {name for of, name in known if of == model} for model in arguments.models}

    def start(model: str) -> Child:
        wanted = [name for name in arguments.engines if name not in left_out[model]]
        options = ["--engines", ";".join(wanted), "--batches", *map(str, arguments.batches)]
        return Child([*options, "--seconds", str(arguments.seconds)], model, row_added)

    models_left = len(arguments.models)
    for first in range(0, len(arguments.models), together):
        group = [start(model) for model in arguments.models[first : first + together]]
        seconds = PREPARING * (end - time.monotonic()) * len(group) / models_left
        prepare(group, time.monotonic() + seconds, end)
        for child in group:
            stop = time.monotonic() + (end - time.monotonic()) / models_left
            models_left -= 1
            running = child
            running.tell()
            while running.wait(stop - time.monotonic()) and time.monotonic() < stop:
                # The engine that crashed is left out, and so are those that were measured.
                row_added({"model": running.model, "engine": running.current, **CRASHED})
                done = {row["engine"] for row in running.rows}
                left_out[running.model] |= {running.current, *done}
                running = start(running.model)
                prepare([running], (time.monotonic() + stop) / 2, stop)
                running.tell()


def prepare(children: Sequence[Child], until: float, end: float) -> None:
    """Let engines be prepared until a time, and wait for those that are under way then, because
    compilers would take the processors from what is measured.
    """
    for child in children:
        child.ready.wait(max(until - time.monotonic(), 1))
    for child in children:
        child.tell()
    for child in children:
        child.ready.wait(max(end - time.monotonic() - 30, 1))


def run_weights(arguments: argparse.Namespace, row_added: Callable[[dict[str, Any]], None]) -> None:
    """Weigh each engine in a process of its own, one after another."""
    end = time.monotonic() + arguments.limit
    model = arguments.models[0]
    for engine in ENGINES:
        if engine.name not in arguments.engines or time.monotonic() > end:
            continue
        if can_run(replace(engine, only=()), model):
            Child(["--weigh", engine.name], model, row_added).wait(end - time.monotonic())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def row_text(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['model']}, {row['engine']}, {row.get('batch', '')}: {row['error']}"
    if "weights" in row:
        return f"{row['model']}, {row['engine']}: {row['one']:,.0f} MiB, 4: {row['four']:,.0f} MiB"
    return (
        f"{row['model']}, {row['engine']}, {row['batch']}: {row['loop']:,.0f} images/s, "
        f"node {row['node']:,.0f} ({row['ratio']:.3f}, 2 instances {row['two_ratio']:.3f}), "
        f"batches of {row['mean_batch']}"
    )


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        "| model | engine | batch | images/s in a loop | p50 of a batch, ms | images/s in a node "
        "| p50 of a request, ms | node ÷ loop (lowest – highest) | target | 2 instances, images/s "
        "| ÷ loop | parts of a batch in the loop, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(
                f"| {row['model']} | {row['engine']} | {row['batch'] or 'all'} | "
                f"{row['error'].replace('|', '/')} |||||||||"
            )
            continue
        least = TARGETS.get(row["batch"], TARGET)
        lines.append(
            f"| {row['model']} | {row['engine']} | {row['batch']} | {row['loop']:,.0f} "
            f"| {row['loop_p50_ms']:.2f} | {row['node']:,.0f} | {row['node_p50_ms']:.2f} "
            f"| {row['ratio']:.2f} ({min(row['ratios']):.2f} – {max(row['ratios']):.2f})"
            f"{_holds(row['ratio'], least)} | ≥ {least} | {row['two']:,.0f} "
            f"| {row['two_ratio']:.2f}{_holds(row['two_ratio'], least)} | {_pieces(row)} |"
        )
    return "\n".join(lines)


def _pieces(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {each:.2f}" for name, each in row.get("pieces_ms", {}).items())


def _holds(ratio: float, least: float) -> str:
    return "" if ratio >= least else " **no**"


def weights_table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        "| model | engine | weights in float32, MiB | 1 instance, MiB | of it torch's tensors "
        "| 4 instances, MiB | of it torch's tensors | each further one, MiB "
        "| left after closing, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['engine']} | {row['weights']:,.0f} | {row['one']:,.0f} "
        f"| {row['one_tensors']:,.0f} | {row['four']:,.0f} | {row['four_tensors']:,.0f} "
        f"| {(row['four'] - row['one']) / 3:,.0f} | {row['left']:,.0f} |"
        for row in rows
        if "weights" in row
    ]
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["engine"], row.get("batch", 0)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    out = os.environ.get("OUT")
    parser = argparse.ArgumentParser(prog="scripts/gpu_bench engines", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=[*models.MODELS], metavar="MODEL")
    parser.add_argument("--engines", help="names, separated by ';'; default: all that can run")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=0.08, help="length of a turn")
    parser.add_argument("--limit", type=float, default=300, help="seconds for all of it")
    parser.add_argument(
        "--weights", action="store_true", help="memory of 1 and 4 instances instead"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=Path(out, "engines.json") if out else None,
        help="write the rows to FILE; rows that it has already are not measured again",
    )
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    parser.add_argument("--weigh", metavar="ENGINE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [engine.name for engine in ENGINES]
    arguments.engines = arguments.engines.split(";") if arguments.engines is not None else names
    if arguments.weigh:
        weigh(arguments.child, arguments.weigh)
        return
    if arguments.child:
        run_model(arguments.child, arguments.engines, arguments.batches, arguments.seconds)
        return
    if unknown := set(arguments.engines) - set(names):
        parser.error(f"unknown engines {sorted(unknown)}: expected some of {names}")
    arguments.models = arguments.models or (LARGE if on_gpu else SMALL)
    file: Path | None = arguments.json
    if file is not None and arguments.weights:
        file = file.with_name(f"{file.stem}-weights.json")
    done: list[dict[str, Any]] = json.loads(file.read_text()) if file and file.exists() else []
    rows = {_key(row): row for row in done if "error" not in row}

    def row_added(row: dict[str, Any]) -> None:
        rows[_key(row)] = row
        if file is not None:  # at once, so that what is done is kept if this process is stopped
            file.write_text(json.dumps([*rows.values()], indent=1))

    if arguments.weights:
        run_weights(arguments, row_added)
    else:
        known = {
            (model, engine)
            for model, engine, _ in rows
            if all((model, engine, batch) in rows for batch in arguments.batches)
        }
        run_all(arguments, known, row_added)
    device = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} processors"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    print(f"{device}, torch {torch.__version__}, {when}\n")
    print((weights_table if arguments.weights else table)(rows.values()))


if __name__ == "__main__":
    main()
