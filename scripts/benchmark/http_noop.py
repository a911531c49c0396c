"""A no-op pipeline over HTTP against a bare ASGI app: wrk, 1 kB bodies, in alternation. Both servers stand by all the time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Figure, of_runs, say
from servers import Server, penstock, process

PART = "HTTP no-op"
LEAST = {1: (0.5, 0.6), 16: (0.5, 0.65), 64: (0.65, 0.75), 256: (0.65, 0.85)}
"""Connections -> target and aim, share of the bare app's rate."""

NOOP = """
def size(data):
    return len(data)
"""
PIPELINE = """
[pipeline]
name = "noop"

[pipeline.inputs]
data = { kind = "bytes" }

[noop]
backend = "Python[noop_backend:size]"
max = 32
"""
WRK = """
wrk.method = "POST"
wrk.body = string.rep("x", 1024)
wrk.headers["Content-Type"] = "application/octet-stream"
"""


def measure(quick: bool) -> list[Figure]:
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed (apt install wrk); the generator in Python is slower than these servers")
    seconds, pairs = (1, 3) if quick else (4, 5)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "noop_backend.py").write_text(NOOP)
        (folder / "noop.toml").write_text(PIPELINE)
        (folder / "post.lua").write_text(WRK)
        bare_command = [sys.executable, str(Path(__file__).with_name("bare.py"))]
        with process(bare_command, "/") as bare, penstock(folder / "noop.toml") as ours:
            sides = ((bare, "/"), (ours, "/predict/noop"))
            for connections, (least, aim) in LEAST.items():
                for server, path in sides:  # to warm up
                    wrk(server, path, connections, 1, folder)
                runs = [[wrk(server, path, connections, seconds, folder) for server, path in sides] for _ in range(pairs)]
                ratios = [our_rate / bare_rate for (bare_rate, _), (our_rate, _) in runs]
                say(f"{PART}, {connections}: {[round(ratio, 3) for ratio in ratios]}")
                bare_rate, our_rate = (sorted(run[side][0] for run in runs)[pairs // 2] for side in (0, 1))
                what = f"rate ÷ bare ASGI app's, {connections} connection{'s' if connections > 1 else ''}"
                figures.append(of_runs(PART, what, ratios, least=least, aim=aim, note=f"{our_rate:,.0f} to {bare_rate:,.0f} requests/s"))
                if connections == 1:
                    latencies = [our_latency for _, (_, our_latency) in runs]
                    bare_latency = sorted(latency for (_, latency), _ in runs)[pairs // 2]
                    note = f"bare ASGI app {bare_latency:.3f} ms"
                    figures.append(of_runs(PART, "p50 at one connection", latencies, "ms", most=0.2, note=note))
    return figures


def wrk(server: Server, path: str, connections: int, seconds: int, folder: Path) -> tuple[float, float]:
    """Requests a second, and the median latency in ms. Raises RuntimeError if a request failed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(folder / "post.lua"), server.url(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"{server.url(path)} failed under wrk:\n{output}")
    rate = re.search(r"Requests/sec:\s*([\d.]+)", output)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)", output)
    if rate is None or median is None:
        raise RuntimeError(f"wrk's output is not understood:\n{output}")
    return float(rate[1]), float(median[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[median[2]]
