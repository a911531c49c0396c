"""Makes the tracing that the settings ask for."""

from __future__ import annotations

from ..settings import Settings, split
from .handover import Handover, Sink
from .trace_settings import LEVELS, Sampler, TraceSettings, Values
from .tracing import Ended, Tracing


def tracing_of(settings: Settings) -> Tracing:
    """Make the tracing of an app whose `trace_mode` is not off.

    Raises `ConfigError` if OpenTelemetry is asked for and not installed.
    """
    asked = split(settings.trace_level)
    start = Values(
        tuple(level for level in LEVELS if level in asked),
        settings.trace_rate,
        settings.trace_count,
        settings.log_frequency,
    )
    sink: Sink[Ended | Sampler]
    from .triton_file import TraceFiles

    assert settings.trace_file is not None
    sink = TraceFiles(settings.trace_file)
    file = "" if settings.trace_file is None else str(settings.trace_file)
    return Tracing(TraceSettings(start, settings.trace_mode, file), Handover(sink))
