"""The response cache: what it costs where no request is equal to another one, and what it brings
where all are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from figures import Figure, of_runs, say
from servers import penstock
from wrk import Side, compared, in_turns, ratios, require_wrk

PART = "response cache"
CONNECTIONS = 64
SECONDS = 4
"""Each run lasts so long: of 10 ms batches there are few in a second."""
MOST_COST = 0.03
"""Target, of the rate."""
LEAST_RATIO = 10.0
"""Target of the rate at which answers come from the cache, as a multiple of the model's."""

BACKENDS = """
import time

class Model:
    max = 8

    def forward(self, batch):
        time.sleep(0.01)
        for item in batch:
            item["result"] = [0.25] * 100

def size(data):
    return len(data)
"""
PIPELINE = """
[pipeline]
cache = {cache}

[pipeline.inputs]
data = {{ kind = "bytes" }}

[node]
backend = "Python[backends.py:{backend}]"
max = {most}
"""
PIPELINES = {
    "model": ("Model", 8, "false"),
    "model_cached": ("Model", 8, "true"),
    "noop": ("size", 32, "false"),
    "noop_cached": ("size", 32, "true"),
}
EQUAL = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.body = string.rep("x", {size})
"""
NEW = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
local source = io.open("/dev/urandom", "rb")
local mine, count, rest = source:read(16), 0, string.rep("x", {size} - 28)

request = function()
  count = count + 1
  return wrk.format(nil, nil, nil, mine .. string.format("%012d", count) .. rest)
end
"""


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "backends.py").write_text(BACKENDS)
        for pipeline, (backend, rows, cache) in PIPELINES.items():
            text = PIPELINE.format(backend=backend, most=rows, cache=cache)
            (folder / f"{pipeline}.toml").write_text(text)
        with penstock(folder) as server:

            def side(pipeline: str, content: str, size: int) -> Side:
                script = folder / f"{len(content)}-{size}.lua"
                script.write_text(content.format(size=size))
                return Side(f"{pipeline}, {size} bytes", server, f"/predict/{pipeline}", script)

            parts: list[tuple[str, str, int, float | None]] = [
                ("model", "10 ms a batch of 8, new inputs of 1 kB", 1 << 10, MOST_COST),
                ("model", "10 ms a batch of 8, new inputs of 100 kB", 100_000, MOST_COST),
                ("noop", "a function that takes no time, new inputs of 1 kB", 1 << 10, None),
            ]
            for pipeline, what, size, most in parts:
                say(f"{PART}, {what}")
                sides = [side(pipeline, NEW, size), side(f"{pipeline}_cached", NEW, size)]
                without, cached = in_turns(
                    sides, CONNECTIONS, quick=quick, seconds=SECONDS
                ).values()
                figures.append(
                    of_runs(
                        PART,
                        f"{what}: rate lost to the cache, of 1",
                        [1 - ratio for ratio in ratios(cached, without)],
                        most=most,
                        note=compared(cached, without),
                    )
                )
            say(f"{PART}, equal inputs")
            sides = [side("model", EQUAL, 1 << 10), side("model_cached", EQUAL, 1 << 10)]
            without, cached = in_turns(sides, CONNECTIONS, quick=quick, seconds=SECONDS).values()
            figures.append(
                of_runs(
                    PART,
                    "equal inputs of 1 kB: rate from the cache ÷ the rate of the 10 ms model",
                    ratios(cached, without),
                    least=LEAST_RATIO,
                    note=compared(cached, without),
                )
            )
    return figures
