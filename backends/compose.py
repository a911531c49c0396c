"""Backends that arrange others: Sequential, the wrappers that torchpipe's files have, and Identity."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pydantic import Field

from .base import Backend, BatchRange, Context, Params
from .errors import ConfigError, InvalidInput, Problem
from .item import Item


class Identity(Backend):
    """`result` is `data`."""

    parameters = Params

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = item["data"]


def chain_range(members: Iterable[BatchRange]) -> BatchRange:
    """The range of a chain: [1, 1] if every member has max 1, else the intersection of those that have more.

    A member with max 1 is looped per item, so it bounds nothing. Raises ConfigError where nothing is left.
    """
    batching = [member for member in members if member.max != 1]
    if not batching:
        return BatchRange(1, 1)
    found = BatchRange(max(member.min for member in batching), min(member.max for member in batching))
    if found.min > found.max:
        ranges = ", ".join(map(str, batching))
        raise ConfigError([Problem(f"the members of the Sequential share no batch size: their ranges are {ranges}")])
    return found


def _name(error: Exception, member: Backend) -> None:
    """Note on the error which member raised it, for the message that the caller gets; the innermost one stays."""
    if not hasattr(error, "penstock_backend"):
        with suppress(Exception):  # an exception class may refuse attributes
            error.penstock_backend = type(member).__name__  # type: ignore[attr-defined]


class Sequential(Backend):
    """Runs its members first to last; between two, `result` becomes `data`. `S[A,B]` is short for `Sequential[A,B]`.

    An item that a member leaves without `result`, or with `error`, skips the rest of the chain.
    """

    parameters = Params
    child_count = (1, None)
    shape_of_first_child = True

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return chain_range(children)

    def init(self, params: Any, context: Context) -> None:
        self.min, self.max = chain_range(BatchRange(child.min, child.max) for child in self.children)
        self._members = [(child, child.forward, child.max == 1) for child in self.children]

    def forward(self, batch: list[Item]) -> None:
        first = True
        for child, run, one_by_one in self._members:
            if first:
                first = False
            else:
                batch = [item for item in batch if "result" in item and "error" not in item]
                if not batch:
                    return
                for item in batch:
                    item["data"] = item.pop("result")
            try:
                if not one_by_one:
                    run(batch.copy())  # a member may do with its list what it likes
                    continue
                for item in batch:
                    try:
                        run([item])
                    except InvalidInput as error:
                        # Looped here, so its guilty item is known here: nothing to re-run.
                        item.pop("result", None)
                        item["error"] = error
            except Exception as error:
                _name(error, child)
                raise


class WrapperParams(Params):
    device_id: int | None = Field(None, ge=0, description="accepted from torchpipe's files; the executor has its device already")


class SyncTensor(Backend):
    """Runs its one child; `result` is `data` without one, as the last of a Sequential.

    torchpipe needs it to make and synchronise a stream; here the executor does that for every backend.
    """

    parameters = WrapperParams
    child_count = (0, 1)
    shape_of_first_child = True

    @classmethod
    def declared_range(cls, params: Any, children: tuple[BatchRange, ...]) -> BatchRange:
        return children[0] if children else BatchRange(cls.min, cls.max)

    def init(self, params: Any, context: Context) -> None:
        (child,) = self.children or (Identity(),)
        self.min, self.max = child.min, child.max
        self._child = child
        self._run = child.forward

    def forward(self, batch: list[Item]) -> None:
        try:
            self._run(batch)
        except Exception as error:
            _name(error, self._child)
            raise


class Torch(SyncTensor):
    """Runs its one child, as `SyncTensor` does."""

    child_count = (1, 1)
