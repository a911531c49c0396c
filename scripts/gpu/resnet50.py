"""ResNet-50 for the measurements: random weights of a fixed seed, since only the speed counts."""

from __future__ import annotations

from typing import Any

import torch


def net() -> Any:
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.resnet50(weights=None)
