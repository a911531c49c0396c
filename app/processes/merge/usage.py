"""The memory and processor time of a process, as Linux tells them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """The processor time that a process has used, in seconds, and its memory in bytes (RSS)."""

    cpu_seconds: float
    rss_bytes: int


def usage_of(pid: int) -> Usage | None:
    """Return what a process uses; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGESIZE"))
