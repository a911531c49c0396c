"""The files of `penstock init --project`: a pipeline, a backend, a test and a Dockerfile."""

from __future__ import annotations

from penstock.pipelines.config.source import fit_name

PIPELINE = """\
# How bright a picture is. `penstock check pipeline.toml` checks this file, `penstock serve
# pipeline.toml` serves it, and `curl -T photo.jpg http://127.0.0.1:8000/predict/NAME` asks it.

[pipeline]
name = "NAME"
description = "How bright a picture is."

[pipeline.inputs]
data = { kind = "image", description = "A picture of any size and format." }

[pipeline.outputs]
result = { kind = "number", description = "The mean of its pixels, 0 to 255." }
bright = { kind = "boolean", description = "Whether that is above the threshold." }

# Two nodes: each has a queue and threads of its own. The pixels go from one to the other.
[prepare]
backend = "S[DecodeMat,ResizeMat]"
resize_h = 64
resize_w = 64
next = "measure"

[measure]
backend = "Python[backend.py:Brightness]"
threshold = 127
max = 16                # the most pictures in one batch
# A model instead: penstock init model.onnx --preset imagenet
"""

BACKEND = '''\
"""A backend: gets batches of items, on a thread of its own."""

from __future__ import annotations

from typing import Any

from penstock import Backend, Context, InvalidInput, Item, Params


class BrightnessParams(Params):
    """The keys of the node in pipeline.toml, checked when it is loaded."""

    threshold: float = 127.0


class Brightness(Backend):
    """`data`: an image, H×W×3. Sets `result`, the mean of its pixels, and `bright`."""

    parameters = BrightnessParams

    def init(self, params: Any, context: Context) -> None:
        """Load models and other files here. It runs once for each instance, before `forward`."""
        self.threshold = params.threshold

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            image = item["data"]
            if image.size == 0:
                item["error"] = InvalidInput("the picture is empty")  # fails this item alone
                continue
            item["result"] = float(image.mean())
            item["bright"] = item["result"] > self.threshold
'''

TEST = '''\
"""Tests of the pipeline, without a server: python -m pytest"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from penstock import InvalidInput, Pipeline

FILE = Path(__file__).parent / "pipeline.toml"


def call(data: bytes) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with Pipeline.load(FILE) as pipeline:
            return await pipeline({"data": data})

    return asyncio.run(run())


def picture(value: int) -> bytes:
    _, encoded = cv2.imencode(".png", np.full((32, 48, 3), value, np.uint8))
    return encoded.tobytes()


@pytest.mark.parametrize(("value", "bright"), [(20, False), (200, True)])
def test_brightness(value: int, bright: bool) -> None:
    answer = call(picture(value))
    assert answer["result"] == pytest.approx(value)
    assert answer["bright"] is bright


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(InvalidInput):
        call(b"no picture")
'''

DOCKERFILE = """\
# docker build -t NAME . && docker run -p 8000:8000 NAME
FROM python:3.12-slim
RUN pip install --no-cache-dir penstock-serve==VERSION
RUN useradd --system --uid 10001 --no-create-home penstock
COPY pipeline.toml backend.py /pipeline/
ENV PYTHONUNBUFFERED=1
USER penstock
WORKDIR /pipeline
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", \\
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready')"]
ENTRYPOINT ["penstock", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["pipeline.toml"]
"""


def project_files(name: str, version: str) -> dict[str, str]:
    """Return the text of each file of a project, by its name in the folder."""
    files = {
        "pipeline.toml": PIPELINE,
        "backend.py": BACKEND,
        "test_pipeline.py": TEST,
        "Dockerfile": DOCKERFILE,
    }
    fitting = fit_name(name)
    image = fitting.lower().strip("._-") or "penstock"
    return {
        file: text.replace("NAME", image if file == "Dockerfile" else fitting).replace(
            "VERSION", version
        )
        for file, text in files.items()
    }
