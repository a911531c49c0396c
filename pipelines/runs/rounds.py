"""A pipeline that loops (`[pipeline] loop = true`): an item that leaves with `restart` enters again at the node that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from penstock.backends.errors import BackendError, UnknownRestart
from penstock.backends.item import Item
from penstock.backends.suggestions import did_you_mean

from ..node.statistics import kind_of_failure
from .admission import Admission
from .inside import Inside
from .plan import EntryPoint
from .run import PARTS, Stage, Work

Enter = Callable[[EntryPoint, Item, Any, str], Work]
"""Starts one round: where, with what, whom it tells, and the request's id."""


class Rounds:
    """A request that may pass the graph several times: a `Work`, and what each round tells how it ended."""

    __slots__ = (
        "_admission", "_came", "_computed", "_data", "_enter", "_entry_points", "_max_rounds", "_queued", "_round", "_size", "_work", "future",
        "request_id",
    )  # fmt: skip

    def __init__(  # noqa: PLR0917
        self,
        item: Item,
        future: asyncio.Future[Item],
        size: int,
        admission: Admission,
        entry_point: EntryPoint,
        entry_points: Mapping[str, EntryPoint],
        max_rounds: int,
        enter: Enter,
        request_id: str,
    ) -> None:
        self.future = future
        self.request_id = request_id
        self._data = item["data"]
        self._size = size
        self._admission: Admission | None = admission  # None: the request has ended
        self._entry_points = entry_points
        self._max_rounds = max_rounds
        self._enter = enter
        self._round = 1
        self._queued = self._computed = 0.0  # seconds of the rounds before this one
        self._came = admission.requests.clock()
        self._work = enter(entry_point, item, self, request_id)

    # what a round's run uses of a future

    @property
    def inside(self) -> Inside | None:
        """What the request is inside of (inside.py)."""
        return getattr(self.future, "inside", None)

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, item: Item) -> None:
        name = item.pop("restart", None)
        if name is None or "result" not in item or self.future.done():
            item["data"] = self._data
            self._end("soft" if "error" in item else "")
            if not self.future.done():
                self.future.set_result(item)
            return
        entry_point = self._entry_points.get(name) if isinstance(name, str) else None
        if entry_point is None:
            hint = did_you_mean(name, self._entry_points) if isinstance(name, str) else ""
            self.set_exception(
                UnknownRestart(
                    f"'restart' names {name!r}, which is no node that can be entered{hint}"
                )
            )
        elif self._round >= self._max_rounds:
            self.set_exception(
                BackendError(
                    f"'restart' names {name!r} after {self._max_rounds} rounds, no more are made (max_rounds)"
                )
            )
        else:
            self._round += 1
            self._queued, self._computed = self.spent()
            item.pop(PARTS, None)
            item["data"] = item.pop("result")
            self._work = self._enter(entry_point, item, self, self.request_id)

    def set_exception(self, error: BaseException) -> None:
        self._end(kind_of_failure(error))
        if not self.future.done():
            self.future.set_exception(error)

    def cancel(self) -> object:
        return self.future.cancel()

    # what the caller has

    def timings(self) -> list[Stage]:
        """Of the last round."""
        return self._work.timings()

    def leave(self) -> None:
        if self._admission is not None:
            self._end("cancelled")
            self._work.drop()
            self.future.cancel()

    def spent(self) -> tuple[float, float]:
        """Of all rounds."""
        queued, computed = self._work.spent()
        return self._queued + queued, self._computed + computed

    def drop(self) -> None:
        self._work.drop()

    def _end(self, failure: str) -> None:
        admission = self._admission
        if admission is not None:
            self._admission = None
            if not failure:
                admission.requests.spend(*self.spent())
            admission.end(self._size, self._came, failure)
