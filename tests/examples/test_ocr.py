"""examples/ocr: what RapidOCR itself reads on the page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from rapidocr import RapidOCR

from .conftest import Load, Serve

EXAMPLE = Path(__file__).parents[2] / "examples" / "ocr"
PAGE = EXAMPLE / "page.png"


def with_models(example: Path, folder: Path) -> Path:
    """Copy an example, and its models as its file says. Return the pipeline's file."""
    shutil.copytree(example, folder, dirs_exist_ok=True)
    (pipeline,) = folder.glob("*.toml")
    (command,) = re.findall(r"^# +(cp .*)$", pipeline.read_text(), re.MULTILINE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}  # so that `python` is the one that has the models
    subprocess.run(command, shell=True, check=True, cwd=folder, env=environment)
    return pipeline


def pixels_of(image: Path) -> Any:
    return cv2.imread(str(image))


@pytest.fixture(scope="module")
def expected() -> Any:
    recognise = RapidOCR(params={"Global.log_level": "error"})
    return recognise(pixels_of(PAGE))


def test_the_page_is_read_as_by_rapidocr(
    tmp_path: Path, serve: Serve, load: Load, expected: Any
) -> None:
    with serve(with_models(EXAMPLE, tmp_path)) as client:
        answer = client.put("ocr", content=PAGE.read_bytes())
        assert answer.status_code == 200, answer.text
        lines = answer.json()["lines"]
        assert answer.json()["result"].split("\n") == list(expected.txts)
        assert [line["text"] for line in lines] == list(expected.txts)
        assert [line["box"] for line in lines] == expected.boxes.tolist()
        # RapidOCR batches lines by 6, so it pads some of them to another width.
        scores = [line["score"] for line in lines]
        assert scores == pytest.approx(expected.scores, abs=0.03)
        drawn = {text for text, *_ in load(EXAMPLE / "page.py").LINES}
        assert drawn == set(expected.txts)
        blank = cv2.imencode(".png", pixels_of(PAGE)[-32:, -32:])[1].tobytes()
        assert client.put("ocr", content=blank).json() == {"result": "", "lines": []}
