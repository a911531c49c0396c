"""How many processors the process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.backends.engines import processors

V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, None),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        (
            "0::/a/b\n",
            {
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2,
        ),
        (
            "3:cpu,cpuacct:/docker/1\n",
            {f"{V1}/cpu.cfs_quota_us": "50000\n", f"{V1}/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        ("1:cpu:/\n", {f"{V1}/cpu.cfs_quota_us": "-1", f"{V1}/cpu.cfs_period_us": "100000"}, None),
        ("1:memory:/\n", {f"{V1}/cpu.cfs_quota_us": "1", f"{V1}/cpu.cfs_period_us": "1"}, None),
    ],
)
def test_the_quota_of_control_groups(
    tmp_path: Path, groups: str, files: dict[str, str], expected: float | None
) -> None:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processors.cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("quota", "instances", "threads"), [(0.5, 1, 1), (0.5, 4, 1), (1.5, 1, 2), (None, 8, 1)]
)
def test_threads_of_an_instance(
    quota: float | None, instances: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    assert processors.threads_per_instance(instances) == threads
