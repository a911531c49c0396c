"""The memory of both servers, as far as it can be read."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any

from penstock.backends.errors import forget_frames

from ..bench.usage import MEGABYTE, listener, rss
from ..http.helper_thread import on_helper_thread
from .options import ShadowOptions, http_place
from .upstream import Upstream, UpstreamError

METRICS_SECONDS = 2.0
METRICS_BYTES = 1 << 22

_SAMPLE = re.compile(rb"(?m)^(\w+)(?:\{[^\n]*\})? ([0-9.eE+-]+)$")
_METRICS = {
    b"process_resident_memory_bytes": "rss_bytes",
    b"nv_cpu_memory_used_bytes": "machine_used_bytes",
    b"nv_gpu_memory_used_bytes": "gpu_used_bytes",
}
"""Triton's metrics say what its whole machine and its GPUs use, not what Triton does."""


async def memory_of_both(options: ShadowOptions) -> dict[str, Any]:
    """Return the resident memory of this server, with its children, and what is known of Triton's.

    Of a Triton on this machine that is the same figure, of any other what its metrics say.
    """
    own = await on_helper_thread(rss, os.getpid())
    theirs: dict[str, Any] = {}
    place = options.http
    if place is not None and _is_here(place.host):
        found = await on_helper_thread(_rss_of_listener, place.port)
        if found is not None:
            theirs["rss_bytes"] = found
    if options.metrics is not None:
        try:
            theirs = {**await _metrics(options.metrics), **theirs}
        except UpstreamError as error:
            theirs["metrics_error"] = str(error)
            forget_frames(error)
    return {"penstock": {"rss_bytes": _bytes(own)}, "triton": theirs}


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * MEGABYTE)


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _rss_of_listener(port: int) -> int | None:
    pid = listener(port)
    return None if pid is None else _bytes(rss(pid))


async def _metrics(url: str) -> dict[str, float]:
    """Read Triton's metrics. Raises `UpstreamError`."""
    place = http_place(url)
    status, text = await Upstream(place._replace(path=""), METRICS_SECONDS).fetch(
        (place.path or "/metrics").encode(), METRICS_SECONDS, METRICS_BYTES
    )
    if status != 200:
        raise UpstreamError(f"{url} answers {status}")
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        if name in _METRICS:
            known = _METRICS[name]
            found[known] = found.get(known, 0.0) + float(value)
    return found
