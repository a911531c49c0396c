"""Ensembles: a node that calls other pipelines, each as soon as it has the tensors that it takes.

The tensors of an ensemble have names: its inputs, and what its steps answer. The other pipelines
keep their queues and batches, and share them with all who call them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from penstock.backends.base import Context
from penstock.backends.errors import (
    BackendError,
    InvalidInput,
    InvalidRequest,
    NotFound,
    PenstockError,
)
from penstock.backends.expressions.composite import Ensemble, EnsembleParams, EnsembleStep
from penstock.backends.item import (
    NO_FACTS,
    NOT_PARAMETERS,
    SEQUENCE_END,
    SEQUENCE_START,
    Item,
    RequestFacts,
)

from ..config.definition import NodeConfig, PipelineConfig
from ..config.ensembles import shape_for_steps
from ..named_tensors import fits, input_tensors, is_batched, item_of, tensors_of
from ..runs.run import Submission
from ..runs.stream import Parts
from ..sequences.step import Step
from .logic import CalledPipeline, LogicNode, NodeCaller


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the ensemble. `rows`: the size of its batch; 0 if it comes from a pipeline
    without batches. `value` is None for an input or output that was left out.
    """

    value: Any
    rows: int


ABSENT = Tensor(None, 0)

Tensors = dict[str, Tensor]


