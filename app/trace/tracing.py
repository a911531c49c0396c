"""Which requests are traced, and what is handed over of one when it has ended.

The choice is made when a request begins, because code of users may ask for its context. It costs
the others a call; all work for a traced request is done on another thread (handover.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple, TypeAlias

from penstock.backends.memory import MemoryBudget, Reservation
from penstock.pipelines.runs.pace import Pace
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.trace_context import SAMPLED, TraceContext, read_context

from ..history.record import Door, Failure, Record, record_of
from .handover import Handover
from .trace_settings import Sampler, TraceSettings

MAX_FORCED_PER_SECOND = 100
"""So many requests a second are traced because their callers are, whatever the rate. A caller that
asks for more gets those that the rate gives.
"""

MAX_TENSORS = 64
MAX_TENSOR_ELEMENTS = 1 << 16
MAX_TENSOR_BYTES = 1 << 20
"""A trace has so many tensors at most, and none with more elements or bytes, because it is text."""

tensor_budget = MemoryBudget(64 << 20)
"""Bounds the tensors of all traces that are not written yet, 64 MiB together. It is a budget of
their own, so that a slow disk makes no request fail.
"""

ROUTES: dict[Door, str] = {
    "predict": "POST /predict/{pipeline}",
    "batch": "POST /predict/{pipeline}/batch",
    "stream": "POST /predict/{pipeline}",
    "socket": "GET /predict/{pipeline}/stream",
    "v2": "POST /v2/models/{model}/infer",
    "generate": "POST /v2/models/{model}/generate",
    "grpc": "inference.GRPCInferenceService/ModelInfer",
}
"""The route or RPC of a door, as spans are named."""

TracedTensor: TypeAlias = tuple[str, str, str, Any]
"""Activity, name, datatype, and the array."""


class Traced(TraceContext):
    """The context of a request that is traced. Its span is the one of the request.

    `parent_id`: the span of the caller, "" if there is none. `number` is Triton's id of the trace.
    `tensors`: of the request and its answer, at the level TENSORS. `memory` counts their bytes.
    """

    __slots__ = ("memory", "number", "parent_id", "sampler", "tensors")

    def __init__(self, sampler: Sampler, number: int, caller: TraceContext | None) -> None:
        span_id = f"{_bits(64):016x}"
        if caller is None:
            super().__init__(f"{_bits(128):032x}", span_id, SAMPLED)
            self.parent_id = ""
        else:
            super().__init__(caller.trace_id, span_id, SAMPLED, caller.tracestate)
            self.parent_id = caller.span_id
        self.sampler = sampler
        self.number = number
        self.tensors: list[TracedTensor] = []
        self.memory = Reservation(tensor_budget)

    @property
    def wants_tensors(self) -> bool:
        return "TENSORS" in self.sampler.level


class Ended(NamedTuple):
    """A traced request that has ended. `route`: what it asked for, as in `ROUTES`."""

    traced: Traced
    route: str
    record: Record


class Tracing:
    """Chooses the requests that are traced. Use it on one event loop at a time."""

    def __init__(
        self,
        settings: TraceSettings,
        handover: Handover[Ended | Sampler],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.handover = handover
        settings.on_replaced = handover.put
        self._follows = settings.mode == "opentelemetry"  # the decisions of callers
        self._clock = clock
        self._number = 0
        self._forced = 0
        self._second = 0.0  # since when `_forced` counts

    def sample(
        self, name: str, traceparent: bytes | None, tracestate: bytes | None
    ) -> TraceContext | None:
        """Choose whether to trace a request to the pipeline `name`, which begins now.

        A door needs no call if `settings.shared.left` is more than 1 and the request has no
        traceparent: it counts that down instead, and no request pays for the call.

        Returns the context that is passed to code of users: a `Traced` for a request that is
        traced, else that of the caller, if it sent one.
        """
        sampler = self.settings.sampler_of(name)
        caller = None if traceparent is None else read_context(traceparent, tracestate)
        if caller is not None and self._follows:
            if not caller.flags & SAMPLED:  # the caller has decided for the whole trace
                return caller
            if sampler.level and self._may_force():
                return self._begin(sampler, caller)
        sampler.left -= 1
        if sampler.left > 0 or not sampler.take():
            return caller
        return self._begin(sampler, caller)

    def _may_force(self) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            self._second, self._forced = now, 0
        self._forced += 1
        return self._forced <= MAX_FORCED_PER_SECOND

    def _begin(self, sampler: Sampler, caller: TraceContext | None) -> Traced:
        self._number += 1
        return Traced(sampler, self._number, caller)

    def end(
        self,
        context: TraceContext,
        route: str,
        request_id: str,
        pace: Pace,
        *,
        door: Door,
        status: int,
        failure: Failure | None,
        started: float,
        runs: Sequence[Submission],
    ) -> None:
        """Hand over a request that ends now, if it is traced. `route`: as in `ROUTES`.

        A request without a valid key is not handed over: anyone may send those.
        """
        if not isinstance(context, Traced) or status == 401:
            return
        record = record_of(
            request_id,
            pace,
            door=door,
            status=status,
            failure=failure,
            started=started,
            ended=self._clock(),
            runs=runs,
        )
        self.handover.put(Ended(context, route, record))

    def close(self) -> None:
        """Write or send what waits. Takes some seconds at most, on any thread."""
        self.handover.close()


_bits = Random().getrandbits  # one of our own, which no code of users seeds
