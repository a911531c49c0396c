"""Texts from bytes, within bounds."""

from __future__ import annotations

from codecs import getincrementaldecoder

from penstock.backends.errors import InvalidRequest, TooLarge

from ..json_text import ALONE_BYTES, alone

MAX_WIDE_TEXT_BYTES = 16 << 20
"""The largest input that is a text with characters other than ASCII. Decoding one stops everything
else: 35 to 43 ms of processor time for as much (measured), in one piece or in many.
"""

DECODED_AT_ONCE_BYTES = 1 << 16
"""A text in another charset than UTF-8 is decoded in pieces; other threads may run between two."""


def decoded_bytes(text: bytes) -> int:
    """Return the most memory that a text takes once it is decoded: four bytes a character, if one
    is beyond ASCII.
    """
    return (1 if text.isascii() else 4) * len(text)


def decode(text: bytes | memoryview, name: str, charset: str = "utf-8") -> str:
    """Decode the text that is input `name`. `charset` is Python's name of it.

    Raises `InvalidRequest` for bytes that the charset does not have, and `TooLarge` for more than
    `MAX_WIDE_TEXT_BYTES` that are not ASCII.
    """
    content = text if isinstance(text, bytes) else bytes(text)
    if len(content) > MAX_WIDE_TEXT_BYTES and not content.isascii():
        raise TooLarge(
            f"input '{name}' is a text of {len(content)} bytes with characters other than "
            f"ASCII: at most {MAX_WIDE_TEXT_BYTES} are accepted, because decoding more would stop "
            "other requests; send it in pieces"
        )
    try:
        if charset == "utf-8" and len(content) < ALONE_BYTES:  # the usual case, without a context
            return str(content, "utf-8")
        with alone(len(content)):
            return str(content, "utf-8") if charset == "utf-8" else _in_pieces(content, charset)
    except UnicodeDecodeError:
        shown = "UTF-8" if charset == "utf-8" else charset
        raise InvalidRequest(f"input '{name}' is not valid {shown}") from None


def _in_pieces(content: bytes, charset: str) -> str:
    decoder = getincrementaldecoder(charset)()
    step = DECODED_AT_ONCE_BYTES
    pieces = [
        decoder.decode(content[start : start + step]) for start in range(0, len(content), step)
    ]
    return "".join([*pieces, decoder.decode(b"", final=True)])
