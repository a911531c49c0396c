"""The processors of this process, shared among the instances of a node."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("penstock.cores")

_thread = threading.local()
"""`_thread.usual` is where this thread might run before `stay_on`; missing if it still may."""


def threads_per_instance(instances: int) -> int:
    """Return how many threads each instance may use: its share of `processors`, at least one."""
    return max(1, processors() // instances)


def processors() -> int:
    """Return how many processors this process may keep busy.

    These are the ones that it may run on, or fewer if a quota of its control group (`docker run
    --cpus`, a limit of Kubernetes) is smaller. Of a quota, any part of a processor counts as one.
    More threads than that would use the quota up early in each period, and all wait for the next.
    """
    count = len(allowed_processors())
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def allowed_processors() -> frozenset[int]:
    """Return the processors that this thread may run on, or might before `stay_on`."""
    usual: frozenset[int] | None = getattr(_thread, "usual", None)
    if usual is not None:
        return usual
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def stay_on(cores: frozenset[int] | None) -> None:
    """Keep this thread, and those that it starts, on some processors; None: on all as before.

    A system that refuses it leaves the thread where it is.
    """
    usual = allowed_processors()
    try:
        os.sched_setaffinity(0, usual if cores is None else cores)
    except (OSError, AttributeError) as error:
        logger.warning("a thread can't be kept on processors of its own: %s", error)
        return
    if cores is None:
        vars(_thread).pop("usual", None)
    else:
        _thread.usual = usual


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest quota of the control groups that hold this process, in processors.

    None: there is none, or this is not Linux. `root` has `proc` and `sys`, for tests.
    """
    quotas = []
    for folder in _cpu_folders(root):
        quota = _quota_of(folder)
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def _cpu_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of the groups that hold this process, with those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
            mount = mount if mount.is_dir() else root / "sys/fs/cgroup/cpu"
        else:
            continue
        folder = mount / group.strip("/")
        # In a container, the path may be the host's: the container sees its own group at the mount.
        yield from (part for part in (folder, *folder.parents) if part.is_relative_to(mount))


def _quota_of(folder: Path) -> float | None:
    """Return the quota of one group, in processors: of version 2 (cpu.max) or 1."""
    try:
        limit, _, period = (folder / "cpu.max").read_text().strip().partition(" ")
    except OSError:
        try:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        share = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max"
    return share if share > 0 else None  # -1: no quota
