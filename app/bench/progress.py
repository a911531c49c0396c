"""How far a load is, written to a terminal or a log while it goes on."""

from __future__ import annotations

import asyncio
import time
from typing import TextIO

from .load import Record
from .measure import DEFAULT_SECONDS, Load
from .report import OK

TERMINAL_SECONDS = 0.5
"""How often the line of a terminal is written again."""
LOG_SECONDS = 10.0
"""How often a line is written where lines stay."""


def progress_line(record: Record, load: Load, elapsed: float) -> str:
    """Say how far a load is: `4.5 s of 10 s, 1204 answers, 268/s, 3 failed`."""
    answers = len(record.samples)
    failed = sum(sample.status != OK for sample in record.samples)
    seconds = load.seconds
    if seconds is None and load.requests is None:
        seconds = DEFAULT_SECONDS
    done = f"{elapsed:.1f} s"
    if seconds is not None:
        done += f" of {seconds:g} s"
    of = "" if load.requests is None else f" of {load.requests}"
    rate = f"{answers / elapsed:.0f}/s" if elapsed > 0 else "0/s"
    return f"{done}, {answers}{of} answers, {rate}" + (f", {failed} failed" if failed else "")


async def show_progress(record: Record, load: Load, output: TextIO) -> None:
    """Write how far a load is to `output`, until it is cancelled."""
    terminal = output.isatty()
    try:
        while True:
            await asyncio.sleep(TERMINAL_SECONDS if terminal else LOG_SECONDS)
            if record.begun:
                line = progress_line(record, load, time.perf_counter() - record.begun)
                output.write(f"\r\x1b[K{line}" if terminal else f"{line}\n")
                output.flush()
    finally:
        if terminal:
            output.write("\r\x1b[K")
            output.flush()
