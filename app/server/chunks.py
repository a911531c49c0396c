"""The body of a request in chunks (RFC 9112, 7.1): a strict decoder that stops where the body ends.

httptools decodes chunks too, but it can't stop: it parses whatever request follows in the same
bytes, and the one after that. This decoder takes nothing beyond the body, and no more chunks at a
time than its caller wants.
"""

from __future__ import annotations

import re

MAX_LINE_BYTES = 4096
"""The longest line of a chunk's size with its extensions, which are ignored."""

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")

_SIZE_LINE, _DATA, _DATA_END, _TRAILERS = range(4)


class ChunksError(ValueError):
    """Raised for bytes that aren't valid chunks. The text says what was found."""


class ChunkedBody:
    """Decodes one body. `chunks` counts the size lines so far, `done` is true at its end."""

    __slots__ = ("_left", "_line", "_max_fields", "_max_trailers", "_place", "chunks", "done")

    def __init__(self, max_trailers: int, max_fields: int) -> None:
        """Take trailers of at most `max_trailers` bytes and `max_fields` fields, and drop them."""
        self.chunks = 0
        self.done = False
        self._place = _SIZE_LINE
        self._left = 0  # bytes of data still to come in this chunk
        self._line = b""  # the beginning of a line whose end has not come
        self._max_trailers = max_trailers
        self._max_fields = max_fields

    def feed(self, data: bytes, most: int) -> tuple[bytes, int]:
        """Decode `data` up to the body's end, and at most `most` chunks.

        Returns the data of the chunks, and how many bytes of `data` were taken. Raises
        `ChunksError`.
        """
        pieces: list[bytes] = []
        position, end = 0, len(data)
        most += self.chunks
        while position < end and not self.done:
            if self._place == _DATA:
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._place = _DATA_END
                continue
            if self._place == _SIZE_LINE and self.chunks >= most:
                break
            newline = data.find(b"\n", position)
            if newline < 0:
                self._line += data[position:]
                position = end
                self._check_line(len(self._line))
                break
            line = self._line + data[position : newline + 1]
            self._line = b""
            position = newline + 1
            if not line.endswith(b"\r\n"):
                raise ChunksError("a line of the chunked body ends without CR")
            self._check_line(len(line))
            self._end_line(line[:-2])
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), position

    def _end_line(self, line: bytes) -> None:
        if self._place == _SIZE_LINE:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise ChunksError(f"expected the size of a chunk, found {line[:40]!r}")
            self.chunks += 1
            self._left = int(match[1], 16)
            self._place = _DATA if self._left else _TRAILERS
        elif self._place == _DATA_END:
            if line:
                raise ChunksError("a chunk has more bytes than its size says")
            self._place = _SIZE_LINE
        elif not line:
            self.done = True
        else:
            self._max_trailers -= len(line) + 2
            self._max_fields -= 1
            if self._max_trailers < 0 or self._max_fields < 0:
                raise ChunksError("the trailers of the chunked body are too large")
            if _TRAILER.fullmatch(line) is None:
                raise ChunksError("a trailer of the chunked body is malformed")

    def _check_line(self, size: int) -> None:
        limit = {_DATA_END: 2, _TRAILERS: self._max_trailers + 2}.get(self._place, MAX_LINE_BYTES)
        if size > limit:
            raise ChunksError(f"a line of the chunked body has more than {limit} bytes")
