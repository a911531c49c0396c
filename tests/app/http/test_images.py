"""Image files at every door: /predict, /batch and in process give one answer."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from PIL import Image

from penstock import create_app
from penstock.backends.base import Backend
from penstock.backends.errors import PenstockError
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline


@register_backend("ImagesToShape")
class ToShape(Backend):
    """Answers the shape of an image or tensor and its mean."""

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            pixels = item["data"]
            item["result"] = [*pixels.shape, round(float(pixels.mean(dtype=float)), 3)]


def config(decoder: str) -> Any:
    return {
        "pipeline": {"name": "pictures"},
        "image": {"backend": f"S[{decoder},ImagesToShape]", "max_pixels": 64 * 48},
    }


def files() -> dict[str, bytes]:
    def encode(kind: str, width: int = 64, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image = Image.new("RGB", (width, 48), "red")
        image.paste("blue", (0, 0, 20, 10))
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x112] = 6
    jpeg = encode("JPEG")
    return {
        "AVIF": encode("AVIF", exif=exif),
        "cut": jpeg[: len(jpeg) - 40] + b"\xff\xd9",
        "JFIF": jpeg[:2] + b"\xff\xe0\0\6JFIF" + jpeg[2:],
        "large": encode("ICO", 65, sizes=[(65, 48)]),
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    }


async def in_process(decoder: str) -> list[Any]:
    async with Pipeline.load(config(decoder)) as pipeline:
        answers: list[Any] = []
        for data in files().values():
            try:
                answers.append((await pipeline({"data": data}))["result"])
            except PenstockError as error:
                answers.append((error.code, str(error)))
        return answers


@pytest.mark.parametrize("decoder", ["DecodeMat", "DecodeTensor"])
def test_every_door(running: Any, decoder: str) -> None:
    if decoder == "DecodeTensor":
        pytest.importorskip("torch")
    expected = asyncio.run(in_process(decoder))
    shapes = {
        "DecodeMat": [[64, 48, 3], [48, 64, 3]],
        "DecodeTensor": [[1, 3, 64, 48], [1, 3, 48, 64]],
    }
    assert [expected[0][:-1], expected[2][:-1]] == shapes[decoder]
    assert [expected[at][0] for at in (1, 3, 4)] == ["invalid_input", "too_large", "invalid_input"]
    with running(create_app(load(config(decoder)))) as client:

        def answer(body: Any, status: int) -> Any:
            if "result" in body:
                assert status == 200
                return body["result"]
            assert status == (413 if body["code"] == "too_large" else 422)
            return body["code"], body["detail"]

        single = [client.post("/predict/pictures", content=data) for data in files().values()]
        assert [answer(got.json(), got.status_code) for got in single] == expected
        batch = client.post(
            "/predict/pictures/batch", files=[("images", data) for data in files().values()]
        ).json()["results"]
        assert [answer(body, body.get("status", 200)) for body in batch] == expected
