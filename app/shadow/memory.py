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


class Memory:
    """Reads the memory of this server and of the Triton that it shadows."""

    def __init__(self, options: ShadowOptions) -> None:
        self._options = options
        self._pid: int | None = None  # of a Triton on this machine; to find it takes long

    async def read(self) -> dict[str, Any]:
        """Return the resident memory of this server, with its children, and what is known of
        Triton's.

        Of a Triton on this machine that is the same figure, of any other what its metrics say.
        """
        options = self._options
        own = await on_helper_thread(rss, os.getpid())
        theirs: dict[str, Any] = {}
        place = options.http
        if place is not None and _is_here(place.host):
            found = await on_helper_thread(self._rss_of_listener, place.port)
            if found is not None:
                theirs["rss_bytes"] = found
        if options.metrics is not None:
            try:
                theirs = {**await _metrics(options.metrics), **theirs}
            except UpstreamError as error:
                theirs["metrics_error"] = str(error)
                forget_frames(error)
        return {"penstock": {"rss_bytes": _bytes(own)}, "triton": theirs}

    def _rss_of_listener(self, port: int) -> int | None:
        used = None if self._pid is None else rss(self._pid)
        if used is None:
            self._pid = listener(port)
            used = None if self._pid is None else rss(self._pid)
        return _bytes(used)


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * MEGABYTE)


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
