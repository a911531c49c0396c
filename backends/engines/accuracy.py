"""How far an engine's answers at a lower precision are from those of the same model in full.

Every engine that computes in less than its model's own precision measures this when it loads, and
says it in the log: a faster answer is never silently another one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base import Context

SAMPLE_ROWS = 8
"""Random rows to compare, where the file gives no values for warm-up."""


class Accuracy(NamedTuple):
    """The difference between two engines' answers to the same rows."""

    largest: float
    """The largest difference of two values; infinite if one of them is not finite."""
    relative: float
    """The largest difference within an output, as a share of that output's largest value."""
    rows: int
    same_class: int | None
    """The rows with the same best class. None unless the only output is N×K scores, K > 1."""

    def __str__(self) -> str:
        text = f"largest difference {self.largest:.1e} ({self.relative:.1e} of the largest value)"
        if self.same_class is None:
            return text
        return f"{text}, same best class in {self.same_class} of {self.rows} rows"


def compare(
    reference: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]], rows: int
) -> Accuracy | None:
    """Compare the outputs of two engines for the same `rows` rows.

    Both have the outputs in one order and with one shape each. Outputs that hold no floats
    (classes, texts) have no distance and are left out. Return None if no output is left, or if the
    shapes differ, as where a detector finds another number of boxes.
    """
    pairs = [
        (np.asarray(one, np.float64), np.asarray(other, np.float64))
        for one, other in zip(reference, found, strict=True)
        if _is_floating(one) and one.size
    ]
    if not pairs or any(one.shape != other.shape for one, other in pairs):
        return None
    largest = relative = 0.0
    for one, other in pairs:
        difference = _largest_difference(one, other)
        scale = float(np.abs(one, where=np.isfinite(one), out=np.zeros_like(one)).max())
        largest = max(largest, difference)
        relative = max(relative, difference / scale if scale else difference)
    same = None
    if len(reference) == 1 and pairs[0][0].ndim == 2 and pairs[0][0].shape[1] > 1:
        known = np.isfinite(pairs[0][0]).all(1)  # scores that are not numbers have no best class
        same = int((known & (pairs[0][0].argmax(1) == pairs[0][1].argmax(1))).sum())
    return Accuracy(largest, relative, rows, same)


def _largest_difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the largest difference. Values that are not finite differ unless they are equal."""
    with np.errstate(invalid="ignore"):
        differences = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    differences[same] = 0
    return float(np.nan_to_num(differences, nan=np.inf, posinf=np.inf).max())


def _is_floating(values: NDArray[Any]) -> bool:
    # NumPy has no kind for the bfloat16 of ml_dtypes: it is "V", and converts to float64 all the
    # same.
    return values.dtype.kind == "f" or values.dtype.name.startswith(("bfloat16", "float8"))


def sample_inputs(
    ports: Sequence[tuple[Sequence[int], np.dtype[Any]]], rows: int = SAMPLE_ROWS
) -> list[NDArray[Any]]:
    """Make random inputs of `rows` rows, always the same.

    `ports` has each input's shape after the batch axis, and its dtype. Floats are normally
    distributed, as normalised images are; uint8 are pixels; other integers are 0 or 1, which most
    models take as a mask, token or index.
    """
    random = np.random.default_rng(0)
    return [_sample(random, (rows, *shape), dtype) for shape, dtype in ports]


def _sample(
    random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    if dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    if dtype.kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def log_accuracy(
    logger: logging.Logger,
    owner: str,
    context: Context,
    accuracy: Accuracy | str | None,
    *,
    precision: str,
    reference: str,
) -> None:
    """Log what a precision costs, once for all instances of a node.

    `owner` names node and engine; `precision` and `reference` are what was compared ("int8",
    "fp32"). `accuracy` may be the reason why it could not be measured; None: the outputs have no
    distance.
    """
    if context.instance:
        return
    if not isinstance(accuracy, Accuracy):
        accuracy = f"not compared: {accuracy or 'the outputs have no distance'}"
    logger.info(
        "%s: %s against %s: %s",
        owner,
        precision,
        reference,
        accuracy,
        extra={"pipeline": context.pipeline, "node": context.node},
    )
