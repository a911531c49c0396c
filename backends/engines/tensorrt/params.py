"""Parameters of TensorrtTensor.

They are declared without TensorRT and torch, so that a file can be checked on a machine that lacks
them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...params import EngineParams


class TensorrtParams(EngineParams):
    cuda_graphs: bool = Field(
        True,
        description="capture a CUDA graph for each batch size (1, 2, 4 ... max) at warm-up",
    )
    library: Literal["", "tensorrt", "tensorrt_rtx"] = Field(
        "",
        description="which TensorRT to use; default: the first that is installed, tensorrt or "
        "tensorrt_rtx",
    )
    data_format: Literal["nchw", "nhwc"] = Field(
        "nchw",
        description="layout of the images in data; nhwc images are transposed inside the network",
    )
    top_k: int = Field(
        1,
        ge=1,
        le=3840,
        description="with ArgMax, SoftmaxArgMax or SoftmaxMax: how many of the best classes top "
        "lists",
    )
