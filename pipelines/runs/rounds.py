"""A pipeline that loops (`[pipeline] loop = true`).

An item that leaves with `restart` enters again, at the node that `restart` names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.backends.errors import BackendError, UnknownRestart
from penstock.backends.item import Item
from penstock.backends.suggestions import did_you_mean
from penstock.backends.text import repr_of

from ..node.queue import Visit
from ..node.statistics import kind_of_failure
from .admission import Admission
from .inside import Inside
from .plan import EntryPoint
from .run import PARTS, Run, Stage, Submission, as_future, goes_on

MAX_PASSED = 64
"""No further rounds are added to the visits of a request that has so many."""

Enter = Callable[[EntryPoint, Run, float], Submission]
"""Start a run at an entry point, at a time in seconds."""


class Rounds:
    """A request that may pass the graph several times. A `Submission`.

    To the run of each round it is the future that takes the answer.
    """

    __slots__ = (
        "__weakref__",
        "_admission",
        "_came",
        "_clock",
        "_computed",
        "_enter",
        "_entry_points",
        "_max_rounds",
        "_passed",
        "_queued",
        "_request",
        "_round",
        "_run",
        "future",
        "request_id",
    )

    def __init__(
        self,
        request: Run,
        admission: Admission,
        entry_points: Mapping[str, EntryPoint],
        max_rounds: int,
        enter: Enter,
    ) -> None:
        self.future = request.future
        self.request_id = request.request_id
        self._request = request
        self._admission: Admission | None = admission  # None: the request has ended
        self._entry_points = entry_points
        self._max_rounds = max_rounds
        self._enter = enter
        self._round = 0
        self._queued = self._computed = 0.0  # seconds of the rounds before this one
        self._passed: list[Visit] = []  # in these rounds, the first ones
        self._clock = admission.requests.clock
        self._came: float
        self._run: Submission

    @property
    def rows(self) -> int:
        return self._request.rows

    def start(self, entry_point: EntryPoint, now: float) -> None:
        """Start the first round."""
        self._came = now
        self._start_round(entry_point, self._request.item, now)

    def _start_round(self, entry_point: EntryPoint, item: Item, now: float) -> None:
        request = self._request
        self._round += 1
        run = Run(item, as_future(self), request.deadline, request.wanted, request.size)
        run.request_id = request.request_id
        run.context = request.context
        run.client = request.client
        run.trace = request.trace
        run.ticket = request.ticket
        self._run = self._enter(entry_point, run, now)

    # what a round's run uses of a future

    @property
    def inside(self) -> Inside | None:
        """The composites around the request (inside.py)."""
        return getattr(self.future, "inside", None)

    def done(self) -> bool:
        return self.future.done()

    def set_result(self, item: Item) -> None:
        name = item.pop("restart", None)
        if name is None or "result" not in item or self.future.done():
            item["data"] = self._request.data
            self._end("soft" if "error" in item else "")
            if not self.future.done():
                self.future.set_result(item)
            return
        entry_point = self._entry_points.get(name) if isinstance(name, str) else None
        if entry_point is None:
            hint = did_you_mean(name, self._entry_points) if isinstance(name, str) else ""
            self.set_exception(
                UnknownRestart(
                    f"'restart' names {repr_of(name)}, not a node that can be entered{hint}"
                )
            )
        elif self._round >= self._max_rounds:
            self.set_exception(
                BackendError(
                    f"'restart' names {name!r} in round {self._round}, "
                    f"which is the last one (max_rounds = {self._max_rounds})"
                )
            )
        else:
            self._queued, self._computed = self.spent()
            if len(self._passed) < MAX_PASSED:
                self._passed += self._run.visits()
            item.pop(PARTS, None)
            item["data"] = item.pop("result")
            self._start_round(entry_point, item, self._clock())

    def set_exception(self, error: BaseException) -> None:
        self._end(kind_of_failure(error))
        if not self.future.done():
            self.future.set_exception(error)

    def cancel(self) -> object:
        return self.future.cancel()

    # what the caller uses

    def visits(self) -> list[Visit]:
        return [*self._passed, *self._run.visits()]

    def timings(self) -> list[Stage]:
        """Return the stages of the last round."""
        return self._run.timings()

    def leave(self, failure: str = "cancelled") -> None:
        if self._admission is not None and not goes_on(self.future, failure):
            self._end(failure)
            self._run.drop()
            self.future.cancel()

    def spent(self) -> tuple[float, float]:
        """Return the seconds that all rounds together have queued and run."""
        queued, computed = self._run.spent()
        return self._queued + queued, self._computed + computed

    def drop(self) -> None:
        self._run.drop()

    def _end(self, failure: str) -> None:
        """Count the end of the request. `failure`: a key of its statistics, or "" if good."""
        admission = self._admission
        if admission is not None:
            self._admission = None
            if not failure:
                admission.requests.spend(*self.spent())
            request = self._request
            admission.end(request.rows, self._came, failure, request.ticket, request.client)
