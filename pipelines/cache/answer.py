"""A kept answer: a copy of a final item that no caller holds, and new items made of it.

No two callers share anything that can be changed. Lists and dicts are copied for each. Arrays are
copied too, but for a caller that only reads: it gets read-only views, which cost nothing.
"""

from __future__ import annotations

import datetime
import decimal
import pathlib
import uuid
from collections.abc import Callable
from functools import partial
from sys import getsizeof
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel

from penstock.backends.item import Item

OBJECT_BYTES = 64
"""A kept value has about so many bytes besides its own: its place in a dict and what copies it."""

ANSWER_BYTES = 512
"""An answer has about so many besides those of its values."""

NUMBER_BYTES = 40
"""A number in a list, with its place."""

MOST_LEVELS = 100

Copy: TypeAlias = Callable[[bool], Any]
"""Makes a caller's own value. True: the caller only reads it."""

_NUMBERS = frozenset({int, float, bool, type(None), complex})
_UNCHANGEABLE = frozenset(
    {
        *_NUMBERS,
        str,
        bytes,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
        pathlib.PosixPath,
    }
)


class UnkeptAnswerError(Exception):
    """Raised for an answer that can't be kept. The text says which of its values is the reason."""


class Answer:
    """A kept answer. `size` is about its bytes, `expires` a time in seconds; inf: never.

    `own` are the keys whose values the pipeline left as they came: each caller has its own.
    """

    __slots__ = ("_copies", "_values", "expires", "own", "size")

    def __init__(self, item: Item, asked: Item, most: float = float("inf")) -> None:
        """Keep a copy of `item`, the final item of the request `asked`.

        Raises `UnkeptAnswerError` for a value of an unknown type, or of more than `most` bytes.
        """
        self.expires = float("inf")
        self.own = tuple(
            key
            for key, value in item.items()
            if key == "data" or (key in asked and value is asked[key])
        )
        self._values: dict[str, Any] = {}
        self._copies: list[tuple[str, Copy]] = []
        keeper = _Keeper(most - ANSWER_BYTES)
        for key, value in item.items():
            if key not in self.own:
                keeper.key = key
                kept, copy = keeper.keep(value, MOST_LEVELS)
                if copy is None:
                    self._values[key] = kept
                else:
                    self._copies.append((key, copy))
        self.size = ANSWER_BYTES + keeper.size

    def item(self, asked: Item, *, reads_only: bool) -> Item:
        """Return the final item of the request `asked`, which is equal to the first one."""
        item = {key: asked[key] for key in self.own}
        item.update(self._values)
        for key, copy in self._copies:
            item[key] = copy(reads_only)
        return item


class _Keeper:
    """Copies the values of one item. `size`: the bytes of the copies until now."""

    __slots__ = ("_most", "key", "size")

    def __init__(self, most: float) -> None:
        self._most = most
        self.key = ""
        self.size = 0

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > self._most:
            raise UnkeptAnswerError(f"it is larger than {self._most:.0f} bytes")

    def keep(self, value: Any, levels: int) -> tuple[Any, Copy | None]:
        """Return a value that everyone may have, or what makes copies of it."""
        kind = type(value)
        if kind in _UNCHANGEABLE or isinstance(value, np.generic):
            self._count(OBJECT_BYTES + getsizeof(value))
            return value, None
        if kind is np.ndarray:
            return self._array(value)
        if not levels:
            raise UnkeptAnswerError(f"{self.key!r} nests too deep")
        if kind is list or kind is tuple:
            return self._sequence(value, kind, levels)
        if kind is dict:
            return self._dict(value, levels)
        if kind is bytearray:
            self._count(OBJECT_BYTES + len(value))
            return None, partial(_copied, bytearray(value))
        if kind.__module__ == "torch" and kind.__name__ == "Tensor" and value.is_cpu:
            self._count(OBJECT_BYTES + value.nbytes)
            tensor = value.detach().clone()
            return None, lambda _: tensor.clone()
        if isinstance(value, tuple) and hasattr(kind, "_make"):
            _, copy = self._sequence(tuple(value), tuple, levels)
            if copy is None:
                return value, None
            return None, lambda reads_only: kind._make(copy(reads_only))
        if isinstance(value, BaseModel):
            self._dict({**vars(value), **(value.__pydantic_extra__ or {})}, levels)  # its size
            model = value.model_copy(deep=True)
            return None, lambda _: model.model_copy(deep=True)
        raise UnkeptAnswerError(f"{self.key!r} has a {kind.__module__}.{kind.__qualname__}")

    def _array(self, value: np.ndarray[Any, Any]) -> tuple[Any, Copy]:
        if value.dtype.hasobject:
            if value.dtype.kind != "O" or not _UNCHANGEABLE.issuperset(map(type, value.flat)):
                raise UnkeptAnswerError(f"{self.key!r} has an array of {value.dtype}")
            self._count(sum(map(getsizeof, value.flat)))
        self._count(2 * OBJECT_BYTES + value.nbytes)
        kept = value.copy(order="K")
        kept.flags.writeable = False
        return None, partial(_array_of, kept)

    def _sequence(
        self, value: list[Any] | tuple[Any, ...], kind: type[Any], levels: int
    ) -> tuple[Any, Copy | None]:
        self._count(OBJECT_BYTES + 8 * len(value))
        if _NUMBERS.issuperset(map(type, value)):
            self._count(NUMBER_BYTES * len(value))
            return (value, None) if kind is tuple else (None, partial(_copied, value.copy()))  # type: ignore[union-attr]
        kept: list[Any] = []
        copies: list[tuple[int, Copy]] = []
        for index, member in enumerate(value):
            one, copy = self.keep(member, levels - 1)
            kept.append(one)
            if copy is not None:
                copies.append((index, copy))
        if kind is list:
            return None, partial(_list_of, kept, copies) if copies else partial(_copied, kept)
        return (tuple(kept), None) if not copies else (None, partial(_tuple_of, kept, copies))

    def _dict(self, value: dict[Any, Any], levels: int) -> tuple[Any, Copy]:
        self._count(OBJECT_BYTES + getsizeof(value))
        kept: dict[Any, Any] = {}
        copies: list[tuple[Any, Copy]] = []
        for name, member in value.items():
            if type(name) is not str and type(name) not in _UNCHANGEABLE:
                raise UnkeptAnswerError(f"{self.key!r} has a key that is a {type(name).__name__}")
            self._count(getsizeof(name))
            kept[name], copy = self.keep(member, levels - 1)
            if copy is not None:
                copies.append((name, copy))
        return None, partial(_list_of, kept, copies) if copies else partial(_copied, kept)


def _copied(kept: Any, reads_only: bool) -> Any:
    return kept.copy()


def _array_of(kept: np.ndarray[Any, Any], reads_only: bool) -> np.ndarray[Any, Any]:
    # A view, because a caller may also change the shape of an array in place.
    return kept.view() if reads_only else kept.copy(order="K")


def _list_of(kept: Any, copies: list[tuple[Any, Copy]], reads_only: bool) -> Any:
    """Copy a list or a dict, and each of its members that can be changed."""
    own = kept.copy()
    for place, copy in copies:
        own[place] = copy(reads_only)
    return own


def _tuple_of(kept: list[Any], copies: list[tuple[Any, Copy]], reads_only: bool) -> Any:
    return tuple(_list_of(kept, copies, reads_only))
