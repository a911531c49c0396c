"""Bytes in base64, as clients write it."""

from __future__ import annotations

import binascii
import io

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")

DECODED_AT_ONCE_CHARACTERS = 1 << 20

MAX_DATA_URL_HEAD = 1 << 10
"""The most characters of a data URL before its base64."""


def decode_base64_or_url(text: str | memoryview) -> bytes:
    """Decode base64, or the data URL that browsers' FileReader makes of it. Raises ValueError."""
    start = text[:MAX_DATA_URL_HEAD]
    head = start if isinstance(start, str) else str(start, "latin-1")
    if head.startswith("data:"):
        kind, comma, _ = head.partition(",")
        if not kind.endswith(";base64"):
            raise ValueError("a data URL without ';base64', expected base64")
        text = text[len(kind + comma) :]
    try:
        return decode_base64(text)
    except ValueError as error:
        raise ValueError(f"not valid base64: {error}") from None


def decode_base64(text: str | memoryview) -> bytes:
    """Decode base64. It may be broken into lines, URL-safe, and without padding.

    `text` may be the bytes of a JSON string, which has no line breaks. Raises ValueError for
    anything else.
    """
    try:
        return _decode_pieces(text, plain=True)
    except ValueError:  # rare, so the usual form pays nothing for the others
        return _decode_pieces(text, plain=False)


def _decode_pieces(text: str | memoryview, *, plain: bool) -> bytes:
    """Decode base64 piece by piece.

    Other threads may run between two pieces: `binascii` does not release the GIL. `plain`: the text
    is in the usual form. The others are brought to it.
    """
    content = io.BytesIO()
    rest = b""
    ended = False
    for start in range(0, len(text), DECODED_AT_ONCE_CHARACTERS):
        part = text[start : start + DECODED_AT_ONCE_CHARACTERS]
        piece = part.encode("ascii") if isinstance(part, str) else bytes(part)
        if not plain:
            spaces = b"\t\n\r " if isinstance(text, str) else b" "
            piece = rest + piece.translate(_STANDARD_ALPHABET, spaces)
            if start + DECODED_AT_ONCE_CHARACTERS < len(text):
                whole = len(piece) // 4 * 4
                piece, rest = piece[:whole], piece[whole:]
            elif not piece.endswith(b"="):
                piece += b"=" * (-len(piece) % 4)
        if piece and ended:
            raise ValueError("Excess data after padding")
        ended = piece.endswith(b"=")
        content.write(binascii.a2b_base64(piece, strict_mode=True))
    return content.getvalue()
