"""Decoupled models: backends that answer a request with any number of responses, when they like.

Each instance of the node is a thread, and with `executor = "process"` a child too. The instance is
taken while the model's `execute` runs, not until its last response: the model may go on in threads
of its own. The responses come by the connection of the instance (model_calls.py) and wait in a
`ResponseStream` for their client; a model that sends more than the client reads waits in its `send`
(`Server.respond`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.backends.base import Backend, Context
from penstock.backends.errors import BackendError, DeadlineExceeded, QueueFull
from penstock.backends.expressions.composite import Logic
from penstock.backends.item import Item
from penstock.backends.process.failure import ProcessDiedError
from penstock.backends.server import HANDLE, Server
from penstock.backends.text import message_of

from ..config.definition import NodeConfig, PipelineConfig, QueuePolicy
from ..node.placement import context_of
from ..node.queue import Batch, Entry
from ..runs.graph_run import NodeVisit
from ..runs.stream import StreamRun
from .blocking_logic import Worker
from .logic import CalledPipeline, LogicNode, NodeCaller
from .model_calls import InstanceLink, ModelCalls, ResponseStream

if TYPE_CHECKING:
    from penstock.backends.process.proxy import ProcessBackend  # it imports numpy

logger = logging.getLogger("penstock.node")


class Instance:
    """One instance of the model: a thread that runs its `execute`.

    `running` is the entry whose `execute` runs.
    """

    def __init__(self, worker: Worker, link: InstanceLink) -> None:
        self.worker = worker
        self.link = link
        self.backend: Backend | None = None
        self.process: ProcessBackend | None = None
        self.server: Server | None = None
        self.running: Entry | None = None


class Place:
    """A request's place in the queue for an instance.

    `level`: the index of its priority level, 0 is the most urgent. `late`: it has waited for too
    long, and goes behind the others of its level.
    """

    def __init__(self, entry: Entry, level: int, waiter: asyncio.Future[Instance]) -> None:
        self.entry = entry
        self.level = level
        self.waiter = waiter
        self.late = False


class DecoupledNode(LogicNode):
    """Runs a decoupled model: each of its responses is a part of the answer."""

    def __init__(
        self,
        config: NodeConfig,
        pipeline_config: PipelineConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        *,
        pipeline: CalledPipeline,
        model_calls: ModelCalls,
    ) -> None:
        context = Context(pipeline_config.name, config.name, pipeline_config.directory)
        super().__init__(config, loop, clock, pipeline, context)
        self._pipeline_config = pipeline_config
        self._model_calls = model_calls
        self._instances: list[Instance] = []
        self._free: deque[Instance] = deque()
        self._queue: list[Place] = []
        # As in Triton, without policies of its own a node has those of the whole queue.
        self._policies = config.queue_policies or (
            QueuePolicy(pipeline_config.queue_size, pipeline_config.queue_timeout),
        ) * (config.priority_levels or 1)

    def __repr__(self) -> str:
        running = sum(instance.running is not None for instance in self._instances)
        return f"<DecoupledNode {self.name}: {running} running, {len(self._queue)} queued>"

    async def start(self) -> None:
        logic = self.config.instance_groups[0].spec.cls()
        assert isinstance(logic, Logic)
        self._logic = logic  # never loaded: its instances are
        starting = [
            self._start(group, number)
            for group, config in enumerate(self.config.instance_groups)
            for number in range(config.instances)
        ]
        for outcome in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self._free.extend(self._instances)

    async def _start(self, group: int, number: int) -> None:
        context = context_of(self.config, self._pipeline_config, group, number, self.files)
        spec = self.config.instance_groups[group].spec
        name = f"{self._backend_context.pipeline}/{self.name}#{context.instance}"
        link = self._model_calls.link(self)
        instance = Instance(Worker(self._loop, name), link)
        self._instances.append(instance)
        create: Callable[[], Backend]
        if self.config.executor == "process":
            from penstock.backends.process.proxy import ProcessBackend  # imports numpy

            process = ProcessBackend(spec, None, link.connect)
            instance.process = process
            create = partial(process.create, context)
        else:
            instance.server = Server(link.connect)
            create = partial(spec.create, replace(context, server=instance.server))
        backend, error = await instance.worker.run(create)
        if error is not None:
            raise BackendError(
                f"node {self.name!r}: {type(error).__name__}: {message_of(error)}"
            ) from error
        instance.backend = backend
        _, error = await instance.worker.run(backend.warm_up)
        if error is not None:
            raise BackendError(
                f"node {self.name!r}: {type(error).__name__}: {message_of(error)}"
            ) from error

    async def _close_logic(self, timeout: float) -> None:
        instances, self._instances = self._instances, []
        closing = []
        for instance in instances:
            if instance.server is not None:
                instance.server.close()  # wakes threads of the model that wait for it
            closing.append(instance.worker.run(partial(_close, instance)))
            instance.worker.stop()
        await asyncio.gather(*[self._closed(closed, timeout) for closed in closing])
        for instance, closed in zip(instances, closing, strict=True):
            if not closed.cancelled():  # by the time-out
                instance.worker.join()
            elif instance.process is not None:
                instance.process.kill()

    async def values_of(self, item: Item, call: Any, batch: Batch) -> AsyncGenerator[Any]:
        (entry,) = batch.entries
        instance = await self._take(entry)
        batch.started = self._clock()  # until now it queued
        responses = ResponseStream(instance.link, entry)
        given = {**item, **self._own_keys(call), HANDLE: responses.handle}
        instance.running = entry
        backend = instance.backend
        assert backend is not None

        def execute() -> None:
            try:
                backend.forward([given])
            except ProcessDiedError:
                if responses.listener is not None or not self.config.retry:
                    raise
                backend.forward([given])  # as others do: another request may have killed the child

        executing = instance.worker.run(execute)
        executing.add_done_callback(partial(self._executed, instance, responses))
        try:
            while True:
                response = await responses.next()
                if response.error is not None:
                    raise response.error.as_exception()
                if response.outputs is None:
                    assert isinstance(entry, NodeVisit)
                    assert isinstance(entry.run, StreamRun)
                    entry.run.ended_empty = True
                else:
                    item.pop("response_parameters", None)
                    if response.parameters:
                        item["response_parameters"] = response.parameters
                    yield self._result(response.outputs)
                if response.final:
                    return
        finally:
            responses.close()

    def _own_keys(self, call: NodeCaller) -> Item:
        """Return the keys that the backend asks for, besides those of the item."""
        spec = self.config.instance_groups[0].spec
        keys: Item = {}
        if spec.takes_request_id:
            keys["request_id"] = call.request_id
        if spec.takes_traceparent:
            keys["traceparent"], keys["tracestate"] = call.traceparent, call.tracestate
        return keys

    def _result(self, outputs: dict[str, Any]) -> Any:
        """Return a result: the one output, or the list of them in the declared order."""
        names = [port.name for port in self._pipeline_config.outputs]
        if not names:
            return outputs
        values = [outputs.get(name) for name in names]
        return values[0] if len(values) == 1 else values

    def _executed(
        self, instance: Instance, responses: ResponseStream, executing: asyncio.Future[Any]
    ) -> None:
        """Free an instance whose `execute` has returned, and end the request if it failed."""
        instance.running = None
        error = None if executing.cancelled() else executing.result()[1]
        if error is not None:
            responses.fail(error)
        else:
            responses.executed()
        self._hand_on(instance)

    def _hand_on(self, instance: Instance) -> None:
        """Give a free instance to the request that goes next."""
        self._queue = [place for place in self._queue if not place.waiter.done()]
        if self._queue:
            place = min(self._queue, key=lambda place: (place.level, place.late))
            self._queue.remove(place)
            place.waiter.set_result(instance)
        else:
            self._free.append(instance)

    async def _take(self, entry: Entry) -> Instance:
        """Wait for an instance that is free. Raises what the queue's policy says."""
        if self._free:
            return self._free.popleft()
        config = self.config
        level = min(entry.wanted or config.default_priority or 1, len(self._policies)) - 1
        policy = self._policies[level]
        place = Place(entry, level, self._loop.create_future())
        waiting = sum(other.level == level and not other.waiter.done() for other in self._queue)
        if policy.max_queue_size is not None and waiting >= policy.max_queue_size:
            raise QueueFull(
                f"too many requests wait at node {self.name!r}: {waiting} (max_queue_size = "
                f"{policy.max_queue_size})"
            )
        self._queue.append(place)
        timer = None
        if policy.timeout is not None:
            timer = self._loop.call_later(policy.timeout, self._be_late, place, policy)
        try:
            return await place.waiter
        except asyncio.CancelledError:
            waiter = place.waiter
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._hand_on(waiter.result())  # it was freed in this very iteration
            raise
        finally:
            if place in self._queue:
                self._queue.remove(place)
            if timer is not None:
                timer.cancel()

    def _be_late(self, place: Place, policy: QueuePolicy) -> None:
        """Delay or fail a request that has waited for an instance for too long."""
        if policy.delays:
            place.late = True
        elif not place.waiter.done():
            place.waiter.set_exception(
                DeadlineExceeded(
                    f"node {self.name!r}: the request was queued for longer than "
                    f"{policy.timeout:g} s"
                )
            )

    def instances_for(self, entry: Entry) -> list[InstanceLink] | None:
        """Return the instances that an entry waits for: the one that runs it, or all.

        None if one is free, or if the entry waits for its responses alone.
        """
        for instance in self._instances:
            if instance.running is entry:
                return [instance.link]
        if any(place.entry is entry for place in self._queue):
            return [instance.link for instance in self._instances]
        return None


def _close(instance: Instance) -> None:
    if instance.backend is not None:
        instance.backend.close()
