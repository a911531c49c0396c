"""Encoded images for inputs of pixels: the key `decode`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import pytest_asyncio
from tritonclient.http import InferenceServerClient, InferInput, InferResult

from penstock import create_app
from penstock.backends.errors import ConfigError
from penstock.pipelines.config.load import load

pytestmark = pytest.mark.asyncio(loop_scope="module")

LENGTH = "Inference-Header-Content-Length"
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def identity(name: str, dtype: str, shape: Sequence[int], decode: str) -> dict[str, Any]:
    port = {"kind": "tensor", "dtype": dtype, "shape": shape}
    inputs = {"PIXELS": {**port, "decode": decode}}
    pipeline = {"name": name, "positional": True, "inputs": inputs, "outputs": {"SAME": port}}
    return {"pipeline": pipeline, "node": {"backend": "Identity", "max": 4}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        [
            identity("imagenet", "FP32", [-1, 3, 4, 6], "imagenet"),
            identity("rows", "UINT8", [-1, 4, 6, 3], "raw"),
            identity("one", "FP16", [1, 4, 6], "unit"),
            identity("open", "FP32", [-1, 3, -1, -1], "clip"),
        ]
    )
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


def png(*rgb: int, height: int = 8, width: int = 12) -> bytes:
    """Return a file of one colour, twice the size of what the models take."""
    image = np.full((height, width, 3), rgb[::-1], np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


async def infer(client: httpx.AsyncClient, model: str, array: Any, datatype: str) -> Any:
    given = InferInput("PIXELS", list(array.shape), datatype)
    given.set_data_from_numpy(array)
    body, length = InferenceServerClient.generate_request_body([given])
    headers = {LENGTH: str(length)} if length is not None else {}
    return await client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


async def pixels(client: httpx.AsyncClient, model: str, *images: bytes, column: bool = True) -> Any:
    array = np.array([*images, b""], object)[:-1]
    answer = await infer(client, model, array[:, None] if column else array, "BYTES")
    assert answer.status_code == 200, answer.text
    length = answer.headers.get(LENGTH)
    result: Any = InferResult.from_response_body(
        answer.content, header_length=None if length is None else int(length)
    )
    return result.as_numpy("SAME")


async def test_images_become_what_the_model_takes(client: httpx.AsyncClient) -> None:
    result = await pixels(client, "imagenet", png(255, 0, 10), png(1, 2, 3))
    assert result.shape == (2, 3, 4, 6) and result.dtype == np.float32
    for image, rgb in zip(result, ([255, 0, 10], [1, 2, 3]), strict=True):
        assert np.allclose(image[:, 0, 0], (np.asarray(rgb, np.float32) - MEAN) / STD, atol=1e-5)
    rows = await pixels(client, "rows", png(255, 0, 10), column=False)
    assert rows.shape == (1, 4, 6, 3) and rows[0, 0, 0].tolist() == [255, 0, 10]
    one = await pixels(client, "one", png(51, 51, 51), column=False)
    assert one.shape == (1, 4, 6) and one.dtype == np.float16 and np.allclose(one, 0.2, atol=1e-3)
    assert (await pixels(client, "open", png(0, 0, 0))).shape == (1, 3, 224, 224)


async def test_pixels_are_taken_too(client: httpx.AsyncClient) -> None:
    array = np.random.default_rng(0).random((2, 3, 4, 6), np.float32)
    answer = await infer(client, "imagenet", array, "FP32")
    length = int(answer.headers[LENGTH])
    result: Any = InferResult.from_response_body(answer.content, header_length=length)
    assert np.array_equal(result.as_numpy("SAME"), array)
    metadata = (await client.get("/v2/models/imagenet")).json()
    assert metadata["inputs"][0]["datatype"] == "FP32"


@pytest.mark.parametrize(
    ("images", "shape", "message"),
    [
        ([b"no image"], [1, 1], "input 'PIXELS': "),
        ([png(1, 1, 1), b""], [2], "input 'PIXELS', image 2 of 2: the image is empty (0 bytes)"),
        ([png(1, 1, 1)] * 2, [1, 2], "Expected [-1,1], got [1,2]"),
        ([png(1, 1, 1)] * 5, [5], "batch-size must be <= 4"),
    ],
)
async def test_images_that_can_not_be_taken(
    client: httpx.AsyncClient, images: list[bytes], shape: list[int], message: str
) -> None:
    array = np.array([*images, b""], object)[:-1].reshape(shape)
    answer = await infer(client, "imagenet", array, "BYTES")
    assert answer.status_code == 400 and message in json.loads(answer.content)["error"]


@pytest.mark.parametrize(
    ("dtype", "shape", "decode", "message"),
    [
        ("FP32", [-1, 3, 4, 6], "imagnet", "expected one of imagenet"),
        ("FP32", [-1, 4], "raw", "images need CxHxW or HxWxC"),
        ("UINT8", [-1, 3, 4, 6], "imagenet", "'imagenet' gives floats, and the dtype is uint8"),
        ("INT32", [-1, 3, 4, 6], "raw", "the dtype is int32"),
    ],
)
async def test_a_key_that_does_not_fit_its_input(
    dtype: str, shape: list[int], decode: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"inputs.PIXELS.*{message}"):
        load(identity("wrong", dtype, shape, decode))
