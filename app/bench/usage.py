"""Processor time and memory of a process and its children, read from /proc; GPU use from nvidia-smi, where there is one."""

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


def rss(pid: int) -> float | None:
    """Resident memory of the process and its children, MB; None where it can't be read (no /proc, no such process)."""
    try:
        pages = sum(
            int(Path(f"/proc/{each}/statm").read_bytes().split()[1]) for each in _family(pid)
        )
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def processor_seconds(pid: int) -> float | None:
    """Processor time that the process and its living children have used; None where it can't be read."""
    ticks = 0
    try:
        for each in _family(pid):
            fields = Path(f"/proc/{each}/stat").read_bytes().rpartition(b")")[2].split()
            ticks += int(fields[11]) + int(
                fields[12]
            )  # utime and stime: proc(5) counts from the fields before the name
    except OSError:
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    found = [pid]
    for each in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, children.read_bytes().split())
    return found


def listener(port: int) -> int | None:
    """The process of this machine that listens on a TCP port; None where that can't be seen (no /proc, another user's)."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if (
                    fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
                ):  # 0A: listening
                    sockets.add(f"socket:[{fields[9]}]")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for each in _open_files(process):
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(each.readlink()) in sockets:
                    found.append(int(process.name))
    return min(found, default=None)  # children that inherited the socket came later


def _open_files(process: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # ended meanwhile, or another user's
        return list((process / "fd").iterdir())
    return []


@dataclass(slots=True)
class Usage:
    """What was used while a `Monitor` ran. None: can't be told here."""

    cpu_percent: float | None = None
    """100 is one processor."""
    rss_mb: float | None = None
    rss_max_mb: float | None = None
    gpu_percent: float | None = None
    """Mean utilisation of the first GPU, whoever uses it."""
    gpu_memory_mb: float | None = None


class Monitor:
    """`async with Monitor(pid) as usage`: fills `usage` until the end. Without a pid only the GPU is watched."""

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
                if (
                    process.returncode is None
                ):  # the load has ended before it; the loop must not end before its child
                    process.kill()
                    await process.wait()
            with contextlib.suppress(ValueError):  # "[N/A]", or no device
                percent, memory = output.decode().split(",")
                self._gpu.append((float(percent), float(memory) * 2**20 / MEGABYTE))
            await asyncio.sleep(1.0)
