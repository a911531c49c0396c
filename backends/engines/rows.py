"""Prove that a model keeps the rows of a batch apart, so that items may share a run.

A model's shapes can't prove it: `x - mean(x, axis=0)` has a row for each row, and each depends on
all of them. So two different rows are run together, each with copies of itself, and each alone, and
the answers are compared. Engines do this when they load, with random rows, and where the shapes are
not known then, or the model refuses random rows, with rows made from the first item that would
share a run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..item import Item
from .shapes import shape_text
from .sharing import shared

PROBE_ROWS = 3
"""The rows of a run of the probe, unless the batch is fixed. Of three, two rows make one order that
sorting changes (first, second, first) and one that turning round changes (second, first, first).
"""

TOLERANCE = 0.02
"""How far a row's answer alone may differ from that beside its copies, as a share of its largest
value. Kernels differ with the batch size, and 16 bits hold 2 to 3 digits.
"""

SHARE_OF_VALUE, SHARE_OF_LARGEST = 1e-3, 1e-5
"""How far a row's answer beside other rows may differ from that beside its copies, in the same
place of an equally large batch: as a share of each value, and of the largest. Only kernels that add
in no fixed order differ then. So it shows a small part of an answer that mixes rows (scores) beside
a large one that does not (boxes).
"""

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

AnyRow = TypeVar("AnyRow")


class Verdict:
    """What the instances of a node know of their model: why it mixes rows, "" if it keeps them
    apart, or None until one of them has found out. The others wait for a probe that runs.
    """

    __slots__ = ("__weakref__", "_lock", "_params", "_probed", "reason")

    def __init__(self, params: object) -> None:
        self._params = params  # alive, so that no other node's params get its id
        self._lock = threading.Lock()
        self._probed = False
        self.reason: str | None = None

    def at_load(self, probe: Callable[[], str | None]) -> str | None:
        """Return the reason. The first instance to ask runs `probe`, which returns None if the
        model can't be probed with random rows.
        """
        with self._lock:
            if self.reason is None and not self._probed:
                self.reason = probe()
                self._probed = True
            return self.reason

    def of_items(self, probe: Callable[[], str | None]) -> str | None:
        """Return the reason. As long as there is none, run `probe`."""
        with self._lock:
            if self.reason is None:
                self.reason = probe()
            return self.reason


def verdict_of(params: object) -> Verdict:
    """Return the verdict of the node whose instances have this one object as their params."""
    verdict: Verdict = shared(("rows", id(params)), lambda: Verdict(params))
    return verdict


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


def wrong_rows(label: str, item: Item, shape: Sequence[int], axis: int) -> InvalidInput:
    """Make the error for an input whose rows are not those that the item counts as.

    Without `request_size` the item counts as one row: its node could not tell which axis is the
    batch, or the array has no rows.
    """
    where = f", axis {axis}" if axis else ""
    rows = shape[axis] if len(shape) > axis else 0
    if "request_size" in item or rows < 1:
        return InvalidInput(
            f"{label}: expected {item.get('request_size', 1)} (the item's request_size) as batch "
            f"dimension{where}, found shape {shape_text(shape)}"
        )
    return InvalidInput(
        f"{label}: expected 1 row as batch dimension{where}, found shape {shape_text(shape)}: the "
        f"node's backend does not say which axis of data is the batch. For {rows} rows in one "
        f"item, set request_size = {rows} in the item"
    )


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


def first_reason(probes: Iterable[Callable[[], str | None]]) -> str | None:
    """Run probes until one tells why the model mixes rows. Return "" if none does, None if the
    model refuses all of them.
    """
    found: str | None = None
    for probe in probes:
        reason = probe()
        if reason:
            return reason
        found = reason if found is None else found
    return found


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


def why_mixed(
    rows: Sequence[AnyRow],
    run: Callable[[Sequence[AnyRow]], Sequence[NDArray[Any]]],
    count: int,
    names: Sequence[str] = (),
    *,
    as_alone: bool = True,
) -> str:
    """Run two rows together, in two orders of `count` rows, each with copies of itself, and each
    alone. Return why they may not share a run, or "" where the answers are the same.

    `run` returns the outputs of a run, without the rows of padding. `names` are those of the
    outputs; without them messages give their positions. Without `as_alone`, answers alone may have
    other values, as those of numbers that 16 bits can't hold. Raises what `run` raises.
    """

    def outputs(some: Sequence[AnyRow]) -> list[tuple[object, NDArray[Any]]]:
        arrays = run(some)
        return list(zip(names or range(len(arrays)), arrays, strict=True))

    turns = ([place % 2 for place in range(count)], [int(place == 0) for place in range(count)])
    together = [(turn, outputs([rows[which] for which in turn])) for turn in turns]
    for which, row in enumerate(rows[:count]):
        alone, copies = outputs([row]), outputs([row] * count)
        for some, length in ((alone, 1), (copies, count), *((own, count) for _, own in together)):
            for name, output in some:
                if output.ndim == 0 or len(output) != length:
                    shape = shape_text(output.shape)
                    return f"output {name} has shape {shape} for a batch of {length}"
        for index, (name, copy) in enumerate(copies):
            one = alone[index][1][0]
            if (
                as_alone and not all(_is_close(part, one, 0, TOLERANCE) for part in copy)
            ) or not all(
                _is_close(own[index][1][place], copy[place], SHARE_OF_VALUE, SHARE_OF_LARGEST)
                for turn, own in together
                for place in range(count)
                if turn[place] == which
            ):
                return f"output {name} of a row changes with the other rows of its batch"
    return ""


def _is_close(one: Any, other: Any, of_value: float, of_largest: float) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    if one.dtype.kind == "f":
        one, other = one.astype(np.float64), other.astype(np.float64)
    largest = np.abs(other[np.isfinite(other)]).max(initial=0)
    return bool(np.allclose(one, other, rtol=of_value, atol=of_largest * largest, equal_nan=True))
