"""How TorchServe hands a request to a handler: a dict of its fields, decoded by their types."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import parse_qsl

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import InvalidInput

WHOLE_BODY = "body"
"""The field of a request whose body is no form."""


def fields_of(data: Any, headers: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a request, and the media type of each.

    `data` is the body, or a value that came by another door: that is the field `body` then. A form
    has its fields; JSON is parsed and text decoded, or both left as bytes if they can't be.

    Raises InvalidInput for a malformed form.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        return {WHOLE_BODY: data}, {WHOLE_BODY: ""}
    body = bytes(data)
    content_type = headers.get("content-type", "")
    media_type, options = parse_options_header(content_type.encode("latin-1"))
    if media_type == b"multipart/form-data":
        parts = _parts(body, options.get(b"boundary", b""))
    elif media_type == b"application/x-www-form-urlencoded" and b"=" in body[:256]:
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
        return dict(pairs), {name: "" for name, _ in pairs}
    else:
        parts = [(WHOLE_BODY, content_type, body)]
    return (
        {name: _decoded(value, media) for name, media, value in parts},
        {name: media for name, media, _ in parts},
    )


def _decoded(value: bytes, media_type: str) -> Any:
    try:
        if media_type.partition(";")[0].strip().lower() == "application/json":
            return orjson.loads(value)
        if media_type.startswith("text"):
            return value.decode()
    except ValueError:
        pass  # the handler gets the bytes, as from TorchServe
    return bytearray(value)


def _parts(body: bytes, boundary: bytes) -> list[tuple[str, str, bytes]]:
    """Return name, media type and value of each field of a form."""
    parts: list[tuple[str, str, bytes]] = []
    value = io.BytesIO()
    headers: dict[bytes, bytes] = {}
    name = [b"", b""]  # of the header that is being read, and its value

    def begin() -> None:
        headers.clear()
        value.seek(0)
        value.truncate()

    def header_end() -> None:
        headers[name[0].lower()] = name[1]
        name[:] = [b"", b""]

    def add(index: int) -> Any:
        def append(data: bytes, start: int, end: int) -> None:
            name[index] += data[start:end]

        return append

    def end() -> None:
        options = parse_options_header(headers.get(b"content-disposition"))[1]
        media_type = headers.get(b"content-type", b"").decode("latin-1")
        field = options.get(b"name", b"").decode("utf-8", "replace")
        parts.append((field, media_type, value.getvalue()))

    callbacks: Any = {
        "on_part_begin": begin,
        "on_part_data": lambda data, start, stop: value.write(data[start:stop]),
        "on_header_field": add(0),
        "on_header_value": add(1),
        "on_header_end": header_end,
        "on_part_end": end,
    }
    if not boundary:
        raise InvalidInput("TorchServeHandler: the multipart content type has no boundary")
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"TorchServeHandler: the form is malformed: {error}") from None
    return parts
