"""Compare Triton's answer with ours. Pure: nothing here waits or counts."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any, NamedTuple

from penstock.backends.lazy_numpy import np

from ..http.inputs.datatypes import Array
from .answers import Answer, Output, Outputs
from .options import Tolerance

COMPARED_AT_ONCE_ELEMENTS = 1 << 20
SHOWN_CHARACTERS = 60
SHOWN_ERROR_CHARACTERS = 400


class Distance(NamedTuple):
    """The largest difference of an output: absolute, and relative to Triton's value."""

    absolute: float = 0.0
    relative: float = 0.0


class Comparison(NamedTuple):
    """The differences in words, none if the answers agree, and the distance of each output."""

    differences: list[str]
    distances: dict[str, Distance]


def compare(
    theirs: Answer, ours: Answer, tolerance: Tolerance, classes: Mapping[str, int]
) -> Comparison:
    """Compare two answers. `classes`: the outputs that are best classes, as `value:index:label`."""
    distances: dict[str, Distance] = {}
    if theirs.status != ours.status or (theirs.error is None) != (ours.error is None):
        return Comparison([f"{_outcome(theirs)} at Triton, {_outcome(ours)} here"], {})
    if theirs.error is not None:  # both refuse it
        return Comparison([], {})
    if len(theirs.parts) != len(ours.parts):
        text = f"{len(theirs.parts)} parts at Triton, {len(ours.parts)} here"
        return Comparison([text], {})
    differences: list[str] = []
    for number, (expected, found) in enumerate(zip(theirs.parts, ours.parts, strict=True), 1):
        part = f"part {number}: " if len(theirs.parts) > 1 else ""
        differences += [
            part + text for text in _compare_part(expected, found, tolerance, classes, distances)
        ]
    return Comparison(differences, distances)


def _outcome(answer: Answer) -> str:
    if answer.error is None:
        return f"status {answer.status}"
    text = _shown(answer.error, SHOWN_ERROR_CHARACTERS)
    # In a stream by gRPC, an error is an answer like others.
    return f"an error ({text})" if answer.status == "OK" else f"status {answer.status} ({text})"


def _shown(value: Any, most: int = SHOWN_CHARACTERS) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _compare_part(
    theirs: Outputs,
    ours: Outputs,
    tolerance: Tolerance,
    classes: Mapping[str, int],
    distances: dict[str, Distance],
) -> list[str]:
    differences = [f"output '{name}' is at Triton only" for name in theirs if name not in ours]
    differences += [f"output '{name}' is here only" for name in ours if name not in theirs]
    for name, expected in theirs.items():
        found = ours.get(name)
        if found is None:
            continue
        if expected.datatype != found.datatype:
            text = f"{expected.datatype} at Triton, {found.datatype} here"
        elif expected.shape != found.shape:
            text = f"shape {[*expected.shape]} at Triton, {[*found.shape]} here"
        elif expected.values.dtype == object:
            compared = _compare_classes if name in classes else _compare_texts
            text = compared(expected.values, found.values, tolerance)
        else:
            text, distance = _compare_numbers(expected, found, tolerance)
            distances[name] = Distance(*map(max, distance, distances.get(name, Distance())))
        if text:
            differences.append(f"output '{name}': {text}")
    return differences


def _compare_numbers(theirs: Output, ours: Output, tolerance: Tolerance) -> tuple[str, Distance]:
    """Compare in pieces, so that large tensors take little memory besides their own."""
    is_float = theirs.values.dtype.kind == "f"
    first: int | None = None
    wrong = 0
    absolute = relative = 0.0
    expected, found = theirs.values.reshape(-1), ours.values.reshape(-1)
    for start in range(0, expected.size, COMPARED_AT_ONCE_ELEMENTS):
        piece = slice(start, start + COMPARED_AT_ONCE_ELEMENTS)
        same = expected[piece] == found[piece]
        if is_float:
            same |= np.isnan(expected[piece]) & np.isnan(found[piece])
        if same.all():
            continue
        a, b = (each[piece][~same].astype(np.float64) for each in (expected, found))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            distance = np.abs(a - b)
            distance[np.isnan(distance)] = np.inf
            far = (
                distance > tolerance.atol + tolerance.rtol * np.abs(a)
                if is_float
                else distance >= 0
            )
            far |= np.isinf(distance)
            share = np.where(a == 0, np.inf, distance / np.abs(a))
            share[np.isnan(share)] = np.inf
        absolute = max(absolute, float(distance.max()))
        relative = max(relative, float(share.max()))
        if far.any():
            wrong += int(far.sum())
            if first is None:
                first = start + int(np.flatnonzero(~same)[int(np.argmax(far))])
    if first is None:
        return "", Distance(absolute, relative)
    bound = (
        f" by more than {tolerance.atol:g} + {tolerance.rtol:g} × |Triton's|" if is_float else ""
    )
    text = (
        f"{_value(expected[first])} at Triton, {_value(found[first])} here, at "
        f"{_index(first, theirs.shape)}; {wrong} of {expected.size} values differ{bound}"
    )
    return text, Distance(absolute, relative)


def _value(value: Any) -> str:
    return f"{float(value):.9g}" if value.dtype.kind == "f" else str(value)


def _index(flat: int, shape: tuple[int, ...]) -> list[int]:
    return [int(one) for one in np.unravel_index(flat, shape)] if shape else []


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _compare_texts(theirs: Array, ours: Array, tolerance: Tolerance) -> str:
    expected, found = theirs.reshape(-1), ours.reshape(-1)
    wrong = [
        index
        for index, (a, b) in enumerate(zip(expected, found, strict=True))
        if _as_bytes(a) != _as_bytes(b)
    ]
    if not wrong:
        return ""
    return _texts_differ(theirs, ours, wrong)


def _texts_differ(theirs: Array, ours: Array, wrong: list[int]) -> str:
    first = wrong[0]
    a, b = (_shown(_as_bytes(each.reshape(-1)[first])) for each in (theirs, ours))
    where = _index(first, theirs.shape)
    return f"{a} at Triton, {b} here, at {where}; {len(wrong)} of {theirs.size} values differ"


def _compare_classes(theirs: Array, ours: Array, tolerance: Tolerance) -> str:
    """Compare best classes, each as `value:index[:label]`: the scores within the tolerance.

    Classes of a row whose scores are that near may change places.
    """
    count = theirs.shape[-1] if theirs.ndim else 1
    expected, found = theirs.reshape(-1), ours.reshape(-1)
    wrong = []
    for start in range(0, expected.size, count or 1):
        scores = dict(map(_class_and_score, found[start : start + count]))
        for index in range(start, start + count):
            name, score = _class_and_score(expected[index])
            _, other = _class_and_score(found[index])
            if name not in scores or not all(
                _near(score, one, tolerance) for one in (other, scores[name])
            ):
                wrong.append(index)
    return _texts_differ(theirs, ours, wrong) if wrong else ""


def _class_and_score(text: Any) -> tuple[bytes, bytes]:
    """Split `value:index[:label]` into what names the class, and the value."""
    score, _, name = _as_bytes(text).partition(b":")
    return name, score


def _near(theirs: bytes, ours: bytes, tolerance: Tolerance) -> bool:
    try:
        a, b = float(theirs), float(ours)
    except ValueError:
        return False
    if isnan(a) or isnan(b):
        return isnan(a) and isnan(b)
    return a == b or abs(a - b) <= tolerance.atol + tolerance.rtol * abs(a)
