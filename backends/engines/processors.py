"""The processors of this process, shared among the instances of a node."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def threads_per_instance(instances: int) -> int:
    """Return how many threads each instance may use: its share of `processors`, at least one."""
    return max(1, processors() // instances)


def processors() -> int:
    """Return how many processors this process may keep busy.

    These are the ones that it may run on, or fewer if a quota of its control group (`docker run
    --cpus`, a limit of Kubernetes) is smaller. Of a quota, any part of a processor counts as one.
    More threads than that would use the quota up early in each period, and all wait for the next.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


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
