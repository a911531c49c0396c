"""Texts from bytes, within bounds."""

from __future__ import annotations

from codecs import getincrementaldecoder
from encodings.aliases import aliases

from penstock.backends.errors import InvalidRequest, TooLarge

from ..json_text import ALONE_BYTES, alone

UTF_8 = "utf_8"

CHARSETS = frozenset(
    {
        "ascii", "big5", "big5hkscs", "cp437", "cp850", "cp866", "cp874", "cp932", "cp949",
        *(f"cp{number}" for number in range(1250, 1259)),
        "euc_jis_2004", "euc_jp", "euc_kr", "gb18030", "gb2312", "gbk", "iso2022_jp", "latin_1",
        *(f"iso8859_{part}" for part in range(2, 17) if part != 12),
        "koi8_r", "koi8_u", "mac_roman", "shift_jis", "shift_jis_2004",
        "utf_8", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le",
    }
)  # fmt: skip
"""The charsets that are decoded, by Python's names. Some of Python's other codecs, such as idna,
take a time that grows with the square of the text.
"""

_BY_LABEL = {
    **{label: charset for label, charset in aliases.items() if charset in CHARSETS},
    **{charset: charset for charset in CHARSETS},
}
"""The charsets by what clients call them. Python's own look-up keeps each unknown name for good."""

MAX_WIDE_TEXT_BYTES = 16 << 20
"""The largest input that is a text with characters other than ASCII. Decoding one stops everything
else: 35 to 43 ms of processor time for as much (measured), in one piece or in many.
"""

DECODED_AT_ONCE_BYTES = 1 << 16
"""A text in another charset than UTF-8 is decoded in pieces; other threads may run between two."""


def charset_named(label: str) -> str:
    """Return Python's name of a charset. Raises LookupError for one that is not decoded."""
    charset = _BY_LABEL.get(label.lower().replace("-", "_").replace(" ", "_"))
    if charset is None:
        raise LookupError(label)
    return charset


def decoded_bytes(text: bytes) -> int:
    """Return the most memory that a text takes once it is decoded: four bytes a character, if one
    is beyond ASCII.
    """
    return (1 if text.isascii() else 4) * len(text)


def decode(text: bytes | memoryview, name: str, charset: str = UTF_8) -> str:
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
        if charset == UTF_8 and len(content) < ALONE_BYTES:  # the usual case, without a context
            return str(content, UTF_8)
        with alone(len(content)):
            return str(content, UTF_8) if charset == UTF_8 else _in_pieces(content, charset)
    except UnicodeError:  # UTF-16 without its mark is none of its subclasses
        shown = "UTF-8" if charset == UTF_8 else charset.replace("_", "-")
        raise InvalidRequest(f"input '{name}' is not valid {shown}") from None


def _in_pieces(content: bytes, charset: str) -> str:
    decoder = getincrementaldecoder(charset)()
    step = DECODED_AT_ONCE_BYTES
    pieces = [
        decoder.decode(content[start : start + step]) for start in range(0, len(content), step)
    ]
    return "".join([*pieces, decoder.decode(b"", final=True)])
