"""The interface for asyncio code: a pipeline, its life, and how requests come in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from penstock.backends.errors import InvalidRequest, MissingData, NotFound, NotReady, QueueFull
from penstock.backends.item import Item, as_item
from penstock.backends.loaded_files import LoadedFiles
from penstock.backends.server import ModelCall, ModelOrder, Response

from .cache.responses import ResponseCache
from .composites.composite import CompositeNode
from .composites.logic import CallFuture
from .config.load import PipelineConfig, load
from .model_requests import request_of, response_of, step_of
from .node.files import config_files
from .node.measured import resolved
from .node.node import Node
from .node.queue import Entry
from .node.statistics import RequestStatistics
from .running_graph import RunningGraph
from .runs.admission import Admission, NodeAdmission
from .runs.front_chain import front_chain
from .runs.graph_run import GraphRun
from .runs.passed import Entrance, Passed
from .runs.plan import EntryPoint, Plan
from .runs.run import PARTS, EmptyRun, Run, Submission
from .runs.stream import Parts
from .runs.trace import Trace
from .sequences.sequencer import Sequencer
from .sequences.step import Step, steps_of, without_sequence
from .trace_context import TraceContext

if TYPE_CHECKING:
    from .cache.pipeline_cache import PipelineCache


class Pipeline:
    """A checked pipeline. It serves between `start` and `close`, or inside `async with`.

    ```python
    async with Pipeline.load("digits.toml") as pipeline:
        answer = await pipeline({"data": png_bytes})
    ```
    """

    def __init__(
        self, config: PipelineConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.name = config.name
        # The keys of the final item that a network client gets.
        self.answer_keys = ("result", *(port.name for port in config.key_ports))
        self.stream_input = config.stream_input
        self.plan = Plan(config.nodes, config.entry)
        self.nodes: tuple[Node, ...] = ()  # those with executors
        self.composites: tuple[CompositeNode, ...] = ()  # those that wait for other nodes
        # Where it keeps its answers, with other pipelines, if it keeps any. None: by itself.
        self.responses: ResponseCache | None = None
        self.cache: PipelineCache | None = None
        # Finds the other pipelines that Python logic and ensembles call, by name and version.
        self.others: Callable[..., Pipeline] | None = None
        # Carries out what backends order the repository to do.
        self.orders: Callable[[ModelOrder], Awaitable[Response]] | None = None
        self.state = "created"  # then loading, ready, draining, closed
        # The exposed nodes, each a pipeline of one node. They live as long as this one.
        self.exposed = tuple(
            Pipeline(config.alone(exposed), clock=clock) for exposed in config.exposed
        )
        self._clock = clock
        self._graph: RunningGraph
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._is_running: Callable[[], bool]
        self._create_future: Callable[[], asyncio.Future[Item]]
        self._admission = Admission(config, clock)
        # Names this object to the front processes: a pipeline that replaces it has another one.
        self.token = token_hex(8)
        self._entrance: Entrance | None = None
        keeping = [node.sequence for node in config.nodes.values() if node.sequence is not None]
        self.sequences = (
            Sequencer(config.name, keeping, clock, self._admission.requests.wait)
            if keeping
            else None
        )
        self.takes_sequences = self.sequences is not None
        if self.sequences is not None:
            self._admission.turns = self.sequences.turns
        self.pace = self._admission.pace
        self.notes_batches = False
        self._files = config_files(config)
        self._loops = config.loop
        self._limit = config.timeout

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], *, name: str | None = None) -> Self:
        """Read and check a pipeline. Nothing is started.

        `source`: a TOML file, a dict of node dicts, a flat dict (one node), or an expression
        string. Raises `ConfigError` with every problem found, TypeError for another type.
        """
        return cls(load(source, name=name))

    def __repr__(self) -> str:
        active = sum(len(node.scheduler.running) for node in self.nodes)
        queued = sum(node.scheduler.queued for node in self.nodes)
        return f"<Pipeline {self.name}: {self.state}, {active} active, {queued} queued>"

    # life

    async def start(self) -> None:
        """Load every backend where it runs, on a thread as a rule, and warm it up.

        Raises `BackendError` if one can't be loaded. Nothing is left running then.
        """
        if self.state != "created":
            raise RuntimeError(
                f"pipeline {self.name!r} was started before: a pipeline starts once, load it again"
            )
        self._set_state("loading")
        config = self.config
        if any(node.executor == "auto" for node in config.nodes.values()):
            config = await resolved(config)
            if self.state != "loading":
                raise NotReady(f"pipeline {self.name!r} was closed while it loaded")
        loop = self._loop = asyncio.get_running_loop()
        self._thread, self._is_running = get_ident(), loop.is_running
        self._create_future = loop.create_future
        graph = self._graph = RunningGraph(
            config,
            self.plan,
            loop,
            clock=self._clock,
            on_batch=self._admission.update,
            pressure=self._admission.pressure,
            caller=self,
            sequencer=self.sequences,
        )
        self.nodes = self._admission.nodes = graph.nodes
        self.composites = tuple(graph.composites)
        if self.notes_batches:
            self.note_batches()
        self._admission.exposed = [exposed._join(self) for exposed in self.exposed]
        try:
            await graph.start()
            if config.cache and (self.responses is None or self.responses.max_bytes):
                await self._open_caches()
        except BaseException:
            self._set_state("closed")
            raise
        if self.state != "loading":
            raise NotReady(f"pipeline {self.name!r} was closed while it loaded")
        if self.sequences is not None:
            self.sequences.start(loop, graph.hosts)
        self._set_state("ready")

    async def _open_caches(self) -> None:
        """Make the caches of this pipeline and its exposed nodes."""
        from .cache.generation import generation_of
        from .cache.pipeline_cache import PipelineCache

        loop = asyncio.get_running_loop()
        responses = self.responses
        if responses is None:
            responses = self.responses = ResponseCache()
        for pipeline in (self, *self.exposed):
            generation = None
            if responses.has_second:
                generation = await asyncio.to_thread(
                    generation_of, pipeline.config, self._all_files
                )
            pipeline.cache = PipelineCache(
                pipeline.name,
                submit=pipeline.submit_nowait,
                admission=pipeline._admission,
                responses=responses,
                loop=loop,
                clock=self._clock,
                limit=self._limit,
                ttl=self.config.cache_ttl,
                generation=generation,
            )
        if responses.second is not None:
            await responses.second.connect()

    def _set_state(self, state: str) -> None:
        for pipeline in (self, *self.exposed):
            pipeline.state = state

    def _join(self, whole: Pipeline) -> NodeAdmission:
        """Become one node of `whole`, which starts: requests that come in here queue there."""
        root = next(iter(self.plan.nodes.values()))
        node = root.node = whole.plan.nodes[root.name].node
        self._loop, self._create_future, self._graph = (
            whole._loop,
            whole._create_future,
            whole._graph,
        )
        self._thread, self._is_running = whole._thread, whole._is_running
        self.nodes = (node,) if isinstance(node, Node) else ()
        self.composites = (node,) if isinstance(node, CompositeNode) else ()
        self._admission = admission = NodeAdmission(
            whole._admission, self.config, self.nodes or whole.nodes
        )
        self.pace = admission.pace
        return admission

    def note_batches(self) -> None:
        """Note of each batch why it started, and of each composite's item where its parts were.

        For those who explain a request afterwards, by `Submission.visits`.
        """
        self.notes_batches = True
        for node in self.nodes:
            node.scheduler.notes = True
        for composite in self.composites:
            composite.notes = self.pace.has_parts = True

    async def close(self, timeout: float = 10.0) -> None:
        """Close the pipeline: refuse new requests, let those in flight end, and end the threads.

        Requests in flight get `timeout` seconds; then they fail with `NotReady`.

        Idempotent. While one call drains, another one with a shorter timeout ends it sooner. A
        thread that runs native code can't be killed: if it does not end in time, it is logged and
        left running.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        if self.state != "closed":
            self._set_state("draining")
            if self.in_flight and timeout > 0:
                await asyncio.wait([self.wait_empty()], timeout=timeout)
            self._set_state("closed")
        if self.sequences is not None:
            self.sequences.close(f"pipeline {self.name!r} is closed")
        left = max(ends - loop.time(), 1.0)  # the threads get a second at least
        if self._loop is not None:
            await self._graph.close(left)
            for pipeline in (self, *self.exposed):
                if pipeline.cache is not None:
                    pipeline.cache.close()

    def drain(self) -> None:
        """Refuse new requests but those that are part of another pipeline's, until `close`."""
        if self.state == "ready":
            self._set_state("draining")

    def wait_empty(self) -> asyncio.Future[None]:
        """Return a future that ends when no request is in flight any more. At least one must be.

        Several waiters share it: wait with `asyncio.wait`, which does not cancel it.
        """
        return self._admission.wait_empty()

    def abandon(self, reason: str) -> None:
        """Fail all queued, running and waiting requests with `NotReady`.

        The results of running batches are dropped.
        """
        if self.sequences is not None:
            self.sequences.refuse_waiting(reason)
        if self._loop is not None:
            self._graph.abandon(reason)

    def refuse_queued(self, reason: str) -> None:
        """Fail all queued and waiting requests with `NotReady`. Running batches end as usual."""
        if self.sequences is not None:
            self.sequences.refuse_waiting(reason)
        if self._loop is not None:
            self._graph.refuse_queued(reason)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def not_ready(self) -> str:
        """The reason why the pipeline is not ready; empty if it is ready."""
        if self.state != "ready":
            executors = [executor for node in self.nodes for executor in node.executors]
            loading = dict.fromkeys(text for executor in executors if (text := executor.loading))
            progress = f" ({'; '.join(loading)})" if loading else ""
            return f"pipeline {self.name!r} is {self.state}{progress}"
        return "; ".join(reason for node in self.nodes if (reason := node.not_ready))

    def changed_files(self) -> list[Path]:
        """Return the files that the pipeline was made of and that hold other bytes now.

        They are its own file, the models, labels and weights, and the Python files that it names.
        Reads files that have changed: call it outside of the loop.
        """
        return sorted({path for loaded in self._all_files for path in loaded.changed()})

    @property
    def _all_files(self) -> list[LoadedFiles]:
        nodes = [node.files for node in self.nodes]
        return [self._files, *nodes, *(composite.files for composite in self.composites)]

    @property
    def in_flight(self) -> int:
        """The number of requests that were admitted and have not ended."""
        return self._admission.door.requests

    @property
    def refused(self) -> dict[str, int]:
        """The number of requests that were refused at admission, by code."""
        return self._admission.refused

    @property
    def refused_by_level(self) -> dict[tuple[str, int], int]:
        """The same by code and priority level; level 0 if the pipeline has no levels."""
        return self._admission.refused_by_level

    @property
    def pressure(self) -> bool:
        """True while more requests come than can be answered in time."""
        # Only a batch or an arrival ends the state, so it may outlast the last request.
        return self._admission.pressure.on and self.in_flight > 0

    def note_pressure(self, noted: Callable[[bool], None]) -> None:
        """Call `noted` whenever pressure begins (True) or ends (False)."""
        self._admission.pressure.on_turn = noted

    @property
    def front_nodes(self) -> tuple[str, ...]:
        """The names of the nodes that may run in front processes, a chain from the entry.

        Available when the pipeline runs.
        """
        chain = front_chain(self.config, self.plan)
        return (
            () if any(node.node.counted for node in chain) else tuple(node.name for node in chain)
        )

    @property
    def statistics(self) -> RequestStatistics:
        """The counters of how its requests ended."""
        return self._admission.requests

    # requests

    @overload
    async def __call__(
        self,
        item: Mapping[str, Any],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        client: Hashable = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> Item: ...
    @overload
    async def __call__(
        self,
        item: Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        client: Hashable = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> list[Item]: ...
    async def __call__(  # noqa: PLR0917  each that can only be a keyword costs a look-up
        self,
        item: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        timeout: float | None = None,
        priority: int | None = None,
        client: Hashable = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> Item | list[Item]:
        """Run one item, or a list of items as one call. Return new dicts.

        They are the final items, with `data` as the caller gave it. The call does not change the
        caller's dict, and nothing else may change it until the call returns. A pipeline that
        streams returns the list of its parts: for each value that it yields, the final dict.

        `timeout`: seconds until the deadline, at most the pipeline's own. `priority`: from 1
        (highest) to the `priority_levels` of the entry node. `client`: anything hashable that tells
        one client from another; under overload each gets its share.

        `sequence`: the id of the sequence that the item is a step of, where a node of the pipeline
        keeps state; any step begins a sequence that is not live. `sequence_start`: begin it anew.
        `sequence_end`: end it after this step. The items of a list are steps in their order: the
        first one starts, the last one ends. A caller that leaves ends its sequence.

        Raises `InvalidInput` for a soft failure (in a list it stays with its item, as `error`),
        `MissingData`, `NotFound` (`node_name`), `InvalidRequest` (`sequence`), `QueueFull`,
        `Overloaded`, `NotReady`, `DeadlineExceeded`, `BackendError`. An exception in one item of a
        list cancels the others.
        RuntimeError in an event loop other than that of `start`.
        """
        # This check costs no system call. Asking for the running loop costs one each time (getpid).
        if get_ident() != self._thread or not self._is_running():
            self._check_loop()
        if type(item) is not dict:
            if isinstance(item, (list, tuple)):
                steps = steps_of(len(item), sequence, sequence_start, sequence_end)
                return await self._call_many(item, timeout, priority, client, steps)
            item = as_item(item)
        elif len(item) > 1:  # no call for an item that has only `data`: this is the hot path
            item = as_item(item)
        if sequence is not None:
            step = Step(sequence, sequence_start, sequence_end)
            submission = self.submit_nowait(item, timeout, priority, client=client, sequence=step)
        elif sequence_start or sequence_end:
            raise without_sequence()
        else:
            submission = self.submit_nowait(item, timeout, priority, client=client)
        try:
            answer: Item = await submission.future
        except BaseException:
            submission.leave()
            raise
        if "error" in answer:
            raise answer["error"]
        parts: Item | list[Item] = answer.get(PARTS, answer)
        return parts

    async def _call_many(
        self,
        items: Sequence[Mapping[str, Any]],
        timeout: float | None,
        priority: int | None,
        client: Hashable,
        steps: Sequence[Step | None],
    ) -> list[Item]:
        submissions: list[Submission] = []
        try:
            for item, step in zip(items, steps, strict=True):
                # Not a comprehension: if one is refused, those before it are left.
                submissions.append(
                    self.submit_nowait(
                        as_item(item), timeout, priority, client=client, sequence=step
                    )
                )
            answers: list[Item] = await asyncio.gather(
                *[submission.future for submission in submissions]
            )
            return [answer.get(PARTS, answer) for answer in answers]
        finally:
            for submission in submissions:
                submission.leave()

    async def stream(
        self,
        item: Mapping[str, Any],
        *,
        timeout: float | None = None,
        priority: int | None = None,
        client: Hashable = None,
        sequence: int | str | None = None,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> AsyncGenerator[Item]:
        """Run one item and yield each part of the answer as it comes.

        A part is the final dict for one value that a node of the pipeline yields. A pipeline that
        does not stream yields its one final dict.

        The node goes on when the next part is asked for. Leaving the iteration cancels it. The
        deadline holds for the whole stream. Raises what a call raises.
        """
        self._check_loop()
        given: object = item
        if isinstance(given, (list, tuple)):
            raise TypeError(
                f"stream takes one item, a dict with 'data'; found a {type(given).__name__}: "
                "call it once for each item"
            )
        (step,) = steps_of(1, sequence, sequence_start, sequence_end)
        submission = self.submit_nowait(
            as_item(item), timeout, priority, client=client, sequence=step
        )
        try:
            async for part in Parts(submission):
                yield part
        finally:
            submission.leave()

    @property
    def priority_levels(self) -> int:
        """The priority levels of requests that name no node; 0 if they have none."""
        return 0 if self.plan.default is None else self.plan.default.root.config.priority_levels

    @property
    def streams(self) -> bool:
        """True if the answer to an item that names no node comes in parts."""
        return self.plan.default is not None and self.plan.default.stream is not None

    def submit_nowait(  # noqa: PLR0917  each that can only be a keyword costs a look-up
        self,
        item: Item,
        timeout: float | None = None,
        priority: int | None = None,
        future: asyncio.Future[Item] | None = None,
        request_id: str = "",
        trace: Trace | None = None,
        run: Run | None = None,
        client: Hashable = None,
        until: float | None = None,
        sequence: Step | None = None,
        context: TraceContext | None = None,
        reads_only: bool = False,
        use_cache: bool = True,
        inner: bool = False,
    ) -> Submission:
        """Admit a request and queue it at the entry, or at the node that its `node_name` names.

        The item is read until the request ends and is never changed. It must hold neither `result`
        nor `error`. `future` takes the answer; without it the loop makes one. `trace` records what
        happens. `request_id` is for the log. `run`: an object of a subclass of `Run`, which this
        makes the request's run instead of a new one. `until`: an earlier deadline than `timeout`
        gives, on the pipeline's clock, which the caller has not set: admission does not go by it.
        `sequence`: the step that the request is, where a node of the pipeline keeps state.
        `context`: that of the request's span, for backends that ask.
        `reads_only`: the caller does not change the answer, so it may share arrays with others.
        `use_cache`: if False, the request runs, whatever the pipeline's cache has. `inner`: it is
        part of another pipeline's request, so one that drains takes it.

        Await `submission.future` for the final item (a soft failure is in its `error`), and call
        `submission.leave` if that wait is cancelled. Raises what `__call__` raises at once:
        `MissingData`, `InvalidRequest`, `NotFound`, `QueueFull`, `Overloaded`, `NotReady`.
        """
        if self.state != "ready" and not (inner and self.state == "draining"):
            raise NotReady(f"pipeline {self.name!r} is {self.state}")
        if sequence is not None and self.sequences is None:
            raise InvalidRequest(
                f"pipeline {self.name!r} takes no sequences: none of its nodes keeps state "
                "([NODE.sequence])"
            )
        if "data" not in item:
            raise MissingData(
                f"pipeline {self.name!r}: the item has no 'data'; its keys are "
                f"{sorted(map(str, item))}"
            )
        entry_point = self.plan.default
        has_more = len(item) > 1  # else no look-ups: this is the hot path
        if has_more and "node_name" in item:
            entry_point = self.plan.entry_point(item["node_name"], self.name)
        elif entry_point is None:
            raise self.plan.no_default(self.name)
        size = counted = 1
        if has_more and "request_size" in item:
            size = counted = entry_point.size_of(item, self.name)
        elif entry_point.root.node.counted is not None:
            counted = entry_point.rows_of(item)
        if priority is not None:
            entry_point.check_priority(priority, self.name)
        if self.cache is not None and use_cache and trace is None and entry_point.stream is None:
            return self.cache.submit(
                item, timeout, priority, future, request_id, run, client, until, context, reads_only
            )
        now = self._clock()
        admission = self._admission
        door = admission.door
        rows = door.rows + counted
        limit = self._limit
        # The common case is decided without a call: this is the hot path.
        if timeout is None and rows <= admission.room:
            ticket = None
            if client is not None:  # as `Door.count`
                clients = door.clients
                clients[client] = clients.get(client, 0) + counted
                door.named += counted
        else:
            if self.sequences is not None:  # its admission has no room
                return self._submit_step(
                    self.sequences,
                    sequence,
                    item,
                    entry_point,
                    counted,
                    timeout=timeout,
                    priority=priority,
                    future=future,
                    request_id=request_id,
                    trace=trace,
                    run=EmptyRun() if run is None else run,
                    client=client,
                    until=until,
                    context=context,
                )
            if timeout is not None and not timeout <= limit:  # NaN gets the limit too
                timeout = limit
            admission.check(counted, timeout, priority, client, now)
            ticket = admission.ticket(counted, timeout, priority, client, now)
            if timeout is not None:
                limit = timeout
        door.requests += 1
        door.rows = rows
        deadline = now + limit
        if until is not None and until < deadline:
            deadline = until
        if future is None:
            future = self._create_future()
        # As `Run.__init__`, of which the call costs as much again: this is the hot path.
        if run is None:
            run = EmptyRun()
        run.item = item
        run.future = future
        run.deadline = deadline
        run.wanted = priority
        run.priority = 0
        run.size = run.asked = size
        run.rows = counted
        run.counted = False
        run.request_id = request_id
        run.context = context
        run.client = client
        run.charge = run.batch = run.stages = None
        run.ticket = ticket
        run.data = item["data"]
        run.trace = trace
        if self._loops:
            run.admission = None
            if ticket is None:  # the runs of all rounds share it
                run.ticket = admission.ticket_of(counted, priority, client, now)
            return self._graph.enter_rounds(entry_point, run, admission, now)
        run.admission = admission
        if entry_point.linear and trace is None:  # as `enter`, without a call
            run.plan_node = root = entry_point.root
            root.node.enqueue(run, now)
            return run
        return self._graph.enter(entry_point, run, now)

    def submit_passed(  # noqa: PLR0917  as `submit_nowait`
        self,
        passed: Passed,
        priority: int | None = None,
        future: asyncio.Future[Item] | None = None,
        request_id: str = "",
        run: Run | None = None,
        client: Hashable = None,
        context: TraceContext | None = None,
    ) -> Submission:
        """Admit a request that has passed the front nodes in a front process, or has ended there.

        The caller has compared the tokens. Otherwise as `submit_nowait`, which see: all is counted
        as if the request had been here from its first node on. The deadline is that of `passed`.

        Raises `NotReady`, `InvalidRequest`, `QueueFull`, `Overloaded`.
        """
        if self.state != "ready":
            raise NotReady(f"pipeline {self.name!r} is {self.state}")
        entry_point = self.plan.default
        assert entry_point is not None
        if priority is not None:
            entry_point.check_priority(priority, self.name)
        entrance = self._entrance
        if entrance is None:
            assert self._loop is not None
            entrance = self._entrance = Entrance(
                front_chain(self.config, self.plan),
                entry_point,
                self._admission,
                self._loop,
                self._clock,
            )
        return entrance.submit(
            passed,
            priority,
            self._create_future() if future is None else future,
            request_id,
            EmptyRun() if run is None else run,
            client,
            context,
        )

    def _submit_step(
        self,
        sequencer: Sequencer,
        step: Step | None,
        item: Item,
        entry_point: EntryPoint,
        rows: int,
        *,
        timeout: float | None,
        priority: int | None,
        future: asyncio.Future[Item] | None,
        request_id: str,
        trace: Trace | None,
        run: Run,
        client: Hashable,
        until: float | None,
        context: TraceContext | None,
    ) -> Submission:
        """Admit a step of a sequence. It enters the graph when it has its turn."""
        admission = self._admission
        try:
            step = sequencer.check(step, rows)
        except QueueFull:
            admission.count_full(priority)
            raise
        now = self._clock()
        limit = self._limit
        if timeout is not None:
            limit = timeout = timeout if timeout <= limit else limit  # NaN gets the limit too
        admission.check(1, timeout, priority, client, now)
        deadline = now + limit if until is None else min(now + limit, until)
        ticket = admission.step_ticket(
            step, sequencer, timeout, priority, client=client, now=now, deadline=deadline
        )
        admission.door.requests += 1
        admission.door.rows += 1
        Run.__init__(run, item, future or self._create_future(), deadline, priority)
        run.request_id, run.client, run.ticket, run.trace = request_id, client, ticket, trace
        run.admission, run.context = admission, context
        prepared: Run | GraphRun
        if entry_point.linear and trace is None:
            prepared = run
            run.wait_for_turn(entry_point.root, now)
        else:
            prepared = self._graph.prepare(entry_point, run, now)
        ticket.run = prepared
        sequencer.add(ticket, now)
        return prepared

    def call(
        self,
        name: str,
        item: Any,
        future: CallFuture,
        entry: Entry,
        *,
        timeout: float | None,
        priority: int | None,
        sequence: Step | None = None,
    ) -> Submission:
        """Start the run that Python logic calls on behalf of `entry`.

        `name`: a node of this pipeline, another pipeline, or a node of another one
        (`pipeline/node`). Another pipeline applies its own admission, and has its own sequences.
        """
        now = self._clock()
        deadline = entry.deadline if timeout is None else min(entry.deadline, now + timeout)
        entry_point = self.plan.entry_points.get(name)
        if entry.charge is not None and entry_point is not None:
            self._graph.release_if_needed(entry, entry_point)
        if entry_point is None:
            pipeline, _, node = name.partition("/")
            if name in self.plan.nodes or self.others is None:
                entry_point = self.plan.entry_point(name, self.name)
            else:
                other = {
                    key: value for key, value in as_item(item).items() if key != "node_name"
                } | ({"node_name": node} if node else {})
                return self.call_other(
                    self.others(pipeline),
                    other,
                    future,
                    entry,
                    timeout=timeout,
                    priority=priority,
                    sequence=sequence,
                )
        if sequence is not None:
            raise InvalidRequest(
                f"pipeline {self.name!r}: the call of its own node {name!r} takes no sequence: it "
                "is part of the step that calls it"
            )
        item = as_item(item)
        if "data" not in item:
            raise MissingData(
                f"pipeline {self.name!r}: the item for node {name!r} has no 'data'; its keys are "
                f"{sorted(map(str, item))}"
            )
        size = entry_point.size_of(item, self.name) if "request_size" in item else 1
        if priority is not None:
            entry_point.check_priority(priority, self.name)
        run = Run(item, future, deadline, entry.wanted if priority is None else priority, size)
        return self._graph.enter_for(entry_point, run, entry, now)

    def other(self, name: str, version: str = "") -> Pipeline:
        """Return another pipeline of the repository, the newest version unless one is named.

        Raises `NotFound`, and `NotReady` for one that is not loaded.
        """
        if self.others is None:
            raise NotFound(
                f"pipeline {self.name!r} serves by itself: there is no pipeline {name!r} beside it"
            )
        return self.others(name, version)

    def call_other(
        self,
        called: Pipeline,
        item: Item,
        future: asyncio.Future[Item],
        entry: Entry,
        *,
        timeout: float | None = None,
        priority: int | None = None,
        sequence: Step | None = None,
    ) -> Submission:
        """Start a request of another pipeline on behalf of `entry`, which waits here.

        It has the deadline of `entry` at the latest. Raises what `submit_nowait` raises.
        """
        deadline = entry.deadline
        if timeout is not None:
            deadline = min(deadline, self._clock() + timeout)
        if called._graph.calls:  # its logic may call this pipeline
            self._graph.release_if_needed(entry, None)
        return called.submit_nowait(
            item,
            timeout,
            priority,
            future,
            client=entry.client,
            trace=self._graph.trace_of(entry),
            request_id=entry.request_id,
            until=deadline,
            context=entry.context,
            sequence=sequence,
            inner=True,
        )

    def call_model(
        self, call: ModelCall, future: CallFuture, parents: Sequence[Entry], deadline: float
    ) -> tuple[Submission, Callable[[Item], Response]]:
        """Start a request of another pipeline, or of this one, that a backend makes.

        `parents` are the requests that it works on, `deadline` is the last of theirs. Returns what
        makes a response of an answer, too. Raises what `submit_nowait` raises.
        """
        called = self.other(call.model, call.version)
        if called.streams and not call.streams:
            raise InvalidRequest(
                f"Model {call.model} is using the decoupled. The current BLS request call doesn't "
                "support models using the decoupled transaction policy. Please use 'decoupled=True'"
                " argument to the 'exec' or 'async_exec' calls for decoupled models.'"
            )
        item = request_of(call, called.config)
        step = step_of(call, called.takes_sequences)
        if called._graph.calls:  # its models may call this pipeline
            for parent in parents:
                self._graph.release_if_needed(parent, None)
        first = parents[0] if parents else None
        submission = called.submit_nowait(
            item,
            None,  # `deadline` has it
            call.priority or None,
            future,
            client=None if first is None else first.client,
            trace=None if first is None else self._graph.trace_of(first),
            request_id=call.request_id or ("" if first is None else first.request_id),
            until=deadline,
            context=None if first is None else first.context,
            sequence=step,
            inner=True,
        )
        return submission, partial(response_of, called.config, call.outputs)

    async def order_model(self, order: ModelOrder) -> Response:
        """Carry out an order of a backend to the repository. Raises what that raises."""
        if self.orders is None:
            raise NotFound(f"pipeline {self.name!r} serves by itself, without a repository")
        return await self.orders(order)

    def check_admission(
        self,
        timeout: float | None = None,
        priority: int | None = None,
        client: Hashable = None,
    ) -> None:
        """Raise `NotReady`, `QueueFull` or `Overloaded` if `submit_nowait` would raise it now.

        For callers that have not received the item's data yet: under overload, a request that is
        refused should not cost the transport of its data.
        """
        if self.state != "ready":
            raise NotReady(f"pipeline {self.name!r} is {self.state}")
        if self.cache is not None:  # only the data tells whether the answer is there
            return
        admission = self._admission
        if timeout is not None or admission.door.rows >= admission.room:
            if timeout is not None and not timeout <= self._limit:
                timeout = self._limit
            admission.check(1, timeout, priority, client, self._clock())

    def _check_loop(self) -> None:
        if asyncio._get_running_loop() is not self._loop and self._loop is not None:
            raise RuntimeError(
                f"pipeline {self.name!r} was started in another event loop and can only be called "
                "there: load it once for each loop, or use `penstock.pipe`, which takes calls from "
                "any thread"
            )
