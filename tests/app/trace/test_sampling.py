"""Which requests are traced, and what waits for the thread that writes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.app.trace.handover import MAX_WAITING, Handover
from penstock.app.trace.trace_settings import TraceSettings, Values
from penstock.app.trace.tracing import MAX_FORCED_PER_SECOND, Traced, Tracing

CALLER = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-1] + b"0"


class Sink:
    """Takes what it gets, once it is released."""

    def __init__(self) -> None:
        self.written = self.dropped = 0
        self.entered = threading.Event()
        self.released = threading.Event()

    def take(self, ended: Sequence[Any]) -> None:
        self.entered.set()
        self.released.wait()
        self.written += len(ended)

    def lose(self, count: int) -> None:
        self.dropped += count

    def hurry(self) -> None:
        self.released.set()

    def close(self, timeout: float) -> None: ...


def tracing(mode: str = "opentelemetry", now: Any = lambda: 0.0, **values: Any) -> Tracing:
    start = Values(("TIMESTAMPS",), 1000)._replace(**values)
    return Tracing(TraceSettings(start, mode, "file"), Handover(Sink()), now)


def sampled(trace: Tracing, count: int, *headers: bytes | None) -> list[bool]:
    traceparent = headers[0] if headers else None
    return [isinstance(trace.sample("m", traceparent, None), Traced) for _ in range(count)]


def test_every_nth_request_is_traced() -> None:
    assert sampled(tracing(trace_rate=3), 7) == [False, False, True] * 2 + [False]
    assert sampled(tracing(trace_rate=2, trace_count=2), 8) == [False, True] * 2 + [False] * 4
    assert not any(sampled(tracing(trace_rate=1, trace_level=()), 3))


def test_an_id_is_its_own() -> None:
    trace = tracing(trace_rate=1)
    made = [trace.sample("m", None, None) for _ in range(100)]
    assert len({one.traceparent for one in made if one is not None}) == 100


def test_callers_decide_within_a_bound() -> None:
    now = [1.0]
    trace = tracing(now=lambda: now[0], trace_rate=10**9)
    assert sampled(trace, MAX_FORCED_PER_SECOND + 5, CALLER).count(True) == MAX_FORCED_PER_SECOND
    now[0] += 1.0
    assert all(sampled(trace, 3, CALLER))
    assert not any(sampled(tracing(trace_rate=1), 3, UNSAMPLED))
    assert not any(sampled(tracing(trace_rate=1, trace_level=()), 3, CALLER))
    # Triton's files know no callers.
    assert sampled(tracing("triton", trace_rate=2), 4, UNSAMPLED) == [False, True] * 2


def test_a_long_tracestate_is_left_out() -> None:
    context = tracing().sample("m", CALLER, b"k=" + b"v" * 600)
    assert context is not None and context.tracestate == ""


@pytest.mark.parametrize("waits", [True, False])
def test_what_exceeds_the_queue_is_dropped(waits: bool) -> None:
    sink = Sink()
    handover: Handover[int] = Handover(sink, gather=0.0)
    handover.put(0)
    assert sink.entered.wait(60)  # with what it has taken
    for number in range(MAX_WAITING + 10):
        handover.put(number)
    assert handover.dropped == 10
    if not waits:
        sink.released.set()
    handover.close(0.5 if waits else 60)  # it lets no sink wait
    assert sink.written == MAX_WAITING + 1
    sink.released.set()
    handover.put(1)  # and starts again
    handover.close(60)
    assert sink.written == MAX_WAITING + 2
