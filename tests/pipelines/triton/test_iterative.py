"""Triton's iterative sequences: a Python model asks for further steps of a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import create_app

LOOPS = ("uvloop",)

HEAD = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.left = {}

    def step(self, request):
        # Counts down. Returns how many steps are left, and a response with what it sees.
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        start, identity = int(tensors["START"][0, 0]), int(tensors["ID"][0, 0])
        if start:
            self.left[identity] = int(tensors["IN"][0, 0])
        self.left[identity] -= 1
        seen = [self.left[identity], start, int(identity > 0), request.flags()]
        return self.left[identity], pb_utils.InferenceResponse(
            [pb_utils.Tensor("OUT", np.array([seen], np.int32))]
        )
"""

STREAMS = """
    def execute(self, requests):
        for request in requests:
            left, response = self.step(request)
            sender = request.get_response_sender()
            if left:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                sender.send(response)
            else:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""

ANSWERS_ONCE = """
    def execute(self, requests):
        responses = []
        for request in requests:
            left, response = self.step(request)
            if left:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            responses.append(None if left else response)
        return responses
"""

CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "IN" data_type: TYPE_INT32 dims: 1 }
output { name: "OUT" data_type: TYPE_INT32 dims: 4 }
sequence_batching {
  iterative_sequence: true
  oldest { max_candidate_sequences: 4 }  # else Triton runs null requests for slots without one
  control_input [
    { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } },
    { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  ]
}
parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }
"""


@pytest.mark.asyncio
async def test_a_request_is_run_again_as_triton_does(tmp_path: Path, triton: Any) -> None:
    for name, body, more in (
        ("streams", STREAMS, "model_transaction_policy { decoupled: true }"),
        ("once", ANSWERS_ONCE, ""),
    ):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.py").write_text(HEAD + body)
        (tmp_path / name / "config.pbtxt").write_text(CONFIG + more)
    triton.add(tmp_path / "streams")
    app = create_app(tmp_path)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client,
        httpx.AsyncClient(base_url=f"http://{triton.address}") as real,
    ):
        for steps in (1, 3):
            asked = {"IN": steps}
            parts = [await _parts(each, asked) for each in (client, real)]
            assert parts[0] == parts[1]
            assert [part[0] for part in parts[0]] == [*range(steps - 1, -1, -1)]
            answer = await client.post("/v2/models/once/generate", json=asked)
            assert answer.json()["OUT"] == [0, int(steps == 1), 1, int(steps == 1)]


async def _parts(client: httpx.AsyncClient, asked: dict[str, int]) -> list[list[int]]:
    answer = await client.post("/v2/models/streams/generate_stream", json=asked)
    lines = [line.removeprefix("data:") for line in answer.text.splitlines() if line]
    return [json.loads(line)["OUT"] for line in lines]
