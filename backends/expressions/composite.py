"""Backends that wait for other nodes: they run on the event loop and hold no executor. What they do is in pipelines/composites/composite.py.

Each is a node's whole expression; inside another backend it would hold an executor while it waits, which is a load error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from ..base import Backend, Params
from ..item import Item
from ..params import Names


class Composite(Backend):
    """A node of this kind has no executor, so `max`, `instance_num` and `batching_timeout` mean nothing there."""


class JumpParams(Params):
    jump: str = Field(description="the node that the item enters: another root of this pipeline")


class Jump(Composite):
    """The item goes through the graph that starts at `jump`; what comes out is what this node answers."""

    parameters = JumpParams


def _some(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("expected at least one key, as in result,score")
    return names


class MapReduceParams(JumpParams):
    split: str = Field(
        "data",
        description="the key that is taken apart: a list, a tuple, or an array by its first axis",
    )
    merge: Annotated[Names, AfterValidator(_some)] = Field(
        ("result",), description="the keys that are collected into lists, in order: result,score"
    )


class MapReduce(Composite):
    """For each element of `split`, a copy of the item with that element goes through the graph that starts at `jump`; of what comes
    out, the keys of `merge` become lists in order.
    """

    parameters = MapReduceParams


class CopySplitParams(JumpParams):
    split_size: int = Field(ge=1, description="elements a piece, at most")


class CopySplit(Composite):
    """`data` (a list, a tuple, or an array by its first axis) is cut into pieces of at most `split_size`; a copy of the item with each
    goes through the graph that starts at `jump`, and the results are put together in order (lists and arrays concatenated).
    """

    parameters = CopySplitParams


class Logic(Composite):
    """A user's `async def forward(item, call)`; `user.adapt` makes them. It runs on the loop and calls other nodes for the work."""

    parameters = None
    streams: ClassVar[bool] = False
    """It is an async generator: each value that it yields is one result."""

    run: Callable[[Item, Any], Any]
    """What `init` finds: of the item and `call`, an awaitable or an async iterator."""
