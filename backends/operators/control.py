"""Backends that run others in pieces or depending on the item, and Sleep.

They give a child what an executor would: a batch of at most its `max`. A child may get fewer items
than its `min`.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from pydantic import Field

from ..base import UNBOUNDED, Backend, BatchRange, Context, Params
from ..errors import ConfigError, InvalidInput, Problem
from ..item import Item
from ..params import Shapes, batch_sizes
from .compose import Identity, blame, pieces, soften


def run_child(
    child: Backend, batch: list[Item], max_rows: int = UNBOUNDED, *, evenly: bool = False
) -> None:
    """Run a child in pieces that it takes, of at most `max_rows` rows.

    An exception carries the name of the child. An `InvalidInput` raised for one item alone becomes
    that item's soft failure.
    """
    for piece in pieces(batch, min(child.max, max_rows), evenly=evenly):
        alone = piece[0] if len(piece) == 1 else None  # a child is free to change its list
        try:
            child.forward(piece)
        except InvalidInput as error:
            if alone is None:
                blame(error, type(child).__name__)
                raise
            soften(alone, error)
        except BaseException as error:
            blame(error, type(child).__name__)
            raise


class Around(Backend):
    """Base class of backends with one child that determines their range."""

    parameters: ClassVar[type[Params] | None] = Params
    in_front = True
    child_count = (1, 1)
    shape_of_first_child = True

    def init(self, params: Any, context: Context) -> None:
        """Take the range from the child's. It is final now: engines learn theirs from the model."""
        self.min, self.max = self.declared_range(
            params, tuple(BatchRange(child.min, child.max) for child in self.children)
        )
        self.signature = self.children[0].signature
        self.passes_data = self.children[0].passes_data


class Parallel(Around):
    """Takes a batch of any size and runs its child in the largest pieces that the child takes.

    The pieces run one after the other.

    torchpipe runs the pieces in threads at the same time. Here a backend has one thread, and
    `instance_num` sets what runs in parallel.
    """

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return BatchRange(children[0].min, UNBOUNDED)

    def forward(self, batch: list[Item]) -> None:
        run_child(self.children[0], batch)


class MaxParams(Params):
    max: Shapes | None = Field(
        None, description="the most rows that the child gets at once; not given: its own max"
    )

    @property
    def max_rows(self) -> int:
        """The value of `max` as a number."""
        return max(batch_sizes(self.max)) if self.max is not None else UNBOUNDED


class Max(Around):
    """Takes a batch of any size and runs its child in pieces of at most `max` rows, in order."""

    parameters = MaxParams

    @classmethod
    def declared_range(cls, params: MaxParams, children: tuple[BatchRange, ...]) -> BatchRange:
        (child,) = children
        if params.max_rows < child.min:
            message = (
                f"Max: pieces of at most {params.max_rows} rows are smaller than the child takes: "
                f"its range is {child}"
            )
            raise ConfigError([Problem(message)])
        return BatchRange(child.min, UNBOUNDED)

    def init(self, params: MaxParams, context: Context) -> None:
        super().init(params, context)
        self._max_rows = params.max_rows

    def forward(self, batch: list[Item]) -> None:
        run_child(self.children[0], batch, self._max_rows)


class Branch(Backend):
    """Base class of backends that send each item to the first child or the second.

    With one child, the second is Identity.
    """

    parameters: ClassVar[type[Params] | None] = Params
    child_count = (1, 2)

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        """Return [1, 1] if every child has max 1, else up to the smallest max of the others.

        A child with max 1 is looped per item. How many items of a batch go to which child is not
        known beforehand, so the `min` of one child can't bind the other.
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
        self.passes_data = all(branch.passes_data for branch in self._branches)
        first, second = (branch.signature for branch in self._branches)
        if first is not None and first == second:  # else an item's arrays may be either's
            self.signature = first

    def goes_first(self, item: Item) -> bool:
        """Return whether this item goes to the first child."""
        raise NotImplementedError

    def forward(self, batch: list[Item]) -> None:
        groups: tuple[list[Item], list[Item]] = ([], [])
        for item in batch:
            groups[not self.goes_first(item)].append(item)
        for child, group in zip(self._branches, groups, strict=True):
            run_child(child, group)


class KeyParams(Params):
    key: str = Field(
        "key",
        min_length=1,
        description="the key to look for in the item; its value does not matter",
    )


class HasKey(Branch):
    """`HasKey(key)[A,B]`: items with the key go to A, the others to B.

    With one child the others go on unchanged (`result` is `data`).
    """

    parameters = KeyParams

    def init(self, params: KeyParams, context: Context) -> None:
        super().init(params, context)
        self._key = params.key

    def goes_first(self, item: Item) -> bool:
        return self._key in item


class NotHasKey(HasKey):
    """`NotHasKey(key)[A,B]`: items without the key go to A, the others to B.

    With one child the others go on unchanged (`result` is `data`).
    """

    def goes_first(self, item: Item) -> bool:
        return self._key not in item


class SleepParams(Params):
    time: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="how long to sleep, in milliseconds per item"
    )


class Sleep(Backend):
    """Sleeps for each item; then `result` is `data`. Takes one item at a time, as in torchpipe."""

    parameters = SleepParams
    blocks = "it sleeps"
    passes_data = True
    max = 1

    def init(self, params: SleepParams, context: Context) -> None:
        self._seconds = params.time / 1000

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            time.sleep(self._seconds)
            item["result"] = item["data"]
