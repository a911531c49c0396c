"""The report as text: a few lines for each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def summary(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each model: what was compared, and how long it took."""
    for name, model in report["models"].items():
        compared, agreed = model["compared"], model["agreed"]
        skipped = sum(model["not_compared"].values())
        line = f"model {name}: {model['requests']} requests, {agreed} of {compared} compared agreed"
        if skipped:
            reasons = ", ".join(f"{count} {why}" for why, count in model["not_compared"].items())
            line += f", {skipped} not compared ({reasons})"
        if compared:
            theirs, ours = (model["latency_ms"][server] for server in ("triton", "penstock"))
            line += (
                f"; p50 {_ms(theirs['p50'])} at Triton, {_ms(ours['p50'])} here; "
                f"p99 {_ms(theirs['p99'])} and {_ms(ours['p99'])}"
            )
        yield line + ("; answered here" if model["answered_by"] == "penstock" else "")


def full(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the report at the end."""
    yield from summary(report)
    for name, model in report["models"].items():
        for output, distance in model["largest_differences"].items():
            absolute, relative = (_number(distance[kind]) for kind in ("absolute", "relative"))
            yield (
                f"model {name}: output '{output}' differs by at most {absolute} "
                f"(relative {relative})"
            )
        for example in model["examples"]:
            first = example["differences"][0]
            yield f"model {name}: {example['time']} {example['request_id']}: {first}"
    yield from report["not_repeated"]
    memory = report["memory"]
    own, theirs = memory["penstock"]["rss_bytes"], memory["triton"]
    parts = [] if own is None else [f"{_mb(own)} here"]
    parts += [f"{_mb(size)} {words}" for key, words in _MEMORY if (size := theirs.get(key))]
    if parts:
        yield f"memory: {', '.join(parts)}"
    if report["switch"]["done"]:
        yield "all requests were answered here at the end"


_MEMORY = (
    ("rss_bytes", "at Triton"),
    ("machine_used_bytes", "in use on Triton's machine"),
    ("gpu_used_bytes", "in use on its GPUs"),
)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms"


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
