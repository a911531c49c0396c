"""Bodies of requests: read them within bounds, and find the images in them.

The images come as raw bytes, multipart or JSON.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from collections.abc import Callable
from functools import lru_cache, partial
from math import inf
from typing import Any, Literal

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive, Scope

from penstock.backends.errors import InvalidRequest, TooLarge, UnsupportedMedia

# It logs every callback at DEBUG, and every malformed body at WARNING.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

Form = Literal["raw", "sniff", "json", "multipart"]

PARSE_OFF_LOOP_BYTES = 1 << 20
"""Bodies of this size or more are parsed on a helper thread.

On the loop they would delay other requests.
"""

MAX_DISCARDED_BYTES = 1 << 18
"""The most bytes of a refused body that are read and thrown away to keep the connection.

Go's server reads as much.
"""

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")

MAX_PART_HEADER_BYTES = 8192
MAX_PARTS_OF_ONE_IMAGE = 8


class ClientLeft(Exception):  # noqa: N818  an event, not an error
    """Raised when the client closes the connection before its request is complete."""


def check_length(length: bytes, limit: int) -> None:
    """Raise `TooLarge` for a Content-Length above `limit`.

    Call it before the body is read, or asked for (100-continue).
    """
    if _number(length) > limit:
        raise TooLarge(
            f"the body has {length[:20].decode('latin-1')} bytes, at most {limit} are accepted "
            "(max_body)"
        )


def must_close(scope: Scope) -> bool:
    """Return whether the connection must close after an answer given before the body was read.

    The server reads on and throws away what comes, which is cheap if it is little. The connection
    closes instead for a large body, for one of unknown length, and if the client waits for
    100-continue before it sends the body: then the server can't know whether the body will come.
    """
    if scope.get("http_version", "1.1") >= "2":
        return False  # there a request is a stream of its own
    headers = dict(scope["headers"])
    if b"content-length" in headers:
        return b"expect" in headers or _number(headers[b"content-length"]) > MAX_DISCARDED_BYTES
    return b"transfer-encoding" in headers


def _number(length: bytes) -> float:
    """Parse a Content-Length.

    Returns infinity if it is not a number or has 20 digits or more. `int` refuses texts of more
    than 4300 digits.
    """
    return int(length) if length.isdigit() and len(length) < 20 else inf


async def read_rest(first: Message, receive: Receive, limit: int) -> bytes:
    """Read the whole body, whose first message is `first`.

    Raises `TooLarge` above `limit` bytes, `ClientLeft`.
    """
    message = first
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] != "http.request":
            raise ClientLeft
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes (max_body)")
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()


_SNIFFED_TYPES = frozenset(
    {
        b"",
        b"application/octet-stream",
        b"binary/octet-stream",  # not registered; S3 gives it to every object without a type
        b"application/x-www-form-urlencoded",  # curl's default
    }
)


@lru_cache(256)
def form_of(content_type: bytes | None) -> Form:
    """Return how a body of this media type is read. Raises `UnsupportedMedia`.

    "sniff" is for the types of clients that send a file as it is: often none, or a wrong one.
    """
    if content_type is None:
        return "sniff"
    kind = content_type.partition(b";")[0].strip().lower()
    if kind in _SNIFFED_TYPES:
        return "sniff"
    if kind == b"application/json":
        return "json"
    if kind == b"multipart/form-data":
        return "multipart"
    if kind.startswith(b"image/"):
        return "raw"
    raise UnsupportedMedia(
        f"the media type {kind[:64].decode('latin-1')!r} is not understood; send the image itself "
        "(image/* or application/octet-stream), multipart/form-data or application/json"
    )


def sniff(body: bytes, content_type: bytes | None) -> Form:
    """Decide how to read a body whose type says nothing.

    JSON if it starts and ends like an object, else raw bytes. Raises `UnsupportedMedia` for the
    fields of an HTML form.
    """
    if body.startswith(b"{") and body.rstrip()[-1:] == b"}":
        return "json"
    if (
        content_type is not None
        and content_type.lower().startswith(b"application/x-www-form-urlencoded")
        and _looks_like_form(body)
    ):
        raise UnsupportedMedia(
            "a form without files holds no image; send multipart/form-data with a field 'image', "
            "or the file itself"
        )
    return "raw"


def _looks_like_form(body: bytes) -> bool:
    start = body[:256]
    return (
        b"=" in start
        and start.isascii()
        and b"\x00" not in start
        and start.decode("ascii").isprintable()
    )


class Link(str):
    """The URL of an image, in place of the image."""

    __slots__ = ()


async def images_of(
    body: bytes, form: Form, content_type: bytes | None, *, many: bool, limit: int
) -> list[bytes] | Link:
    """Take the images out of a JSON or multipart body: 1 to `limit` if `many`, else one or its URL.

    Raises `InvalidRequest`, `TooLarge` for too many.
    """
    parse: Callable[[], list[bytes] | Link]
    if form == "json":
        parse = partial(_from_json, body, many, limit)
    else:
        parse = partial(_from_multipart, body, content_type or b"", many, limit)
    if len(body) >= PARSE_OFF_LOOP_BYTES:
        return await asyncio.to_thread(parse)
    return parse()


def _from_json(body: bytes, many: bool, limit: int) -> list[bytes] | Link:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    name = "images" if many else "image"
    expected = '{"images": [base64, …]}' if many else '{"image": base64}'
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body is a JSON {kind_of(document)}, expected {expected}")
    if not many and len(document) == 1 and "url" in document:
        if not isinstance(document["url"], str):
            raise InvalidRequest(f"'url' is a JSON {kind_of(document['url'])}, expected a string")
        return Link(document["url"])
    unknown = [key for key in document if key != name]
    if unknown:
        raise InvalidRequest(
            f"the body has the unknown key {unknown[0][:64]!r}, expected {expected}"
        )
    if name not in document:
        raise InvalidRequest(f"the body has no {name!r}, expected {expected}")
    value = document[name]
    if not many:
        return [_from_base64(value, name)]
    if not isinstance(value, list):
        raise InvalidRequest(f"{name!r} is a JSON {kind_of(value)}, expected {expected}")
    _check_count(len(value), limit)
    return [_from_base64(element, f"images[{index}]") for index, element in enumerate(value)]


def kind_of(value: Any) -> str:
    """Return JSON's name of a value's type."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _from_base64(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name!r} is a JSON {kind_of(value)}, expected a base64 string")
    if value.startswith("data:"):  # a data URL, as browsers' FileReader gives it
        kind, _, value = value.partition(",")
        if not kind.endswith(";base64"):
            raise InvalidRequest(f"{name!r} is a data URL without ';base64', expected base64")
    try:
        return decode_base64(value)
    except ValueError as error:
        raise InvalidRequest(f"{name!r} is not valid base64: {error}") from None