class EnsembleNode(LogicNode):
    """Runs the steps of an ensemble for each item, in one task."""

    def __init__(
        self,
        config: NodeConfig,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        pipeline: CalledPipeline,
        context: Context,
    ) -> None:
        super().__init__(config, loop, clock, pipeline, context)
        spec = config.instance_groups[0].spec
        assert isinstance(spec.params, EnsembleParams)
        self._params = spec.params
        self._steps = spec.params.steps

    async def start(self) -> None:
        logic = self.config.instance_groups[0].spec.cls()
        assert isinstance(logic, Ensemble)
        logic.run = self._stream if logic.streams else self._answer
        self._logic = logic

    async def _answer(self, item: Item, call: NodeCaller) -> Any:
        """Run the steps for an item. Return its result."""
        tensors, left = await self._advance(self._inputs(item), self._steps_for(item), item, call)
        if left:
            raise self._failed(
                BackendError(
                    f"step of model {left[0].model!r} answers in parts, and did not when the "
                    "ensemble was loaded: load the ensemble again"
                )
            )
        return self._result(tensors)

    async def _stream(self, item: Item, call: NodeCaller) -> AsyncGenerator[Any]:
        """Run the steps for an item. Yield a result for each that the last stream yields."""
        steps = self._steps_for(item)
        async with aclosing(self._expand(self._inputs(item), steps, item, call)) as all_parts:
            async for tensors in all_parts:
                yield self._result(tensors)

    async def _expand(
        self, tensors: Tensors, steps: Sequence[EnsembleStep], item: Item, call: NodeCaller
    ) -> AsyncGenerator[Tensors]:
        """Run the steps that have not run. Yield the tensors for each part of the first stream.

        The steps after it run once for each part, in order: the next part is asked for when they
        have ended.
        """
        tensors, left = await self._advance(tensors, steps, item, call)
        if not left:
            yield tensors
            return
        step, *others = left
        called, submission, rows = self._start(step, tensors, item, call)
        try:
            parts = Parts(submission)
            while (part := await self._next(parts)) is not None:
                more = tensors | self._outputs(step, called, part, rows)
                async with aclosing(self._expand(more, others, item, call)) as inner:
                    async for expanded in inner:
                        yield expanded
        finally:
            call.end(submission)

    async def _next(self, parts: Parts) -> Item | None:
        try:
            return await anext(parts, None)
        except PenstockError as error:
            raise self._failed(error) from None

    async def _advance(
        self, tensors: Tensors, steps: Sequence[EnsembleStep], item: Item, call: NodeCaller
    ) -> tuple[Tensors, list[EnsembleStep]]:
        """Run all steps whose inputs are there or come from steps that run here, side by side.

        Steps that answer in parts don't run here. Return all tensors, and the steps that are left:
        the first one has its inputs, and answers in parts.
        """
        tensors = dict(tensors)
        left = list(steps)
        running: dict[
            asyncio.Future[Item], tuple[EnsembleStep, CalledPipeline, Submission, int]
        ] = {}
        while True:
            streaming: EnsembleStep | None = None
            for step in [step for step in left if tensors.keys() >= {*step.inputs.values()}]:
                if self._called(step).streams:
                    streaming = streaming or step
                    continue
                left.remove(step)
                called, submission, rows = self._start(step, tensors, item, call)
                running[submission.future] = step, called, submission, rows
            if not running:
                if streaming is not None:
                    left.remove(streaming)
                    left.insert(0, streaming)
                return tensors, left
            for future in await _first_of(running):
                step, called, submission, rows = running.pop(future)
                try:
                    answer = future.result()
                except PenstockError as error:
                    raise self._failed(error) from None
                finally:
                    call.end(submission)
                if "error" in answer:
                    raise self._failed(answer["error"])
                tensors |= self._outputs(step, called, answer, rows)

    def _called(self, step: EnsembleStep) -> CalledPipeline:
        try:
            return self._pipeline.other(step.model, step.version)
        except PenstockError as error:
            raise self._failed(error) from None

    def _start(
        self, step: EnsembleStep, tensors: Tensors, item: Item, call: NodeCaller
    ) -> tuple[CalledPipeline, Submission, int]:
        """Start the call of a step. Return its pipeline, the call, and its rows (0: no batch)."""
        called = self._called(step)
        config = called.config
        try:
            request = item_of(
                config,
                {
                    name: _with_batch(tensors[tensor], config, name)
                    for name, tensor in step.inputs.items()
                },
            )
            rows = request.get("request_size", 1) if is_batched(config) else 0
            keys = {key: value for key, value in item.items() if key not in NOT_PARAMETERS}
            facts: RequestFacts = item.get("request_facts", NO_FACTS)
            if facts is not NO_FACTS and config.takes_request_facts:
                keys["request_facts"] = facts._replace(requested_outputs=None)
            sequence = None
            if facts.correlation_id and called.takes_sequences:
                start = bool(facts.flags & SEQUENCE_START)
                end = bool(facts.flags & SEQUENCE_END)
                sequence = Step(facts.correlation_id, start, end, strict=True)
            priority = call.priority
            if priority is not None and priority > called.priority_levels:
                priority = None  # the model's default
            return called, call.start_other(called, keys | request, priority, sequence), rows
        except PenstockError as error:
            raise self._failed(error) from None

    def _steps_for(self, item: Item) -> Sequence[EnsembleStep]:
        """Return the steps that lead to the outputs that the request asks for."""
        wanted = item.get("request_facts", NO_FACTS).requested_outputs
        if wanted is None:
            return self._steps
        needed = {*wanted}
        steps: list[EnsembleStep] = []
        while more := [
            step
            for step in self._steps
            if step not in steps and not needed.isdisjoint(step.outputs.values())
        ]:
            steps += more
            needed.update(tensor for step in more for tensor in step.inputs.values())
        return [step for step in self._steps if step in steps]

    def _inputs(self, item: Item) -> Tensors:
        config = self._pipeline.config
        rows = item.get("request_size", 1) if is_batched(config) else 0
        return {
            name: Tensor(self._with_own_shape(name, value, rows > 0), rows)
            for name, value in input_tensors(config, item).items()
        }

    def _with_own_shape(self, name: str, value: Any, batched: bool) -> Any:
        """Return an input or output with the shape that it has on the other side (`reshape`)."""
        table = self._params.reshape.get(name)
        if table is None or value is None:
            return value
        lead = value.shape[: 1 if batched else 0]
        inner = table.after(tuple(value.shape[len(lead) :]))
        if inner is None:
            raise InvalidInput(
                f"{name!r} has shape {list(value.shape)}: expected {list(table.given)} (reshape)"
                f"{', after the size of the batch' if batched else ''}"
            )
        return value.reshape((*lead, *inner))

    def _outputs(
        self, step: EnsembleStep, called: CalledPipeline, answer: Item, rows: int
    ) -> Tensors:
        """Return the tensors that a step's answer makes. An output that it has not is None."""
        try:
            found = tensors_of(called.config, answer)
        except PenstockError as error:
            raise self._failed(error) from None
        return {tensor: Tensor(found.get(name), rows) for name, tensor in step.outputs.items()}

    def _result(self, tensors: Tensors) -> Any:
        """Return the ensemble's outputs: one, or a list of them in the declared order."""
        config = self._pipeline.config
        batched = is_batched(config)
        values = []
        for port in config.outputs:
            shape = shape_for_steps(self._params, port, batched, is_input=False)
            value = _reshaped(tensors.get(port.name, ABSENT), shape, batched)
            values.append(self._with_own_shape(port.name, value, batched))
        return values[0] if len(values) == 1 else values

    def _failed(self, error: PenstockError) -> PenstockError:
        """Return the error of a step as that of the ensemble. Others may hold the step's own."""
        if isinstance(error, (InvalidRequest, NotFound)) and not isinstance(error, InvalidInput):
            failed: PenstockError = InvalidInput()  # of this one item; its status is the same
        else:
            failed = type(error).__new__(type(error))  # a class of a user may need arguments
            failed.__dict__ |= error.__dict__
            failed.__cause__ = error.__cause__
        failed.args = (f"in ensemble '{self._pipeline.config.name}', {error}",)
        return failed


async def _first_of(running: dict[asyncio.Future[Item], Any]) -> Sequence[asyncio.Future[Item]]:
    """Wait until a call has ended. Return all that have, in the order in which they started."""
    if len(running) == 1:
        (future,) = running
        if not future.done():
            with suppress(Exception):  # the caller looks at it again
                await future
        return (future,)
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    return [future for future in running if future in done]


def _with_batch(tensor: Tensor, config: PipelineConfig, name: str) -> Any:
    port = next((port for port in config.inputs if port.name == name), None)
    return _reshaped(tensor, None if port is None else port.shape, is_batched(config))


def _reshaped(tensor: Tensor, shape: tuple[int, ...] | None, batched: bool) -> Any:
    """Return the value of a tensor for a pipeline with batches, or without.

    As in Triton: a whole tensor becomes a batch of one row, and a batch of one row a whole tensor,
    if its shape is right then and not without that.
    """
    value = tensor.value
    if value is None or shape is None or batched == (tensor.rows > 0):
        return value
    if batched:
        return value[None] if fits(value.shape, shape[1:]) else value
    return value[0] if tensor.rows == 1 and not fits(value.shape, shape) else value
