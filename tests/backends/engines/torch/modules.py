"""Modules whose outputs are easy to predict."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pair(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(image), mask + 1


class Pool(nn.Module):
    """The mean of each channel, of images of any size."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3))


class Shout(nn.Module):
    """Upper-case texts, and the length of each text."""

    def forward(self, texts: list[str]) -> tuple[list[str], Tensor]:
        lengths: list[int] = []
        shouted: list[str] = []
        for text in texts:
            lengths.append(len(text))
            shouted.append(text.upper())
        return shouted, torch.tensor(lengths)


class Named(nn.Module):
    """A dict of tensors in, a dict of tensors out."""

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sum": tensors["a"] + tensors["b"], "a": tensors["a"]}


class Total(nn.Module):
    """One row, however large the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0, keepdim=True)


class Twice(nn.Module):
    """Two rows for each row of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x])
