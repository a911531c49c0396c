"""Parameters of OpenvinoTensor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...params import CpuEngineParams


class OpenvinoParams(CpuEngineParams):
    model: str = Field(description="the model file: .xml (with .bin beside it), .onnx or .tflite")
    data_format: Literal["nchw", "nhwc"] = Field(
        "nchw",
        description="layout of the images in data; nhwc images are transposed inside the network",
    )
    calibration: str | None = Field(
        None,
        description="with precision = int8: a .npz file with values like those of requests, an "
        "array for each input, by name, or a folder of such files",
    )