def decode_base64(text: str) -> bytes:
    """Decode base64. It may be broken into lines, URL-safe, and without padding.

    Raises ValueError for anything else.
    """
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # rare, so the usual form pays nothing for the others
        plain = text.encode("ascii").translate(_STANDARD_ALPHABET, b"\t\n\r ")
        if b"=" not in plain:
            plain += b"=" * (-len(plain) % 4)
        return binascii.a2b_base64(plain, strict_mode=True)


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise InvalidRequest("the request has no image, expected at least one")
    if count > limit:
        raise TooLarge(f"the request has {count} images, at most {limit} are accepted (max_images)")


def _from_multipart(body: bytes, content_type: bytes, many: bool, limit: int) -> list[bytes]:
    field = "images" if many else "image"
    # Not by email.message, which raises, and takes quadratic time.
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("the multipart content type has no boundary")
    parts = _Parts(limit if many else None)
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
    images = [data for name, data in parts.done if name == field]
    others = sorted({name for name, _ in parts.done if name != field})
    if others:
        raise InvalidRequest(
            f"the form has the unknown field {others[0][:64]!r}; images go into the field {field!r}"
        )
    if not images:
        raise InvalidRequest(f"the form has no field {field!r}")
    if not many and len(images) > 1:
        raise InvalidRequest(
            f"the form has {len(images)} fields {field!r}, expected one; "
            "send several images to …/batch as 'images'"
        )
    _check_count(len(images), limit)
    return images


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

    def __init__(self, limit: int | None) -> None:
        """`limit`: the most images; None if one is expected."""
        self.limit = limit
        self.done: list[tuple[str, bytes]] = []
        self.complete = False
        self._begin()

    def _begin(self) -> None:
        self.name = ""
        self.data: list[bytes] = []
        self.header = b""
        self.value = b""

    def on_part_begin(self) -> None:
        # Each limit lets one part more pass than is accepted, for a clearer message later.
        if self.limit is None and len(self.done) > MAX_PARTS_OF_ONE_IMAGE:
            raise InvalidRequest(
                f"the form has more than {MAX_PARTS_OF_ONE_IMAGE} parts, expected one field 'image'"
            )
        if self.limit is not None and len(self.done) > self.limit:
            raise TooLarge(f"the request has more than {self.limit} parts (max_images)")
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
        if self.header.lower() == b"content-disposition":
            self.name = (
                parse_options_header(self.value)[1].get(b"name", b"").decode("utf-8", "replace")
            )
        self.header = self.value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.data.append(data[start:end])

    def on_part_end(self) -> None:
        self.done.append((self.name, b"".join(self.data)))

    def on_end(self) -> None:
        self.complete = True
