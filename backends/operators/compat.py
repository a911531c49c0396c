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
    """`Range[A]` takes every batch size of `range`, and runs A in pieces whose sizes A takes.

    An A with the range [2, 9] makes [8, 19] possible: it runs 10 as 5 + 5. A size of `range` that
    is not a sum of sizes that A takes is an error at load.
    """

    parameters = RangeParams
    sets_range = True

    @classmethod
    def declared_range(cls, params: RangeParams, children: tuple[BatchRange, ...]) -> BatchRange:
        wanted, (child,) = BatchRange(*params.range), children
        impossible = first_impossible(wanted, child)
        if impossible is not None:
            reason = (
                f"Range: {impossible} of {wanted} is not a sum of batch sizes that the child "
                f"takes: its range is {child}"
            )
            raise ConfigError([Problem(reason, key="range")])
        return wanted

    def forward(self, batch: list[Item]) -> None:
        run_child(self.children[0], batch, evenly=True)


def first_impossible(wanted: BatchRange, child: BatchRange) -> int | None:
    """Return the first size of `wanted` that is not a sum of sizes of `child`, or None.

    k pieces sum up to anything from k * min to k * max. The fewest pieces that reach n are ceil(n /
    max); with more pieces the least sum only grows. Once the sums of k and of k + 1 pieces leave no
    gap between them, no later sums do.
    """
    size = wanted.min
    while size <= wanted.max:
        count = -(-size // child.max)
        if count * child.min > size:
            return size
        size = count * child.max + 1
        if (count + 1) * child.min <= size:
            break
    return None


class RandomParams(Params):
    p: float = Field(ge=0, le=1, description="the probability of the first child")


class Random(Branch):
    """`Random(p)[A,B]`: runs A on each item with the probability `p`, else B."""

    parameters = RandomParams
    child_count = (2, 2)

    def init(self, params: RandomParams, context: Context) -> None:
        super().init(params, context)
        self._p = params.p

    def goes_first(self, item: Item) -> bool:
        return random.random() < self._p


class Result2OtherParams(Params):
    other: TargetKey = Field("other", description="the key that gets the child's result")


class Result2Other(Result2Key):
    """`Result2Other[A]`: like Result2Key, with the key `other`."""

    parameters: ClassVar[type[Params] | None] = Result2OtherParams

    @staticmethod
    def ends(params: Any) -> tuple[str, str]:
        return "data", params.other


class KeyA2KeyBParams(Params):
    key_a: Key = Field(description="the key whose value the child gets as data")
    key_b: TargetKey = Field(description="the key that gets the child's result")


class KeyA2KeyB(Result2Key):
    """`KeyA2KeyB(key_a,key_b)[A]`: runs A on the value of `key_a`; the result goes to `key_b`.

    Without a child, `key_b` gets the value of `key_a`. `result` is `data`.
    """

    parameters = KeyA2KeyBParams

    @staticmethod
    def ends(params: Any) -> tuple[str, str]:
        return params.key_a, params.key_b
