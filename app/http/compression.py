"""gzip and deflate, in both directions. Decompression is bounded, whatever the body claims."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from penstock.backends.errors import InvalidRequest, TooLarge
from penstock.backends.memory import Reservation

from .body import Pieces
from .helper_thread import on_helper_thread

WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
"""zlib's `wbits` for each encoding."""

_ALIASES = {b"x-gzip": b"gzip"}
"""Other names of these encodings (RFC 9110, 8.4.1.3)."""

COMPRESS_OFF_LOOP_BYTES = 1 << 16
"""From this size on, a body is compressed on a helper thread. zlib releases the GIL."""

WORTH_COMPRESSING_BYTES = 1 << 11
"""From this size on, compressing JSON saves more than it costs."""

INFLATED_AT_ONCE_BYTES = 1 << 20
"""So much memory is reserved before more of a body is decompressed."""

FED_AT_ONCE_BYTES = 1 << 16
"""So much of a body is decompressed at once: zlib copies what it has not used yet."""

COMPRESSION_LEVEL = 1
"""The fastest. On answers like ours, the other levels take several times as long for 10 % less."""


def window_of(encoding: bytes | None) -> int:
    """Return zlib's `wbits` for a Content-Encoding; 0 for a body that is not compressed.

    Raises KeyError for an unknown encoding, with its name.
    """
    name = b"" if encoding is None else encoding.strip().lower()
    if name in {b"", b"identity"}:
        return 0
    window = WINDOW_BITS.get(_ALIASES.get(name, name))
    if window is None:
        raise KeyError(name[:40].decode("latin-1"))
    return window


async def inflate(body: bytes, window: int, limit: int, memory: Reservation) -> bytes:
    """Decompress a body. `memory` then has the bytes of the result alone.

    Raises `TooLarge` for more than `limit` bytes, `InvalidRequest` for a body that is cut off or is
    not such a stream, and what `memory` raises, before more is decompressed than fits.
    """
    return await on_helper_thread(_inflate, body, window, limit, memory)


def _inflate(body: bytes, window: int, limit: int, memory: Reservation) -> bytes:
    compressed = memory.size
    content = Pieces()
    for piece in _inflated_pieces(body, window):
        content.write(piece)
        if content.size > limit:
            raise TooLarge(f"the decompressed body has more than {limit} bytes (max_inflated)")
        # One piece more, which the next step makes.
        memory.cover(compressed + content.size + INFLATED_AT_ONCE_BYTES, "an inflated body")
    whole = content.join(memory)
    memory.resize(len(whole), "an inflated body")
    return whole


def _inflated_pieces(body: bytes, window: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(window)
    try:
        for start in range(0, len(body), FED_AT_ONCE_BYTES):
            rest = body[start : start + FED_AT_ONCE_BYTES]
            if stream.eof:
                break
            while rest and not stream.eof:
                yield stream.decompress(rest, INFLATED_AT_ONCE_BYTES)
                rest = stream.unconsumed_tail
        else:
            start = len(body)
        # zlib may hold some of the content back.
        while not stream.eof and (piece := stream.decompress(b"", INFLATED_AT_ONCE_BYTES)):
            yield piece
    except zlib.error as error:
        raise InvalidRequest(f"the body can't be decompressed: {error}") from None
    if not stream.eof or stream.unused_data or start < len(body):
        raise InvalidRequest(
            "the body can't be decompressed: it is cut off, or something follows its end"
        )


def choose_encoding(accepted: bytes | None, size: int, binary: bool) -> bytes | None:
    """Choose how to compress an answer of `size` bytes, given the request's Accept-Encoding.

    Returns None to leave the answer as it is. Some clients accept gzip without asking for it
    (aiohttp always does). So JSON is compressed if it is large enough, and an answer with the bytes
    of tensors (`binary`) only for a client that names a single encoding, which asks for it.
    """
    if accepted is None or (size < WORTH_COMPRESSING_BYTES and b"," in accepted):
        return None
    names = accepted_codings(accepted)
    if binary and len(names) > 1:
        return None
    return next((name for name in names if name in WINDOW_BITS), None)


def accepted_codings(accepted: bytes) -> list[bytes]:
    """Return the codings that an Accept-Encoding names, without those of weight 0."""
    weights = [coding.lower().partition(b";") for coding in accepted.split(b",")]
    names = [name.strip() for name, _, weight in weights if weight.strip().rstrip(b".0") != b"q="]
    return [_ALIASES.get(name, name) for name in names]


def deflate(body: bytes, encoding: bytes) -> bytes:
    """Compress a body with `encoding`, one of `WINDOW_BITS`.

    From `COMPRESS_OFF_LOOP_BYTES` on, call it on a helper thread.
    """
    stream = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, WINDOW_BITS[encoding])
    return stream.compress(body) + stream.flush()
