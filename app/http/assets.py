"""Files of this package that browsers fetch: pages, their scripts and styles."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .compression import accepted_codings
from .paths import path_of
from .request_id import request_id_of

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
"""Kinds of files that are served; others in the same folder are not."""

CHUNK_BYTES = 1 << 16
"""So much of a file waits for a slow client at once."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The Content-Security-Policy: files of this server only, nothing inline, in no other page."""

PERMISSIONS = "microphone=(self), camera=(), display-capture=(), geolocation=(), payment=(), usb=()"
"""What a page may ask the browser for. The page at / records sound for pipelines that take it."""


class Asset:
    """One file. It is read at its first use, and compressed then for clients that accept gzip.

    A file that is stored with the suffix `.gz` is served under its name without it.
    """

    __slots__ = ("_facts", "_file", "_gzipped", "_plain", "_tag", "check")

    def __init__(
        self,
        file: Path,
        facts: Mapping[str, str] | None = None,
        check: Callable[[Scope], None] = lambda scope: None,
    ) -> None:
        """`facts`: what a script has to know of the server. In HTML, each stands in its tag
        `<meta name="penstock-NAME" content="…">`. `check` raises for a request that may not have
        the file.
        """
        self._file = file
        self._facts = facts if facts is not None and file.suffix == ".html" else {}
        self._plain: bytes | None = None
        self._gzipped: bytes | None = None
        self._tag = ""
        self.check = check

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[Path(self._file.name.removesuffix(".gz")).suffix]

    def content(self, packed: bool) -> tuple[bytes, bool, str]:
        """Return the bytes, whether they are compressed, and their entity tag.

        `packed`: whether the client accepts gzip. A file that gzip makes no smaller is sent as is.
        """
        if not self._tag:
            stored = self._file.read_bytes()
            for name, fact in self._facts.items():
                tag = f'<meta name="penstock-{name}" content="'.encode()
                stored = re.sub(re.escape(tag) + b'[^"]*', tag + fact.encode(), stored)
            self._tag = sha256(stored).hexdigest()[:32]
            if self._file.suffix == ".gz":
                self._gzipped = stored
            else:
                self._plain = stored
                smaller = gzip.compress(stored, mtime=0)
                self._gzipped = smaller if len(smaller) < len(stored) else None
        if packed and self._gzipped is not None:
            return self._gzipped, True, f'"{self._tag}-gzip"'
        if self._plain is None:
            assert self._gzipped is not None
            self._plain = gzip.decompress(self._gzipped)
        return self._plain, False, f'"{self._tag}"'


def assets_in(
    directory: Path,
    prefix: str,
    facts: Mapping[str, str],
    check: Callable[[Scope], None] = lambda scope: None,
) -> dict[str, Asset]:
    """Return the assets in a directory by their paths, which begin with `prefix`.

    `facts` and `check` are those of `Asset`.
    """
    return {
        f"{prefix}/{path.relative_to(directory).as_posix().removesuffix('.gz')}": Asset(
            path, facts, check
        )
        for path in sorted(directory.rglob("*"))
        if Path(path.name.removesuffix(".gz")).suffix in MEDIA_TYPES
    }


class Pages:
    """An ASGI app that answers the paths of assets, and 404 otherwise.

    Whole paths are looked up, so no `..` leads anywhere else.
    """

    def __init__(self, assets: Mapping[str, Asset]) -> None:
        self._assets = assets
        self._otherwise: ASGIApp | None = None

    def lead(self, router: Router, *paths: str) -> None:
        """Answer these paths of a router. They come before all routes that it gets later."""
        for path in paths:
            router.routes.append(Route(path, self, include_in_schema=False))

    def follow(self, router: Router) -> None:
        """Answer what no route of a router claims, so that not even one at `/` is hidden."""
        self._otherwise = router.default
        router.default = self

    def answer(self, scope: Scope) -> bool:
        """Return whether a request is for one of the assets."""
        if scope["type"] != "http":
            return False
        path = path_of(scope)
        return path in self._assets or self._target(scope, path) is not None

    def _target(self, scope: Scope, path: str) -> str | None:
        """Return where a path with a slash too many or too few leads, relative to it.

        A proxy may serve this below another path than the one that is seen here.
        """
        if not path and "/" in self._assets:  # below a root path, without the slash
            return f"./{quote(scope['path'].rpartition('/')[2])}/"
        if path.endswith("/") and path[:-1] in self._assets:
            return f"../{quote(path[:-1].rpartition('/')[2])}"
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.answer(scope):
            if self._otherwise is None:
                raise HTTPException(404)
            await self._otherwise(scope, receive, send)
            return
        if scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        path = path_of(scope)
        target = self._target(scope, path)
        headers = [(b"x-request-id", request_id_of(scope).encode())]
        if target is not None:
            headers += [(b"location", target.encode()), (b"content-length", b"0")]
            await _send(send, 307, headers)
            return
        asset = self._assets[path]
        asset.check(scope)
        packed = b"gzip" in accepted_codings(_joined(scope, b"accept-encoding"))
        content, packed, tag = asset.content(packed)
        headers += [
            (b"etag", tag.encode()),
            (b"cache-control", b"no-cache"),  # keep it, and ask each time whether it is the newest
            (b"vary", b"Accept-Encoding"),
            (b"content-security-policy", POLICY.encode()),
            (b"permissions-policy", PERMISSIONS.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]
        if scope.get("scheme") == "https":  # without TLS, browsers complain of it in their console
            headers.append((b"cross-origin-opener-policy", b"same-origin"))
        if _matches(_joined(scope, b"if-none-match"), tag):
            await _send(send, 304, headers)
            return
        headers += [
            (b"content-type", asset.media_type.encode()),
            (b"content-length", b"%d" % len(content)),
        ]
        if packed:
            headers.append((b"content-encoding", b"gzip"))
        await _send(send, 200, headers, content if scope["method"] == "GET" else b"")


def is_public(scope: Scope, router: Router, *pages: Pages) -> bool:
    """Return whether a router leads a request to one of these pages, which need no API key.

    A route of a host may have the same path.
    """
    asked = next((one for one in pages if one.answer(scope)), None)
    if asked is None:
        return False
    for route in router.routes:
        if route.matches(scope)[0] is not Match.NONE:
            return getattr(route, "app", None) is asked
    return router.default is asked


async def _send(
    send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], content: bytes = b""
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    for start in range(0, len(content), CHUNK_BYTES):
        piece = content[start : start + CHUNK_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _joined(scope: Scope, name: bytes) -> bytes:
    return b",".join(value for key, value in scope["headers"] if key == name)


def _matches(condition: bytes, tag: str) -> bool:
    """Return whether If-None-Match has a tag, by weak comparison (RFC 9110, 13.1.2)."""
    tags = [one.strip().removeprefix(b"W/") for one in condition.split(b",")]
    return tag.encode() in tags or condition.strip() == b"*"
