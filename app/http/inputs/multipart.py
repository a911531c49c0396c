"""The fields of a form: multipart/form-data."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from penstock.backends.errors import InvalidRequest, PenstockError

# It logs every callback at DEBUG, and every malformed body at WARNING.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

MAX_PART_HEADER_BYTES = 8192


class Field(NamedTuple):
    """A field of a form. `content_type`: None if the part has none."""

    name: str
    data: bytes
    content_type: bytes | None


def fields_of(
    body: bytes, boundary: bytes, most: int, too_many: Callable[[], PenstockError]
) -> list[Field]:
    """Return the fields of a form, in order.

    Raises `InvalidRequest` for a malformed form, and what `too_many` makes once there are clearly
    more than `most` fields: one more passes, for a clearer message of the caller's.
    """
    if not boundary:
        raise InvalidRequest("the multipart content type has no boundary")
    parts = _Parts(most, too_many)
    callbacks: Any = {
        name: getattr(parts, name)
        for name in ("on_part_begin", "on_part_data", "on_header_field", "on_header_value")
    }
    callbacks |= {name: getattr(parts, name) for name in ("on_header_end", "on_part_end", "on_end")}
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(_without_preamble(body, boundary))
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}") from None
    if not parts.complete:
        raise InvalidRequest("the multipart body is cut off: its last boundary is missing")
    return parts.done


def _without_preamble(body: bytes, boundary: bytes) -> bytes:
    """Return a multipart body from its first boundary on.

    RFC 2046 lets text stand before it, which readers ignore; python-multipart refuses it.
    """
    if not body.startswith(b"--" + boundary):
        preamble = body.find(b"\r\n--" + boundary + b"\r\n")
        if preamble > 0:
            return body[preamble + 2 :]
    return body


class _Parts:
    """The parts of a form, collected from the callbacks of python-multipart's parser."""

    def __init__(self, most: int, too_many: Callable[[], PenstockError]) -> None:
        self.most = most
        self.too_many = too_many
        self.done: list[Field] = []
        self.complete = False
        self._begin()

    def _begin(self) -> None:
        self.name = ""
        self.content_type: bytes | None = None
        self.data = io.BytesIO()  # a list of small pieces would take much more memory
        self.header = b""
        self.value = b""

    def on_part_begin(self) -> None:
        if len(self.done) > self.most:
            raise self.too_many()
        self._begin()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]
        self._check_header()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self.header) + len(self.value) > MAX_PART_HEADER_BYTES:
            raise InvalidRequest(
                f"a header of a multipart part has more than {MAX_PART_HEADER_BYTES} bytes"
            )

    def on_header_end(self) -> None:
        header = self.header.lower()
        if header == b"content-type":
            self.content_type = self.value
        elif header == b"content-disposition":
            self.name = (
                parse_options_header(self.value)[1].get(b"name", b"").decode("utf-8", "replace")
            )
        self.header = self.value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.data.write(memoryview(data)[start:end])

    def on_part_end(self) -> None:
        self.done.append(Field(self.name, self.data.getvalue(), self.content_type))

    def on_end(self) -> None:
        self.complete = True
