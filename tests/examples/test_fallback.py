"""examples/fallback: the fast decoder if it can, else the other one."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from .conftest import Call

PIPELINE = Path(__file__).parents[2] / "examples" / "fallback" / "fallback.toml"
FAST = ["fast", "colour"]
BOTH = ["fast", "full", "colour"]

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photograph() -> Pixels:
    pixels: Pixels = load_sample_image("china.jpg")
    return pixels


def encode(pixels: Pixels, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def ask(client: httpx.Client, file: bytes) -> tuple[int, Any, list[str]]:
    """Return the status, the answer and the nodes that ran."""
    answer = client.put("fallback", content=file)
    return (
        answer.status_code,
        answer.json(),
        re.findall(r"run\.(\w+);", answer.headers.get("server-timing", "")),
    )


def colour(written: str) -> NDArray[np.int64]:
    assert re.fullmatch(r"#[0-9a-f]{6}", written)
    return np.array(list(bytes.fromhex(written[1:])))


@pytest.mark.parametrize(
    ("kind", "nodes", "tolerance"),
    [
        ("JPEG", FAST, 2),
        ("PNG", BOTH, 0.51),
        ("TIFF", BOTH, 0.51),
        ("WEBP", BOTH, 3),
        ("GIF", BOTH, 3),
    ],
)
def test_the_colour_of_a_photograph_in_any_format(
    client: httpx.Client,
    photograph: Pixels,
    kind: str,
    nodes: list[str],
    tolerance: float,
) -> None:
    status, answer, ran = ask(client, encode(photograph, kind))
    assert (status, set(answer), ran) == (200, {"result"}, nodes)
    assert np.abs(colour(answer["result"]) - photograph.mean((0, 1))).max() <= tolerance


def test_a_small_jpeg_is_decoded_whole(client: httpx.Client) -> None:
    pixels = np.full((40, 500, 3), (200, 100, 50), np.uint8)
    status, answer, ran = ask(client, encode(pixels, "JPEG"))
    assert (status, ran) == (200, BOTH)
    assert np.abs(colour(answer["result"]) - pixels[0, 0]).max() <= 2


def test_a_jpeg_with_data_after_its_end_is_decoded_whole(
    client: httpx.Client, photograph: Pixels
) -> None:
    file = encode(photograph, "JPEG")
    fast = ask(client, file)[1]
    status, answer, ran = ask(client, file + b"from a telephone")
    assert (status, ran) == (200, BOTH)
    assert np.abs(colour(answer["result"]) - colour(fast["result"])).max() <= 2


def test_a_file_that_both_refuse_gets_the_error_of_the_second(
    client: httpx.Client, photograph: Pixels
) -> None:
    file = encode(photograph, "JPEG")
    for broken, reason in [
        (b"no picture at all", "not an image file"),
        (file[: len(file) // 2], "truncated"),
    ]:
        status, answer, _ = ask(client, broken)
        assert (status, answer["code"]) == (422, "invalid_input")
        assert reason in answer["detail"]


def test_a_jpeg_that_claims_to_be_too_large(client: httpx.Client, photograph: Pixels) -> None:
    """Its header says 65000×65000, more than either decoder takes."""
    file = bytearray(encode(photograph, "JPEG"))
    frame = file.index(b"\xff\xc0")
    file[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    status, answer, _ = ask(client, bytes(file))
    assert (status, answer["code"]) == (413, "too_large")


def test_penstock_call(call: Call) -> None:
    digit = Path(__file__).parents[2] / "examples" / "digits" / "digit.png"
    mean = np.asarray(Image.open(digit)).mean()
    assert np.abs(colour(call(PIPELINE, digit)["result"]) - mean).max() <= 0.51
