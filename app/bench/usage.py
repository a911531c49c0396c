"""Processor time and memory of a process and its children, from /proc; GPU use, from nvidia-smi.

A figure that can't be read on this machine is None.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MEGABYTE = 1e6
TCP_LISTEN = "0A"
"""The state TCP_LISTEN, as /proc/net/tcp writes it."""


def rss(pid: int) -> float | None:
    """Return the resident memory of a process and its children, in MB.

    None if it can't be read: there is no /proc, or no such process.
    """
    try:
        pages = sum(
            int(Path(f"/proc/{member}/statm").read_bytes().split()[1]) for member in _family(pid)
        )
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def processor_seconds(pid: int) -> float | None:
    """Return the processor time of a process and its living children; None if it can't be read."""
    ticks = 0
    try:
        for member in _family(pid):
            # From the third field on, since the second, the name, may hold spaces. utime and stime
            # are fields 14 and 15 of proc(5).
            fields = Path(f"/proc/{member}/stat").read_bytes().rpartition(b")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    except OSError:
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    family = [pid]
    for member in family:  # grows while it is walked
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{member}/task").glob("*/children"):
                family += map(int, children.read_bytes().split())
    return family


def listener(port: int) -> int | None:
    """Return the process on this machine that listens on a TCP port.

    None if it can't be seen: there is no /proc, or the process is another user's.
    """
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                local_port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == TCP_LISTEN and local_port == port:
                    sockets.add(f"socket:[{fields[9]}]")
    listeners = []
    for process in Path("/proc").glob("[0-9]*"):
        for file in _open_files(process):
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(file.readlink()) in sockets:
                    listeners.append(int(process.name))
    return min(listeners, default=None)  # children that inherited the socket started later


def _open_files(process: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # the process ended meanwhile, or is another user's
        return list((process / "fd").iterdir())
    return []


@dataclass(slots=True)
class Usage:
    """The use of processors, memory and GPU while a `Monitor` ran. None: unknown here."""

    cpu_percent: float | None = None
    """Mean use of processors; 100 is one processor."""
    rss_mb: float | None = None
    rss_max_mb: float | None = None
    gpu_percent: float | None = None
    """Mean utilisation of the first GPU, by all processes."""
    gpu_memory_mb: float | None = None


class Monitor:
    """Measures a process and the GPU while `async with Monitor(pid) as usage` runs.

    `usage` is complete after the block. Without a pid only the GPU is measured.
    """

    def __init__(self, pid: int | None, interval: float = 0.2) -> None:
        self.usage = Usage()
        self._pid = pid
        self._interval = interval
        self._gpu: list[tuple[float, float]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Usage:
        self._begun = time.perf_counter()
        self._cpu = processor_seconds(self._pid) if self._pid is not None else None
        if self._pid is not None:
            self._tasks.append(asyncio.create_task(self._watch_memory(self._pid)))
        if shutil.which("nvidia-smi"):
            self._tasks.append(asyncio.create_task(self._watch_gpu()))
        return self.usage

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        usage = self.usage
        if self._pid is not None:
            self._note_memory(self._pid)
            cpu = processor_seconds(self._pid)
            if cpu is not None and self._cpu is not None:
                usage.cpu_percent = 100 * (cpu - self._cpu) / (time.perf_counter() - self._begun)
        if self._gpu:
            usage.gpu_percent = sum(percent for percent, _ in self._gpu) / len(self._gpu)
            usage.gpu_memory_mb = max(memory for _, memory in self._gpu)

    def _note_memory(self, pid: int) -> None:
        used = rss(pid)
        if used is not None:
            self.usage.rss_mb = used
            self.usage.rss_max_mb = max(used, self.usage.rss_max_mb or 0.0)

    async def _watch_memory(self, pid: int) -> None:
        while True:
            self._note_memory(pid)
            await asyncio.sleep(self._interval)

    async def _watch_gpu(self) -> None:
        command = (
            "nvidia-smi",
            "-i",
            "0",
            "--query-gpu=utilization.gpu,memory.used",
            "--format=csv,noheader,nounits",
        )
        while True:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            try:
                output, _ = await process.communicate()
            finally:
                if process.returncode is None:  # cancelled: the load ended first
                    process.kill()  # the loop must not end before its child
                    await process.wait()
            with contextlib.suppress(ValueError):  # "[N/A]", or no GPU
                percent, memory = output.decode().split(",")
                self._gpu.append((float(percent), float(memory) * 2**20 / MEGABYTE))
            await asyncio.sleep(1.0)
