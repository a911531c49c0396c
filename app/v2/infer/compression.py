"""gzip and deflate, both ways. Inflating is bounded, whatever the body says of itself."""

from __future__ import annotations

import asyncio
import zlib

from penstock.backends.errors import InvalidRequest, TooLarge

from ..call import ProtocolError

WINDOWS = {b"gzip": 31, b"deflate": 15}
"""zlib's `wbits`."""

LARGE = 1 << 16
"""Bytes from which it is done on a helper thread (zlib releases the GIL)."""

PAYS = 1 << 11
"""Bytes of JSON from which compressing them saves more than it costs."""

LEVEL = 1
"""Fastest: on what servers answer, the others take several times as long for a tenth less."""


async def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """What was compressed. Raises `ProtocolError` (501) for another encoding, `TooLarge` above `limit` bytes, `InvalidRequest` for what is
    cut off or no such stream.
    """
    encoding = encoding.strip().lower()
    if encoding in {b"", b"identity"}:
        return body
    window = WINDOWS.get(encoding)
    if window is None:
        name = encoding[:40].decode("latin-1")
        raise ProtocolError(
            501, f"Unsupported content encoding: {name}", ((b"accept-encoding", b"gzip, deflate"),)
        )
    return await asyncio.to_thread(_inflate, body, window, limit)


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body can't be decompressed: {error}") from None
    if len(found) > limit:
        raise TooLarge(
            f"the body has more than {limit} bytes once it is decompressed (max_inflated)"
        )
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(
            "the body can't be decompressed: it is cut off, or something follows its end"
        )
    return found


def chosen_encoding(accepted: bytes | None, size: int, binary: bool) -> bytes | None:
    """How to compress an answer of `size` bytes; None: not at all.

    Clients say that they take gzip whether they want it or not (aiohttp always does). So JSON is compressed where that pays, tensors'
    bytes only for a client that names one encoding and no other: it asks for it.
    """
    if accepted is None or (size < PAYS and b"," in accepted):
        return None
    weights = [each.lower().partition(b";") for each in accepted.split(b",")]
    names = [name.strip() for name, _, weight in weights if weight.strip().rstrip(b".0") != b"q="]
    if binary and len(names) > 1:
        return None
    return next((name for name in names if name in WINDOWS), None)


async def deflate(body: bytes, encoding: bytes) -> bytes:
    """`body` by that encoding."""
    return (
        _deflate(body, encoding)
        if len(body) < LARGE
        else await asyncio.to_thread(_deflate, body, encoding)
    )


def _deflate(body: bytes, encoding: bytes) -> bytes:
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, WINDOWS[encoding])
    return stream.compress(body) + stream.flush()
