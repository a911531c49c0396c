"""The options of `penstock shadow`: Triton's addresses, the tolerance, and when to switch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit


class Tolerance(NamedTuple):
    """Floats agree if |theirs - ours| <= atol + rtol * |theirs|."""

    rtol: float = 1e-3
    atol: float = 1e-5


MAX_FORWARDED = 1024
"""The most requests that wait for Triton at a time by HTTP, and the most calls by gRPC."""

DEFAULT_TOLERANCE = Tolerance()


class Place(NamedTuple):
    """Where a server listens. `path` comes before the paths of requests: "" or "/triton"."""

    host: str
    port: int
    tls: bool
    path: str
    authority: str

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class ShadowOptions:
    """`http` and `grpc`: where Triton listens; None: requests of that kind can't be forwarded.

    `grpc` is a target as gRPC's clients take it; `grpc_tls`: by TLS. `metrics`: the URL of Triton's
    metrics. `switch_after`: so many requests of a model in a row must agree before it is answered
    here; None: only when the operator says so. `max_compared` and `max_compared_bytes` bound the
    requests that are held to be compared. `timeout`: seconds without a byte from Triton.
    """

    http: Place | None = None
    grpc: str | None = None
    grpc_tls: bool = False
    metrics: str | None = None
    tolerance: Tolerance = DEFAULT_TOLERANCE
    switch_after: int | None = None
    max_compared: int = 256
    max_compared_bytes: int = 256 << 20
    timeout: float = 300.0


def http_place(url: str) -> Place:
    """Parse the URL of an HTTP server. Raises ValueError."""
    parts = urlsplit(url)
    expected = "expected one like http://127.0.0.1:8000"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not the URL of an HTTP server: {expected}")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ValueError(f"{url!r} has more than a host, a port and a path: {expected}")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} holds characters that a URL can't have: {expected}")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)  # `port` raises ValueError for one beyond 65535
    return Place(parts.hostname, port, tls, parts.path.rstrip("/"), parts.netloc)


def options_of(urls: list[str]) -> tuple[Place | None, str | None, bool]:
    """Return where Triton listens, of the values of --from: HTTP, gRPC, and whether gRPC has TLS.

    Raises ValueError.
    """
    http: Place | None = None
    grpc: str | None = None
    tls = False
    for url in urls:
        scheme = urlsplit(url).scheme
        if scheme in ("grpc", "grpcs"):
            if grpc is not None:
                raise ValueError("--from is given twice for gRPC: one Triton is shadowed")
            parts = urlsplit(url)
            if not parts.hostname or parts.port is None or parts.path.strip("/"):
                raise ValueError(
                    f"--from {url!r}: expected a host and a port, as grpc://127.0.0.1:8001"
                )
            grpc, tls = parts.netloc, scheme == "grpcs"
        elif scheme in ("http", "https"):
            if http is not None:
                raise ValueError("--from is given twice for HTTP: one Triton is shadowed")
            http = http_place(url)
        else:
            raise ValueError(
                f"--from {url!r}: expected http://HOST:PORT, https://…, grpc://HOST:PORT or grpcs://…"
            )
    return http, grpc, tls
