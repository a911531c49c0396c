"""Rows to probe a model with: random ones, and pairs made from an item's (rows.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

CONTRAST = 0.05
"""The size of the second row's floats, as a share of the first's. A small row shows best what comes
from a large one, and their means, extremes and norms differ.
"""

GUESSED_SIZES = (64, 256)
"""Sizes to try for axes that the model leaves open: multiples of the usual strides."""

LARGEST_PROBE_BYTES = 64 << 20
"""No guessed input may be larger."""

Row: TypeAlias = list[NDArray[Any]]
"""One row for each input of the model, each 1×..."""


def is_known(row: Sequence[Sequence[int | None]]) -> bool:
    return all(size is not None for shape in row for size in shape)


def guesses(shapes: Sequence[Sequence[int | None]]) -> Iterator[list[tuple[int, ...]]]:
    """Yield complete shapes to try for inputs whose axes after the batch may be open (None)."""
    for guess in GUESSED_SIZES:
        complete = [tuple(guess if size is None else size for size in shape) for shape in shapes]
        if is_known(shapes):
            yield complete
            return
        if all(np.prod(shape, dtype=float) * 4 <= LARGEST_PROBE_BYTES for shape in complete):
            yield complete


def random_rows(ports: Sequence[tuple[Sequence[int], np.dtype[Any]]], least: int = 0) -> list[Row]:
    """Make two rows whose values differ in sign and size, because a model that drops rows often
    drops those below a threshold.

    `ports` has each input's shape after the batch axis, and its dtype. Integers are `least` or
    `least` + 1, which is a valid mask, token and index for most models.
    """
    random = np.random.default_rng(0)
    columns = [_random_column(random, shape, dtype, least) for shape, dtype in ports]
    return [list(row) for row in zip(*columns, strict=True)]


def smallest_integers(dtypes: Iterable[np.dtype[Any]]) -> Sequence[int]:
    """Return the `least` of each pair of random rows to probe with.

    0 and 1 are both masks and tokens. Beside a row of zeros, their largest value often has no
    effect, so models that take 1 and 2 are probed with them too.
    """
    return (0, 1) if any(dtype.kind in "iu" and dtype != np.uint8 for dtype in dtypes) else (0,)


def _random_column(
    random: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any], least: int
) -> Row:
    whole = (1, *shape)
    if dtype.kind == "O":
        return [np.full(whole, text, object) for text in ("a word", "3")]
    if dtype.kind in "fc":
        first, second = 3 * np.abs(random.standard_normal((2, *whole)))
        return [first.astype(dtype), (_alternating(second) * CONTRAST).astype(dtype)]
    if dtype == np.uint8:
        return [random.integers(*ends, whole, np.uint8) for ends in ((0, 32), (224, 256))]
    bits = random.integers(0, 2, whole)
    return [(least + part).astype(dtype) for part in (np.ones_like(bits), bits * 0)]


def row_at(values: Sequence[NDArray[Any]], axes: Sequence[int], index: int) -> Row:
    """Return one row of values that have their batch on these axes. Each stays where it is."""
    return [
        value.take([index], axis) if value.ndim > axis else value
        for value, axis in zip(values, axes, strict=True)
    ]


def first_rows(values: Sequence[NDArray[Any]], axes: Sequence[int]) -> list[Row]:
    """Return the first two rows of values. Empty if the values have fewer, or these do not
    differ.
    """
    if any(
        value.ndim <= axis or value.shape[axis] < 2
        for value, axis in zip(values, axes, strict=True)
    ):
        return []
    rows = [row_at(values, axes, index) for index in range(2)]
    return [] if _are_equal(rows[0], rows[1]) else rows


def _are_equal(row: Row, other: Row) -> bool:
    return all(np.array_equal(one, two) for one, two in zip(row, other, strict=True))


def _alternating(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values with the signs -, +, -, +, ... in the order of their memory."""
    signs = np.where(np.arange(values.size) % 2, 1, -1)
    return values * signs.reshape(values.shape)


def rows_like(row: Row) -> list[Row]:
    """Make two rows from an item's: itself, and one whose values come backwards and differ in
    their extremes and norm. Empty where the rows do not differ.
    """
    for make in (_backwards, _others):
        other = [make(value) for value in row]
        if not _are_equal(row, other):
            return [row, other]
    return []


def _backwards(value: NDArray[Any]) -> NDArray[Any]:
    """Return smaller values in reverse order. Whole numbers stay valid as masks, lengths and
    tokens: 0 and 1 remain, greater ones are halved.
    """
    backwards = value.reshape(-1)[::-1].reshape(value.shape)
    if value.dtype.kind in "fc":
        return (_alternating(backwards) * CONTRAST).astype(value.dtype)
    if value.dtype.kind in "iu":
        return np.where(backwards > 1, backwards // 2 + backwards % 2, backwards).astype(
            value.dtype
        )
    return backwards


def further_rows_like(row: Row, *, on_gpu: bool) -> list[list[Row]]:
    """Make more pairs of rows from an item's, which models may refuse: itself, and one of larger
    floats and of whole numbers that are 1 smaller or 1 larger.

    They show what `rows_like` hides: 0 and 1 come backwards with the same extremes, and a model may
    treat floats above 1 in another way. On a GPU whole numbers stay, because an index out of bounds
    ends the process.
    """
    kept = "iu" if on_gpu else ""
    smaller, larger = (
        [value if value.dtype.kind in kept else make(value) for value in row]
        for make in (_step_down, _step_up)
    )
    others = [smaller] if _are_equal(smaller, larger) else [smaller, larger]
    return [[row, other] for other in others if not _are_equal(row, other)]


def _step_down(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.kind in "iu":
        return np.where(value > 0, value - 1, value).astype(value.dtype)
    return np.zeros_like(value) if value.dtype.kind == "b" else _larger(value)


def _step_up(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.kind in "iu":
        below = value < np.iinfo(value.dtype).max
        return np.where(below, value + 1, value).astype(value.dtype)
    return np.ones_like(value) if value.dtype.kind == "b" else _larger(value)


def _larger(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.kind not in "fc":
        return value
    with np.errstate(over="ignore"):
        return (value / CONTRAST).astype(value.dtype)


def _others(value: NDArray[Any]) -> NDArray[Any]:
    if value.dtype.kind in "OU":
        return np.array([str(text) + " a" for text in value.reshape(-1)], object).reshape(
            value.shape
        )
    return np.zeros_like(value)
