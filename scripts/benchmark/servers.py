"""Server processes to measure, on a free port of 127.0.0.1. They are always ended."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from figures import ROOT

MOSEC_VERSION = "0.9.8"
START_SECONDS = 120.0
"""Time in which a server must become ready."""


@dataclass(frozen=True, slots=True)
class Server:
    port: int
    pid: int
    started: float
    """The time at which its process was started, by `time.perf_counter()`."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def penstock(target: Path, *options: str) -> Iterator[Server]:
    """Run `penstock serve`; it is ready when this yields."""
    command = [
        sys.executable,
        "-c",
        "from penstock.app.cli.main import main; main()",
        "serve",
        str(target),
        "--log-level",
        "warning",
        *options,
    ]
    with process(command, "/health/ready") as server:
        yield server


@contextmanager
def mosec(script: str, **environment: str) -> Iterator[Server]:
    """Run a script of this folder with mosec, in an environment that is made if it is missing.

    `environment`: variables for the script, which also gets `PACKAGES`, where the packages of this
    interpreter are. Raises RuntimeError if mosec can't be installed here.
    """
    directory = ROOT / ".venv-mosec"
    setup = [str(ROOT / "scripts" / "setup"), directory.name, "-", f"mosec=={MOSEC_VERSION}"]
    done = subprocess.run(setup, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"mosec {MOSEC_VERSION} can't be installed: {''.join(reason)}")
    variables = {"PACKAGES": sysconfig.get_path("purelib"), **environment}
    command = [
        "env",
        *(f"{name}={value}" for name, value in variables.items()),
        str(directory / "bin" / "python"),
        str(Path(__file__).with_name(script)),
        "--address",
        "127.0.0.1",
        "--log-level",
        "error",
    ]
    with process(command, "/") as server:
        yield server


@contextmanager
def process(command: Sequence[str], ready: str | None) -> Iterator[Server]:
    """Run `command --port PORT`, and yield once GET `ready` answers 200 (None: at once).

    Raises RuntimeError with its output if it does not get ready.
    """
    port = free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")
    }
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            if ready is not None and not _wait(child, port, ready, started):
                output.seek(0)
                raise RuntimeError(
                    f"{' '.join(command)} did not start to serve:\n"
                    f"{output.read().decode(errors='replace')}"
                )
            yield Server(port, child.pid, started)
        finally:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait(child: subprocess.Popen[bytes], port: int, path: str, started: float) -> bool:
    while child.poll() is None and time.perf_counter() < started + START_SECONDS:
        if ask(port, "GET", path) == 200:
            return True
        time.sleep(0.02)
    return False


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Send a request on a connection of its own, and return the status; 0 if there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def pss(pid: int) -> float:
    """Return the proportional set size of one process, in MB.

    It counts a page that n processes map as 1/n. Raises RuntimeError where /proc does not tell.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise RuntimeError(f"the memory of process {pid} can't be read: {error}") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
