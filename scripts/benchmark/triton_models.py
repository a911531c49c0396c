"""A Python model of Triton's, served by Penstock and by the real Triton: the time of one request.

One client asks both in turns, by HTTP with binary tensors.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from figures import ROOT, Figure, of_runs, say
from servers import penstock

PART = "Triton's Python models"
NAME = "double"
CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""
MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(one, "X").as_numpy() * 2)]
            )
            for one in requests
        ]
"""
SIZES = {"64 B": 16, "600 kB": 150_000}
"""Elements of the tensor, by how they are called."""
MOST_RATIO = 1.3
"""Target, as a multiple of Triton's time."""
CALLS = 100
"""Calls of a turn. The slowest tell of other programs, so that a turn counts by its median."""


def measure(quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name) / "models" / NAME
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(CONFIG)
        (folder / "1" / "model.py").write_text(MODEL)
        triton = running.enter_context(_triton(Path(name), folder))
        ours = f"127.0.0.1:{running.enter_context(penstock(folder.parent)).port}"
        for size, count in SIZES.items():
            say(f"{PART}, {size}")
            turns = [
                (_seconds(ours, count), _seconds(triton, count)) for _ in range(5 if quick else 15)
            ]
            mine, others = (median(seconds) * 1e6 for seconds in zip(*turns, strict=True))
            figures.append(
                of_runs(
                    PART,
                    f"{size}, time of a request ÷ Triton's, 1 connection",
                    [ours / theirs for ours, theirs in turns],
                    most=MOST_RATIO,
                    note=f"{mine:.0f} to {others:.0f} µs",
                )
            )
    return figures


@contextmanager
def _triton(directory: Path, model: Path) -> Iterator[str]:
    """Run the real Triton of the tests with a model, and yield its address.

    Raises RuntimeError where it can't be installed.
    """
    sys.path.append(str(ROOT))
    import pytest

    from tests.triton_server import triton_server

    (directory / "triton").mkdir()
    try:
        with triton_server(directory / "triton") as server:
            server.add(model)
            yield server.address
    except (pytest.fail.Exception, pytest.skip.Exception) as error:
        raise RuntimeError(str(error)) from error


def _seconds(address: str, count: int) -> float:
    """Return the median time of a request with so many numbers."""
    tensor = {
        "name": "X",
        "shape": [1, count],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 4 * count},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = head + bytes(4 * count)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection = http.client.HTTPConnection(address)
    times = []
    try:
        for _ in range(CALLS):
            started = time.perf_counter()
            connection.request("POST", f"/v2/models/{NAME}/infer", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            times.append(time.perf_counter() - started)
            if answer.status != 200 or len(content) < 4 * count:
                raise RuntimeError(f"{address} answered {answer.status}: {content[:200]!r}")
    finally:
        connection.close()
    return median(times)
