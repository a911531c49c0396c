"""Where in a distributed trace a request stands, as W3C Trace Context writes it in headers.

https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import re

MAX_TRACESTATE_BYTES = 512
"""The longest tracestate that is passed on, as the specification says. A longer one is left out."""

SAMPLED = 1

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE = re.compile(rb"[\x20-\x7e\t]*")


class TraceContext:
    """A span as another one refers to it.

    `trace_id` has 32 hexadecimal digits, `span_id` 16. `flags`: the lowest bit says that the trace
    is recorded. `tracestate` is that of the caller, "" for none.
    """

    __slots__ = ("flags", "span_id", "trace_id", "tracestate")

    def __init__(self, trace_id: str, span_id: str, flags: int, tracestate: str = "") -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.tracestate = tracestate

    @property
    def traceparent(self) -> str:
        """The header of this name, for whatever is called on behalf of the span."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def read_context(traceparent: bytes, tracestate: bytes | None) -> TraceContext | None:
    """Read the context from its two headers. None if they are malformed: they are ignored then."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = b"" if tracestate is None else tracestate.strip()
    if len(state) > MAX_TRACESTATE_BYTES or not _TRACESTATE.fullmatch(state):
        state = b""
    return TraceContext(
        trace_id.decode(), span_id.decode(), int(flags, 16) & SAMPLED, state.decode()
    )
