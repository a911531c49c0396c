"""Backends that run others differently: in pieces, or depending on the item. Sleep is here, too.

What they ask of a child is what an executor asks: a batch of at most its `max`. A child may be given fewer items than its `min`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from ..base import UNBOUNDED, Backend, BatchRange, Context, Params
from ..errors import ConfigError, InvalidInput, Problem
from ..item import Item
from ..params import Shapes, batch_sizes
from .compose import Identity, blame, soften


def pieces(batch: list[Item], most: int, *, evenly: bool = False) -> Iterator[list[Item]]:
    """The batch in order, cut into as few pieces as there can be of `most` rows each (the sum of `request_size`).

    All but the last are full, or, `evenly`, all are as large as one another (10 by 4: 4, 3, 3). An item of more rows than `most` is
    a piece of its own.
    """
    left = sum([item.get("request_size", 1) for item in batch])
    piece: list[Item] = []
    size = goal = 0
    for item in batch:
        rows = item.get("request_size", 1)
        if piece and size + rows > goal:
            yield piece
            left -= size
            piece, size = [], 0
        if not piece:
            goal = -(-left // -(-left // most)) if evenly else most
        piece.append(item)
        size += rows
    if piece:
        yield piece


def run_child(
    child: Backend, batch: list[Item], most: int = UNBOUNDED, *, evenly: bool = False
) -> None:
    """Run a child in pieces that it takes, of at most `most` rows. What it raises names it; an `InvalidInput` that it raises for one
    item alone is that item's soft failure.
    """
    for piece in pieces(batch, min(child.max, most), evenly=evenly):
        alone = piece[0] if len(piece) == 1 else None  # a child may do with its list what it likes
        try:
            child.forward(piece)
        except Exception as error:
            if alone is None or not isinstance(error, InvalidInput):
                blame(error, type(child).__name__)
                raise
            soften(alone, error)


class Around(Backend):
    """Base of those with one child, whose range depends on it."""

    parameters: ClassVar[type[Params] | None] = Params
    child_count = (1, 1)
    shape_of_first_child = True

    def init(self, params: Any, context: Context) -> None:
        """The child's range is known for certain now: an engine learns its own from its model."""
        self.min, self.max = self.declared_range(
            params, tuple(BatchRange(child.min, child.max) for child in self.children)
        )


class Parallel(Around):
    """Takes a batch of any size and runs its child in pieces as large as it takes, one after the other.

    torchpipe runs the pieces in threads at the same time. Here a backend has one thread; `instance_num` is what runs in parallel.
    """

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return BatchRange(children[0].min, UNBOUNDED)

    def forward(self, batch: list[Item]) -> None:
        run_child(self.children[0], batch)


class MaxParams(Params):
    max: Shapes | None = Field(
        None, description="the most that the child gets at once; not given: what it takes itself"
    )

    @property
    def most(self) -> int:
        return max(batch_sizes(self.max)) if self.max is not None else UNBOUNDED


class Max(Around):
    """Takes a batch of any size and runs its child in pieces of at most `max`, one after the other."""

    parameters = MaxParams

    @classmethod
    def declared_range(cls, params: MaxParams, children: tuple[BatchRange, ...]) -> BatchRange:
        (child,) = children
        if params.most < child.min:
            raise ConfigError(
                [
                    Problem(
                        f"Max: pieces of at most {params.most} are less than the child takes: it has the range {child}"
                    )
                ]
            )
        return BatchRange(child.min, UNBOUNDED)

    def init(self, params: MaxParams, context: Context) -> None:
        super().init(params, context)
        self._most = params.most

    def forward(self, batch: list[Item]) -> None:
        run_child(self.children[0], batch, self._most)


class Branch(Backend):
    """Base of those that send each item into the first child or the second; with one child, the second is Identity."""

    parameters: ClassVar[type[Params] | None] = Params
    child_count = (1, 2)

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        """[1, 1] if every child has max 1; else up to what the smaller of the others takes. One with max 1 is looped per item.

        Nobody knows how many items of a batch go where, so no `min` of one child can bind the other.
        """
        batching = [child for child in children if child.max != 1]
        if not batching:
            return BatchRange(1, 1)
        return BatchRange(
            min(child.min for child in children), min(child.max for child in batching)
        )

    def init(self, params: Any, context: Context) -> None:
        self.min, self.max = self.declared_range(
            params, tuple(BatchRange(child.min, child.max) for child in self.children)
        )
        self._branches = (*self.children, Identity())[:2]

    def goes_first(self, item: Item) -> bool:
        """Whether this item goes into the first child."""
        raise NotImplementedError

    def forward(self, batch: list[Item]) -> None:
        parts: tuple[list[Item], list[Item]] = ([], [])
        for item in batch:
            parts[not self.goes_first(item)].append(item)
        for child, part in zip(self._branches, parts, strict=True):
            run_child(child, part)


class KeyParams(Params):
    key: str = Field(
        "key",
        min_length=1,
        description="the item's key that is looked for; its value does not matter",
    )


class HasKey(Branch):
    """`HasKey(key)[A,B]`: items that have the key go into A, the others into B. With one child the others go on as they are
    (`result` is `data`).
    """

    parameters = KeyParams

    def init(self, params: KeyParams, context: Context) -> None:
        super().init(params, context)
        self._key = params.key

    def goes_first(self, item: Item) -> bool:
        return self._key in item


class NotHasKey(HasKey):
    """`NotHasKey(key)[A,B]`: items that do not have the key go into A, the others into B. With one child the others go on as they are
    (`result` is `data`).
    """

    def goes_first(self, item: Item) -> bool:
        return self._key not in item


class SleepParams(Params):
    time: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="how long, milliseconds an item"
    )


class Sleep(Backend):
    """Sleeps for each item; then `result` is `data`. It takes one item at a time, as in torchpipe."""

    parameters = SleepParams
    max = 1

    def init(self, params: SleepParams, context: Context) -> None:
        self._seconds = params.time / 1000

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            time.sleep(self._seconds)
            item["result"] = item["data"]
