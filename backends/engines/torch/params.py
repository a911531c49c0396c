"""Parameters of the torch engines, declared without importing torch: a file that uses them can be checked anywhere."""

from __future__ import annotations

from pydantic import Field

from ..params import EngineParams


class TorchParams(EngineParams):
    cuda_graphs: bool = Field(True, description="capture the work of each batch size at warm-up, on a GPU, where shapes are known")
