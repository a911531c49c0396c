"""The real Triton in tests: its server with the Python backend and ensembles, from .venv-triton.

scripts/test makes that environment of nvidia-pytriton's wheel. The wheel is for Linux on x86-64
with glibc 2.35 or later and Python up to 3.12. Elsewhere tests that need it are skipped.
"""

from __future__ import annotations

import filecmp
import http.client
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from .ports import free_port

ENVIRONMENT = Path(__file__).parents[1] / ".venv-triton"


def _installed() -> Path:
    """Return the directory of the wheel's packages. Without it, skip the test or fail."""
    for packages in ENVIRONMENT.glob("lib/python*/site-packages"):
        if (packages / "pytriton").is_dir():
            return packages
    libc, version = platform.libc_ver()
    if (
        (sys.platform, platform.machine(), libc) == ("linux", "x86_64", "glibc")
        and tuple(map(int, version.split("."))) >= (2, 35)
        and sys.version_info < (3, 13)
    ):
        pytest.fail(f"{ENVIRONMENT} is missing: scripts/test makes it")
    pytest.skip("there is no wheel of nvidia-pytriton for this machine")


class TritonServer:
    """A running tritonserver that loads models when it is told to (explicit model control).

    `address` and `grpc_address` are HOST:PORT. `repository` is the folder that it loads from.
    """

    def __init__(self, directory: Path, *options: str, completes: bool = False) -> None:
        """Start it. `directory` is empty, and keeps its repository and its log.

        `completes`: whether it completes configurations, for which it starts each Python model
        twice, and takes 1.3 s more for each.
        """
        packages = _installed()
        self.repository = directory / "repository"
        self.repository.mkdir()
        backends = directory / "backends"
        (backends / "python").mkdir(parents=True)
        installed = packages / "pytriton" / "tritonserver"
        stub = installed / "python_backend_stubs" / packages.parent.name.removeprefix("python")
        for file in [*(installed / "backends" / "python").iterdir(), *stub.iterdir()]:
            (backends / "python" / file.name).symlink_to(file)
        self.shared_memory = f"penstock_{uuid4().hex}"
        http_port, grpc_port = free_port(), free_port()
        self.address, self.grpc_address = f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
        # Metrics and pinned memory would take 8 s to find that there is no GPU.
        metrics = [] if any("metrics" in option for option in options) else ["--allow-metrics=0"]
        completion = [] if completes else ["--disable-auto-complete-config"]
        region = f"--backend-config=python,shm-region-prefix-name={self.shared_memory}"
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(installed / "bin" / "tritonserver", "--model-repository", self.repository),
                    *("--backend-directory", backends, "--cache-directory", installed / "caches"),
                    *("--http-address=127.0.0.1", f"--http-port={http_port}"),
                    *("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"),
                    *("--model-control-mode=explicit", "--pinned-memory-pool-byte-size=0"),
                    *(region, *metrics, *completion, *options),
                ],
                start_new_session=True,
                env={
                    **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                    "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
                    "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
                },
                stdout=log,
                stderr=log,
            )
        self.client = InferenceServerClient(self.address, network_timeout=60)
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            with closing(http.client.HTTPConnection(self.address, timeout=10)) as connection:
                try:
                    connection.request("GET", "/v2/health/ready")
                    if connection.getresponse().status == 200:
                        return
                except OSError:
                    time.sleep(0.02)
        raise AssertionError(f"tritonserver did not start:\n{self.log.read_text()}")

    def add(self, folder: Path) -> None:
        """Copy a model's folder, or all of a repository, into the server's, and load what is new.

        Models that ensembles and other models call come first: their names sort before, or they
        are added before. Raises InferenceServerException if one doesn't load, with Triton's words
        and what it logged: what is wrong with a config is in the log alone.
        """
        if not (folder / "config.pbtxt").exists() and not (folder / "1").exists():
            for model in sorted(folder.iterdir()):
                self.add(model)
            return
        copy = self.repository / folder.name
        if copy.exists():
            if _same(folder, copy) and self.client.is_model_ready(folder.name):
                return
            shutil.rmtree(copy)
        shutil.copytree(folder, copy)
        (copy / "1").mkdir(exist_ok=True)  # an ensemble's is empty, and git keeps no empty folder
        logged = self.log.stat().st_size
        try:
            self.client.load_model(folder.name)
        except InferenceServerException as error:
            words = self.log.read_bytes()[logged:].decode()
            raise InferenceServerException(f"{error.message()}\n{words}", error.status()) from error

    def close(self) -> None:
        """Kill it and its models' processes: to end in its own way takes it seconds."""
        self.client.close()
        if self.process.poll() is None:  # else its number may be another's
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for region in Path("/dev/shm").glob(f"{self.shared_memory}*"):
            region.unlink()


def _same(folder: Path, copy: Path) -> bool:
    """Return whether two folders hold the same, but for empty folders and compiled modules."""

    def files(top: Path) -> set[Path]:
        return {
            path.relative_to(top)
            for path in top.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    names = files(folder)
    return names == files(copy) and not filecmp.cmpfiles(folder, copy, names, shallow=False)[1]


@contextmanager
def triton_server(
    directory: Path, *options: str, completes: bool = False
) -> Iterator[TritonServer]:
    """Run a server of its own, with options of tritonserver, for the length of the block."""
    server = TritonServer(directory, *options, completes=completes)
    try:
        yield server
    finally:
        server.close()
