"""examples/detector: what nudenet itself finds in the photograph."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from nudenet import NudeDetector

from .conftest import Serve
from .test_ocr import pixels_of, with_models

EXAMPLE = Path(__file__).parents[2] / "examples" / "detector"
PHOTO = EXAMPLE / "astronaut.jpg"


def test_the_photograph_has_what_nudenet_finds(tmp_path: Path, serve: Serve) -> None:
    photo = pixels_of(PHOTO)
    wide = cv2.copyMakeBorder(photo, 0, 0, 60, 300, cv2.BORDER_CONSTANT, value=(90, 120, 60))
    with serve(with_models(EXAMPLE, tmp_path)) as client:
        for image in (photo, wide):
            content = cv2.imencode(".png", image)[1].tobytes()
            answer = client.put("detector", content=content)
            assert answer.status_code == 200, answer.text
            found, expected = answer.json()["result"], NudeDetector().detect(image)
            assert len(found) == len(expected) > 0
            for one, other in zip(found, expected, strict=True):
                assert one["label"] == other["class"]
                assert one["score"] == pytest.approx(other["score"], abs=0.02)
                x, y, width, height = other["box"]  # in whole pixels
                assert one["box"] == pytest.approx([x, y, x + width, y + height], abs=2)
