"""The front nodes of the server's pipelines, run in this front process.

The model process sends a table of them at each change. For each loaded version this process has a
pipeline of its front nodes alone. What these make of a request crosses as a `Passed`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from penstock.backends.errors import Overloaded, PenstockError, QueueFull
from penstock.backends.item import Item
from penstock.backends.memory import Reservation, budget
from penstock.backends.text import message_of
from penstock.pipelines.front_table import FrontEntry, read_config, read_entries
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.passed import Passed, visits_to_pass
from penstock.pipelines.runs.run import ENDED, Run, as_future

from ...http.inputs.media import Media
from ...http.inputs.reader import InputReader
from ...http.json_text import JsonLimits
from ...http.predict_call import PredictHead, priority_of, seconds_left
from ...http.request_id import choose_request_id
from ...settings import Settings

logger = logging.getLogger("penstock.front")

DRAIN_SECONDS = 30.0
"""The seconds that requests in flight get when their pipeline is replaced."""

OnPassed = Callable[[Passed], None]


class FrontRun(Run):
    """One request at the front nodes. It is its own future."""

    __slots__ = ("_done", "_memory", "_of", "_on_passed", "_timed")

    def __init__(
        self,
        of: FrontPipeline,
        on_passed: OnPassed,
        request_id: str,
        *,
        timed: bool,
        memory: Reservation | None,
    ) -> None:
        """`timed`: its client has set a deadline. `memory`: that of its item, besides its body."""
        self._of = of
        self._memory = memory
        self._on_passed: OnPassed | None = on_passed
        self._timed = timed
        self._done = False
        self.request_id = request_id
        self.admission = None  # it has not been admitted yet

    def left(self) -> Passed | None:
        """End the request: its client has left. Return what has to cross, so that it is counted.

        None if that has crossed already, or the request was refused.
        """
        if self._on_passed is None or self.admission is None:
            self._on_passed = None
            return None
        self._on_passed = None
        passed = self._passed()._replace(left=True)
        self.leave()
        self.future = ENDED  # else it would refer to itself
        if self._memory is not None:
            self._memory.close()
        return passed

    # As a future.

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._done and self._on_passed is None

    def cancel(self) -> bool:
        self._done = True
        return True

    def set_result(self, item: Item, /) -> None:
        self._done = True
        del item["data"]  # that of the client
        passed = self._passed()
        error = item.pop("error", None)
        if error is not None:
            passed = passed.with_error(error)
        self.cross(passed._replace(item=item))

    def set_exception(self, error: BaseException, /) -> None:
        self._done = True
        self.cross(self._passed().with_error(error))

    def _passed(self) -> Passed:
        number = self._of.number
        visits = visits_to_pass(self.visits(), number)
        return Passed(self._of.token, number, self.request_id, self.deadline, self._timed, visits)

    def cross(self, passed: Passed) -> None:
        """Hand over what has to cross, unless the client has left."""
        on_passed, self._on_passed = self._on_passed, None
        self.future = ENDED
        if self._memory is not None:
            self._memory.close()
        if on_passed is not None:
            on_passed(passed)


class FrontPipeline:
    """The front nodes of one loaded version of a pipeline."""

    def __init__(
        self, entry: FrontEntry, pipeline: Pipeline, number: int, settings: Settings
    ) -> None:
        self.token = entry.token
        self.number = number
        self.pipeline = pipeline
        self.under_pressure = entry.pressure
        self._reader = InputReader(pipeline)
        self._json = JsonLimits(settings.max_json_depth, settings.max_json_values)
        self._max_images = settings.max_images

    def submit(
        self,
        head: PredictHead,
        body: bytes,
        first_byte: float,
        client: str | None,
        on_passed: OnPassed,
    ) -> FrontRun | None:
        """Run the front nodes on a body. None: it has to cross as it is.

        `first_byte`: when that came, 0.0 if all came at once. `on_passed` gets what has to cross,
        once, after this has returned, unless `leave` is called.
        """
        now = monotonic()
        timeout = priority = memory = None
        try:
            media = self._reader.media_of(head.content_type)
            item = self._reader.as_it_is(body, media)
            if item is None:
                memory = Reservation(budget)
                item = self._read(body, media, memory)
                if item is None:
                    return None
            if head.deadline is not None:
                timeout = seconds_left(head.deadline, now - first_byte if first_byte else 0.0)
            if head.priority is not None:
                priority = priority_of(head.priority)
        except PenstockError:
            return None  # the model process says what is wrong with it
        request_id = choose_request_id(head.request_id)
        timed = timeout is not None
        run = FrontRun(self, on_passed, request_id, timed=timed, memory=memory)
        try:
            self.pipeline.submit_nowait(
                item,
                timeout,
                priority,
                as_future(run),
                request_id,
                run=run,
                client=client,
            )
        except (QueueFull, Overloaded) as error:
            deadline = now + self.pipeline.config.timeout
            passed = Passed(self.token, self.number, request_id, deadline, timed, ())
            asyncio.get_running_loop().call_soon(run.cross, passed.with_error(error))
        except PenstockError:
            return None
        return run

    def _read(self, body: bytes, media: Media, memory: Reservation) -> Item | None:
        """Read the item of a body that is not the value itself. None: it has to cross as it is.

        Raises the errors of `InputReader.read`.
        """
        if self._reader.takes_long(body, media):
            return None
        memory.resize(len(body), "a body")
        item = self._reader.read(body, media, memory, self._json, self._max_images)
        whole = self._reader.link_in(item) is None and item.keys() == {"data"}
        return item if whole else None


class FrontNodes:
    """The front nodes of all pipelines, by the names that clients use."""

    def __init__(self, number: int, fronts: int, settings: Settings) -> None:
        """`number`: of this front process, of `fronts`."""
        self._settings = settings
        self._number = number
        self._fronts = fronts
        self._by_name: dict[str, FrontPipeline] = {}
        self._by_token: dict[str, FrontPipeline] = {}
        self._failed: set[str] = set()  # the tokens of pipelines that could not be loaded
        self._pressed: set[str] = set()  # the tokens of pipelines under pressure
        self._applying: asyncio.Lock = asyncio.Lock()
        self._newest = 0  # the number of the newest table
        self._draining: dict[asyncio.Task[None], tuple[str, Pipeline]] = {}

    def pipelines(self) -> list[tuple[str, Pipeline]]:
        """Return the pipelines that run here, those that drain too, with their tokens.

        Of their statistics only those of their nodes mean something.
        """
        running = [(token, front.pipeline) for token, front in self._by_token.items()]
        return [*running, *self._draining.values()]

    def find(self, head: PredictHead) -> FrontPipeline | None:
        """Return the front nodes that a request has to pass. None: it has to cross as it is."""
        front = self._by_name.get(head.name)
        if (
            front is None
            or head.many
            or head.encoding is not None
            or head.trace is not None
            or head.query
            or head.asks_for_events
        ):
            return None
        return front

    def set_pressure(self, token: str, on: bool) -> None:
        """Note that pressure of a pipeline begins or ends. It may still be loading."""
        if on:
            self._pressed.add(token)
        else:
            self._pressed.discard(token)
        front = self._by_token.get(token)
        if front is not None:
            front.under_pressure = on

    def apply(self, table: bytes) -> Coroutine[Any, Any, None]:
        """Run the front nodes of this table from now on, and end those of earlier ones.

        Requests of a pipeline cross as they are until its front nodes are loaded, and if they can't
        be: the log says why then. The coroutine loads them; all else happens in the call.
        """
        self._newest += 1
        mine = self._newest
        entries = read_entries(table)
        current = {entry.token for entry in entries}
        self._pressed = {entry.token for entry in entries if entry.pressure}
        # At once: what is replaced takes no new requests.
        self._name(entries)
        return self._load_all(entries, current, mine)

    async def _load_all(self, entries: list[FrontEntry], current: set[str], mine: int) -> None:
        async with self._applying:
            if mine != self._newest:  # a newer table waits
                return
            self._failed &= current
            new = [
                entry
                for entry in entries
                if entry.token not in self._by_token and entry.token not in self._failed
            ]
            await asyncio.gather(*[self._load(entry) for entry in new])
            if mine == self._newest:
                self._name(entries)
            for token in [token for token in self._by_token if token not in current]:
                self._drain(token, DRAIN_SECONDS)

    def _name(self, entries: list[FrontEntry]) -> None:
        self._by_name = {
            name: self._by_token[entry.token]
            for entry in entries
            if entry.token in self._by_token
            for name in entry.names
        }
        for token, front in self._by_token.items():
            front.under_pressure = token in self._pressed

    async def _load(self, entry: FrontEntry) -> None:
        name = entry.names[-1]
        try:
            config = await asyncio.to_thread(read_config, entry, self._fronts)
            pipeline = Pipeline(config)
            if entry.notes:
                pipeline.note_batches()
            await pipeline.start()
            self._by_token[entry.token] = FrontPipeline(
                entry, pipeline, self._number, self._settings
            )
        except Exception as error:
            self._failed.add(entry.token)
            logger.warning(
                "pipeline %s: its front nodes can't be loaded here, so the model process runs "
                "them: %s",
                name,
                message_of(error),
                extra={"pipeline": name},
            )

    def _drain(self, token: str, timeout: float) -> None:
        pipeline = self._by_token.pop(token).pipeline
        task = asyncio.create_task(pipeline.close(timeout))
        self._draining[task] = token, pipeline
        task.add_done_callback(self._draining.pop)

    async def close(self, timeout: float) -> None:
        """End all front nodes. Requests in flight get `timeout` seconds."""
        self._newest += 1  # what is being applied stops
        self._by_name = {}
        async with self._applying:
            for token in [*self._by_token]:
                self._drain(token, timeout)
        if self._draining:
            await asyncio.gather(*self._draining)
