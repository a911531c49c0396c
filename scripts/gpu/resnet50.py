"""ResNet-50 with random weights of a fixed seed, for measurements, where only the speed counts."""

from __future__ import annotations

from typing import Any

import torch


def net() -> Any:
    import torchvision  # pyright: ignore[reportMissingImports]  # only GPU machines have it

    torch.manual_seed(0)
    return torchvision.models.resnet50(weights=None)
