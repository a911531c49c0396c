"""Image files at every door: /predict, /batch, /v2 and in process give one answer."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import pytest
from PIL import Image

from penstock import create_app
from penstock.backends.base import Backend
from penstock.backends.errors import PenstockError
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline

from ...backends.image.files import CUT, DISAGREEING, FILES, HEIGHT, METADATA, TURNED, WIDTH

NOT_READ = {"HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "text": b"hello, world"}
CASES = {**FILES, **TURNED, **METADATA, **CUT, **NOT_READ}
DECODERS = {
    "DecodeMat": [HEIGHT, WIDTH, 3],
    "DecodeTensor": [1, 3, HEIGHT, WIDTH],
}
MAX_PIXELS = WIDTH * HEIGHT


@register_backend("ImagesToShape")
class ToShape(Backend):
    """Answers the shape of an image or tensor and its mean."""

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            pixels = item["data"]
            item["result"] = [*pixels.shape, round(float(pixels.mean(dtype=float)), 3)]


def config(decoder: str, max_pixels: int = MAX_PIXELS) -> Any:
    return {
        "pipeline": {"name": "pictures"},
        "image": {"backend": f"S[{decoder},ImagesToShape]", "max_pixels": max_pixels},
    }


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> str:
    if request.param == "DecodeTensor":
        pytest.importorskip("torch")
    return str(request.param)


Answers = dict[str, Any]
"""The result of each case, or its error's code and text."""


def in_process(config: Any, cases: dict[str, bytes]) -> Answers:
    async def ask() -> Answers:
        answers: Answers = {}
        async with Pipeline.load(config) as pipeline:
            for case, data in cases.items():
                try:
                    answers[case] = (await pipeline({"data": data}))["result"]
                except PenstockError as error:
                    answers[case] = (error.code, str(error))
        return answers

    return asyncio.run(ask())


def answer(body: Any, status: int) -> Any:
    if "result" in body:
        assert status == 200
        return body["result"]
    assert status == {"too_large": 413, "invalid_input": 422}[body["code"]]
    return body["code"], body["detail"]


def predict(client: Any, cases: dict[str, bytes]) -> Answers:
    answers = {}
    for case, data in cases.items():
        got = client.post("/predict/pictures", content=data)
        answers[case] = answer(got.json(), got.status_code)
    return answers


def predict_json(client: Any, cases: dict[str, bytes]) -> Answers:
    answers = {}
    for case, data in cases.items():
        got = client.post("/predict/pictures", json={"image": base64.b64encode(data).decode()})
        answers[case] = answer(got.json(), got.status_code)
    return answers


def batch(client: Any, cases: dict[str, bytes]) -> Answers:
    answers = {}
    for some in pieces(cases):
        got = client.post(
            "/predict/pictures/batch", files=[("images", cases[case]) for case in some]
        ).json()
        for case, body in zip(some, got["results"], strict=True):
            answers[case] = answer(body, body.get("status", 200))
    return answers


def pieces(cases: dict[str, bytes]) -> Iterator[list[str]]:
    """Yield names of cases, few enough for one body."""
    names = list(cases)
    for at in range(0, len(names), 5):
        yield names[at : at + 5]


def v2(client: Any, cases: dict[str, bytes]) -> Answers:
    """Send each file as a BYTES tensor, in binary after the JSON."""
    answers = {}
    for case, data in cases.items():
        tensor = {
            "name": "data",
            "shape": [1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": 4 + len(data)},
        }
        text = json.dumps({"inputs": [tensor]}).encode()
        got = client.post(
            "/v2/models/pictures/infer",
            content=text + struct.pack("<I", len(data)) + data,
            headers={"Inference-Header-Content-Length": str(len(text))},
        )
        answers[case] = v2_answer(got)
    return answers


def v2_raw(client: Any, cases: dict[str, bytes]) -> Answers:
    """Send each file as a raw binary request, and ask for JSON."""
    answers = {}
    for case, data in cases.items():
        got = client.post(
            "/v2/models/pictures/infer",
            content=data,
            headers={"Inference-Header-Content-Length": "0"},
        )
        if got.status_code == 200:
            length = int(got.headers["Inference-Header-Content-Length"])
            (output,) = json.loads(got.content[:length])["outputs"]
            values = struct.unpack(f"<{output['shape'][0]}d", got.content[length:])
            answers[case] = list(values)
        else:
            answers[case] = v2_answer(got)
    return answers


def v2_answer(got: Any) -> Any:
    if got.status_code == 200:
        (output,) = got.json()["outputs"]
        assert output["name"] == "result"
        return output["data"]
    assert got.status_code == 400
    return got.json()["error"]


DOORS = [predict, predict_json, batch, v2, v2_raw]


def expected_at(door: Any, answers: Answers) -> Answers:
    """Return what a door shows of the answers in process: /v2 has texts without codes."""
    if door not in (v2, v2_raw):
        return answers
    return {case: text[1] if isinstance(text, tuple) else text for case, text in answers.items()}


def test_every_door_gives_the_same(running: Any, decoder: str) -> None:
    expected = in_process(config(decoder), CASES)
    for case in FILES | TURNED | METADATA:
        assert expected[case][:-1] == DECODERS[decoder], case
    for case in CUT | NOT_READ:
        assert expected[case][0] == "invalid_input", case
    with running(create_app(load(config(decoder)))) as client:
        for door in DOORS:
            assert door(client, CASES) == expected_at(door, expected), door.__name__


def test_every_door_compares_the_size_before_any_pixel(
    running: Any, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    cases = {**FILES, **DISAGREEING}
    expected = in_process(config(decoder, MAX_PIXELS - 1), cases)
    for case, (code, text) in expected.items():
        assert code == "too_large" and f"declares {WIDTH}x{HEIGHT} pixels" in text, case
    with running(create_app(load(config(decoder, MAX_PIXELS - 1)))) as client:
        for door in DOORS:
            assert door(client, cases) == expected_at(door, expected), door.__name__


def test_base64_in_json_is_text_at_v2(running: Any) -> None:
    """As in Triton, an element of BYTES in JSON is the text itself."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    tensor = {"name": "data", "shape": [1], "datatype": "BYTES", "data": [text]}
    with running(create_app(load(config("DecodeMat")))) as client:
        got = client.post("/v2/models/pictures/infer", json={"inputs": [tensor]})
    assert got.status_code == 400
    assert got.json()["error"].startswith("not an image file that can be read")
