"""Backends that only torchpipe's old files need: Range, Random, Result2Other, KeyA2KeyB.

Nothing else uses them: without their lines in `registry.py` this module can be deleted.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from pydantic import Field

from ..base import BatchRange, Context, Params, RangeText
from ..errors import ConfigError, Problem
from ..item import Item
from .control import Around, Branch, run_child
from .keys import Key, Result2Key, TargetKey


class RangeParams(Params):
    range: RangeText = Field(description="min,max: the batch sizes that it takes")


class Range(Around):
    """`Range[A]` takes every batch size of `range`, and runs A on parts whose sizes A takes and that sum up to it: A with the range
    [2, 9] makes [8, 19] of it, where 10 is 5 + 5.

    A size of `range` that is no sum of sizes that A takes is an error at load.
    """

    parameters = RangeParams
    sets_range = True

    @classmethod
    def declared_range(cls, params: RangeParams, children: tuple[BatchRange, ...]) -> BatchRange:
        found, (child,) = BatchRange(*params.range), children
        impossible = first_impossible(found, child)
        if impossible is not None:
            reason = (
                f"Range: {impossible} of {found} is not a sum of batch sizes that the child takes: "
                f"its range is {child}"
            )
            raise ConfigError([Problem(reason, key="range")])
        return found

    def forward(self, batch: list[Item]) -> None:
        run_child(self.children[0], batch, evenly=True)


def first_impossible(wanted: BatchRange, child: BatchRange) -> int | None:
    """The first size of `wanted` that is no sum of sizes of `child`; None: each is one.

    k parts sum up to anything from k * min to k * max; the fewest parts that reach n are ceil(n / max), and more of them are only
    further above. Once what k and k + 1 parts make leaves no gap, none is left above either.
    """
    size = wanted.min
    while size <= wanted.max:
        parts = -(-size // child.max)
        if parts * child.min > size:
            return size
        size = parts * child.max + 1
        if (parts + 1) * child.min <= size:
            break
    return None


class RandomParams(Params):
    p: float = Field(ge=0, le=1, description="the probability of the first child")


class Random(Branch):
    """`Random(p)[A,B]`: each item goes into A with the probability `p`, else into B."""

    parameters = RandomParams
    child_count = (2, 2)

    def init(self, params: RandomParams, context: Context) -> None:
        super().init(params, context)
        self._p = params.p

    def goes_first(self, item: Item) -> bool:
        return random.random() < self._p


class Result2OtherParams(Params):
    other: TargetKey = Field("other", description="where the child's result goes")


class Result2Other(Result2Key):
    """`Result2Other[A]`: as Result2Key, to the key `other`."""

    parameters: ClassVar[type[Params] | None] = Result2OtherParams

    @staticmethod
    def ends(params: Any) -> tuple[str, str]:
        return "data", params.other


class KeyA2KeyBParams(Params):
    key_a: Key = Field(description="whose value the child gets as data")
    key_b: TargetKey = Field(description="where the child's result goes")


class KeyA2KeyB(Result2Key):
    """`KeyA2KeyB(key_a,key_b)[A]`: what A makes of `key_a` goes to `key_b`; without a child, `key_a` itself. `result` is `data`."""

    parameters = KeyA2KeyBParams

    @staticmethod
    def ends(params: Any) -> tuple[str, str]:
        return params.key_a, params.key_b
