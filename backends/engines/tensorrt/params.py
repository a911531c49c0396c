"""Parameters of TensorrtTensor, declared without importing TensorRT or torch: a file that uses them can be checked anywhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...params import EngineParams


class TensorrtParams(EngineParams):
    cuda_graphs: bool = Field(
        True, description="capture the work of each batch size at warm-up, where shapes are known"
    )
    library: Literal["", "tensorrt", "tensorrt_rtx"] = Field(
        "", description="which TensorRT; not given: the first that is installed"
    )
    data_format: Literal["nchw", "nhwc"] = Field(
        "nchw", description="layout in which images come; nhwc: turned inside the network"
    )
    top_k: int = Field(
        1,
        ge=1,
        le=3840,
        description="with ArgMax, SoftmaxArgMax or SoftmaxMax: how many of the best classes `top` lists",
    )
