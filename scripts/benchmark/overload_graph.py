"""A graph of three nodes with a fan-out, to overload: pages of 1 to 300 parts.

Its backends sleep, as a model on a GPU does, seen from the processor.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from open_loops import Target
from servers import penstock

MOST_PARTS = 300
BODIES = 500

BACKENDS = '''
import time


class Decode:
    """`result`: the number of parts, which the body names."""

    def forward(self, batch):
        time.sleep(0.001 + 0.004 * len(batch))
        for item in batch:
            item["result"] = int(item["data"])


class Detect:
    """`result`: the parts."""

    def forward(self, batch):
        time.sleep(0.02 + 0.01 * len(batch))
        for item in batch:
            item["result"] = list(range(item["data"]))


class Classify:
    def forward(self, batch):
        time.sleep(0.005 + 0.0005 * len(batch))
        for item in batch:
            item["result"] = item["data"]


def count(parts):
    return len(parts)
'''
PIPELINE = """
[pipeline]
name = "parts"

[pipeline.inputs]
data = { kind = "bytes" }

[decode]
backend = "Python[parts_backends.py:Decode]"
max = 8
instance_num = 2
next = "detect"

[detect]
backend = "Python[parts_backends.py:Detect]"
max = 8
next = "each"

[each]
backend = "MapReduce"
jump = "classify"
next = "count"

[count]
backend = "Python[parts_backends.py:count]"
max = 64

[classify]
backend = "Python[parts_backends.py:Classify]"
max = 64
"""


@contextmanager
def graph_target() -> Iterator[Target]:
    """Serve the graph. Its capacity is counted in parts."""
    draw = random.Random(0).random
    parts = [max(1, int(math.exp(draw() * math.log(MOST_PARTS)))) for _ in range(BODIES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "parts_backends.py").write_text(BACKENDS)
        (folder / "parts.toml").write_text(PIPELINE)
        with penstock(folder / "parts.toml") as server:
            yield Target(
                "graph",
                server.url("/predict/parts"),
                server.pid,
                [b"%d" % count for count in parts],
                parts,
                "parts",
                server.url("/health/ready"),
            )
