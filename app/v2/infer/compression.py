"""gzip and deflate, in both directions. Decompression is bounded, whatever the body claims."""

from __future__ import annotations

import asyncio
import zlib

from penstock.backends.errors import InvalidRequest, TooLarge

from ..call import ProtocolError

WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
"""zlib's `wbits` for each encoding."""

COMPRESS_OFF_LOOP_BYTES = 1 << 16
"""From this size on, a body is compressed on a helper thread. zlib releases the GIL."""

WORTH_COMPRESSING_BYTES = 1 << 11
"""From this size on, compressing JSON saves more than it costs."""

COMPRESSION_LEVEL = 1
"""The fastest. On answers like ours, the other levels take several times as long for 10 % less."""


async def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Decompress a body with the Content-Encoding `encoding`.

    Raises `ProtocolError` (501) for an unknown encoding, `TooLarge` for more than `limit` bytes,
    and `InvalidRequest` for a body that is cut off or is not such a stream.
    """
    encoding = encoding.strip().lower()
    if encoding in {b"", b"identity"}:
        return body
    window = WINDOW_BITS.get(encoding)
    if window is None:
        name = encoding[:40].decode("latin-1")
        raise ProtocolError(
            501, f"Unsupported content encoding: {name}", ((b"accept-encoding", b"gzip, deflate"),)
        )
    return await asyncio.to_thread(_inflate, body, window, limit)


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    stream = zlib.decompressobj(window)
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body can't be decompressed: {error}") from None
    if len(content) > limit:
        raise TooLarge(f"the decompressed body has more than {limit} bytes (max_inflated)")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(
            "the body can't be decompressed: it is cut off, or something follows its end"
        )
    return content


def choose_encoding(accepted: bytes | None, size: int, binary: bool) -> bytes | None:
    """Choose how to compress an answer of `size` bytes, given the request's Accept-Encoding.

    Returns None to leave the answer as it is. Some clients accept gzip without asking for it
    (aiohttp always does). So JSON is compressed if it is large enough, and an answer with the bytes
    of tensors (`binary`) only for a client that names a single encoding, which asks for it.
    """
    if accepted is None or (size < WORTH_COMPRESSING_BYTES and b"," in accepted):
        return None
    weights = [coding.lower().partition(b";") for coding in accepted.split(b",")]
    names = [name.strip() for name, _, weight in weights if weight.strip().rstrip(b".0") != b"q="]
    if binary and len(names) > 1:
        return None
    return next((name for name in names if name in WINDOW_BITS), None)


async def deflate(body: bytes, encoding: bytes) -> bytes:
    """Compress a body with `encoding`, one of `WINDOW_BITS`."""
    return (
        _deflate(body, encoding)
        if len(body) < COMPRESS_OFF_LOOP_BYTES
        else await asyncio.to_thread(_deflate, body, encoding)
    )


def _deflate(body: bytes, encoding: bytes) -> bytes:
    stream = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()
