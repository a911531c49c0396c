"""Makes the tracing that the settings ask for."""

from __future__ import annotations

from importlib.util import find_spec

import penstock
from penstock.backends.errors import ConfigError, Problem

from ..settings import Settings, split
from .exporter import Exporter
from .handover import Handover, Sink
from .trace_settings import LEVELS, Sampler, TraceSettings, Values
from .tracing import Ended, Tracing
from .triton_file import TraceFiles

NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


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
    if settings.trace_mode == "triton":
        assert settings.trace_file is not None  # `Settings` has checked that
        sink = TraceFiles(settings.trace_file)
    else:
        _check_installed()
        sink = Exporter(
            {
                "url": settings.trace_url,
                "resource": attributes_of(settings.trace_resource),
                "version": penstock.__version__,
            }
        )
    file = "" if settings.trace_file is None else str(settings.trace_file)
    return Tracing(TraceSettings(start, settings.trace_mode, file), Handover(sink))


def attributes_of(resource: str) -> dict[str, str]:
    """Read `trace_resource`: key=value, separated by commas."""
    pairs = [entry.partition("=") for entry in split(resource)]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _check_installed() -> None:
    for module in NEEDED:
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # of a package that it is in
            found = None
        if found is None:
            raise ConfigError(
                [
                    Problem(
                        f"trace_mode = opentelemetry needs the extra otel: there is no {module}; "
                        "pip install 'penstock-serve[otel]'"
                    )
                ]
            )
