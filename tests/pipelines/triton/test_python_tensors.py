"""The tensors of Triton's Python models: what `execute` gets and clients are answered, as the real
Triton does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from penstock import create_app

LOOPS = ("uvloop",)

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            pixels, image = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("PIXELS", "IMAGE")
            )
            seen = np.full((len(image), 1), f"{pixels.shape} {image.shape}", dtype=object)
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("FLAT", pixels * 2),
                pb_utils.Tensor("SAME", image),
                pb_utils.Tensor("SEEN", seen),
            ]))
        return responses
"""

CONFIG = """
backend: "python"
max_batch_size: 4
input [
  { name: "PIXELS" data_type: TYPE_FP32 dims: [ 2, -1 ] reshape { shape: [ 1, 2, -1 ] } },
  { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } }
]
output [
  { name: "FLAT" data_type: TYPE_FP32 dims: [ 2, -1 ] reshape { shape: [ 1, 2, -1 ] } },
  { name: "SAME" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [ ] } },
  { name: "SEEN" data_type: TYPE_STRING dims: [ 1 ] }
]
"""
THREAD = 'parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "thread" } }'


def body_of(rows: int) -> tuple[bytes, dict[str, str]]:
    """Return the body and the header of a request, whose images are no UTF-8."""
    inputs = []
    for name, array in {
        "PIXELS": np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3),
        "IMAGE": np.array([[b"\xff\xd8\x00jpeg"]] * rows, object),
    }.items():
        tensor = InferInput(name, list(array.shape), "BYTES" if name == "IMAGE" else "FP32")
        inputs.append(tensor.set_data_from_numpy(array))
    body, length = InferenceServerClient.generate_request_body(inputs)
    return body, {"Inference-Header-Content-Length": str(length)}


async def answer(client: httpx.AsyncClient, rows: int) -> dict[str, Any]:
    content, headers = body_of(rows)
    response = await client.post("/v2/models/images/infer", content=content, headers=headers)
    assert response.status_code == 200, response.text
    length = response.headers.get("Inference-Header-Content-Length")
    result = InferenceServerClient.parse_response_body(
        response.content, header_length=None if length is None else int(length)
    )
    arrays = {name: result.as_numpy(name) for name in ("FLAT", "SAME", "SEEN")}
    return {name: array.tolist() for name, array in arrays.items() if array is not None}


@pytest.mark.asyncio
async def test_tensors_are_reshaped_and_bytes_stay_bytes(tmp_path: Path, triton: Any) -> None:
    folder = tmp_path / "images"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL)
    (folder / "config.pbtxt").write_text(CONFIG + THREAD)
    triton.add(folder)
    app = create_app(tmp_path)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client,
        httpx.AsyncClient(base_url=f"http://{triton.address}") as real,
    ):
        for rows in (1, 3):
            ours = await answer(client, rows)
            assert ours["SEEN"][0] == [f"({rows}, 1, 2, 3) ({rows},)".encode()]
            assert ours["SAME"] == [[b"\xff\xd8\x00jpeg"]] * rows
            assert ours == await answer(real, rows)
