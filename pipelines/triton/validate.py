"""Finds what Triton would refuse in a ModelConfig."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.backends.errors import Problem

from .model import TritonModel


def validate(model: TritonModel) -> Iterator[Problem]:
    """Yield what is wrong with the configuration of a model."""
    yield from ()
