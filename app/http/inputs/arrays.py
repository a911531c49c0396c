"""Arrays from the nested lists of a JSON value."""

from __future__ import annotations

from itertools import chain
from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.lazy_numpy import np

from ..json_text import kind_of
from .datatypes import DATATYPES, Array, Datatype, flat_array
from .declared import Tensor

MAX_DIMENSIONS = 32


def array_of(value: Any, expected: Tensor, name: str) -> Array:
    """Make the array of a tensor, which `name` stands for in errors.

    It has the declared datatype, else that of its elements: bool, int64, float64 or strings.
    Raises `InvalidRequest` for lists of several lengths, for elements of another type, and for
    another shape than the declared one.
    """
    flat, shape = flattened(value, name)
    wanted = expected.shape
    if wanted is not None and not _fits(shape, wanted):
        raise InvalidRequest(
            f"{name!r} is a tensor of shape {shape}, expected {list(wanted)} (-1: any size)"
        )
    datatype = expected.datatype or datatype_of_values(flat, name)
    try:
        array = flat_array(flat, datatype, name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    if not datatype.size and (expected.text or expected.datatype is None):
        array = np.empty(len(flat), np.object_)
        array[:] = flat
    return array.reshape(shape)


def flattened(value: Any, name: str) -> tuple[list[Any], list[int]]:
    """Return the elements of nested lists, and the shape."""
    if type(value) is not list:
        raise InvalidRequest(
            f'{name!r} is a JSON {kind_of(value)}, expected nested arrays (kind = "tensor")'
        )
    flat: list[Any] = value
    shape = [len(flat)]
    while flat and type(flat[0]) is list:
        size = len(flat[0])
        for member in flat:
            if type(member) is not list or len(member) != size:
                raise InvalidRequest(
                    f"{name!r} is not a tensor: its arrays at level {len(shape) + 1} have several "
                    "lengths"
                )
        shape.append(size)
        if len(shape) > MAX_DIMENSIONS:
            raise InvalidRequest(
                f"{name!r} has more than {MAX_DIMENSIONS} dimensions, which no tensor may have"
            )
        flat = list(chain.from_iterable(flat))
    return flat, shape


def _fits(shape: list[int], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        wanted_size in {size, -1} for size, wanted_size in zip(shape, wanted, strict=True)
    )


def datatype_of_values(flat: list[Any], name: str) -> Datatype:
    types: set[type] = set(map(type, flat))
    known: tuple[tuple[set[type], str], ...] = (
        ({bool}, "BOOL"),
        ({int}, "INT64"),
        ({int, float}, "FP64"),
        ({str}, "BYTES"),
    )
    for members, datatype in known:
        if types and types <= members:
            return DATATYPES[datatype]
    if not types:
        return DATATYPES["FP64"]
    shown = ", ".join(sorted({kind_of(value) for value in flat}))
    raise InvalidRequest(
        f"{name!r} is not a tensor: its elements are of the JSON types {shown}, expected numbers, "
        "booleans or strings alone"
    )
