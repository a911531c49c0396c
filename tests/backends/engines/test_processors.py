"""How many processors the process may use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.backends.engines import processors

from .test_onnx_shared import write

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


@pytest.fixture
def half_a_processor() -> Iterator[Path]:
    """Make a real control group with a quota, where the system lets us."""
    mounts = Path("/sys/fs/cgroup")
    folder = (mounts / "cpu" if (mounts / "cpu").is_dir() else mounts) / f"penstock-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            if (folder / "cpu.cfs_quota_us").exists():
                (folder / "cpu.cfs_quota_us").write_text("50000")
            else:
                (folder / "cpu.max").write_text("50000 100000")
            (folder / "cgroup.procs").touch()
        except OSError as error:
            pytest.skip(f"a control group here takes no quota: {error}")
        yield folder
    finally:
        folder.rmdir()


ENGINE = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.engines.processors import cpu_quota, processors
import onnxruntime
before = len(os.listdir("/proc/self/task"))
backend = OnnxTensor()
backend.init(OnnxParams(model=sys.argv[2]), Context(node="n"))
threads = len(os.listdir("/proc/self/task")) - before
options = backend.model.session.get_session_options()
print(cpu_quota(), processors(), options.intra_op_num_threads, threads)
"""


def test_an_engine_in_a_real_group_with_half_a_processor(
    half_a_processor: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "net.onnx")
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, half_a_processor, path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["0.5", "1", "1", "0"]
