"""Bodies of requests: read them within bounds, and find the images in them.

The images come as raw bytes, multipart or JSON.
"""

from __future__ import annotations

import binascii
import io
import logging
from functools import lru_cache, partial
from math import inf
from typing import Any, Literal

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive, Scope

from penstock.backends.errors import InvalidRequest, TooLarge, UnsupportedMedia
from penstock.backends.memory import Reservation, budget

from .helper_thread import on_helper_thread
from .json_text import JsonLimits, check_json, kind_of, loads, parsed_bytes, take_long_strings

# It logs every callback at DEBUG, and every malformed body at WARNING.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

Form = Literal["raw", "sniff", "json", "multipart"]

PARSE_OFF_LOOP_BYTES = 1 << 20
"""Bodies of this size or more are parsed on a helper thread.

On the loop they would delay other requests.
"""

BLOCK_BYTES = 1 << 20

JOIN_OFF_LOOP_BYTES = 1 << 23
"""Bodies of more bytes are joined on a helper thread: 60 MiB take 35 ms."""

SMALL_BODY_BYTES = 1 << 20
SPARE = 0.25
"""The part of the memory of all requests that bodies above `SMALL_BODY_BYTES` may not take."""

MAX_DISCARDED_BYTES = 1 << 18
"""The most bytes of a refused body that are read and thrown away to keep the connection.

Go's server reads as much.
"""

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")

DECODED_AT_ONCE_CHARACTERS = 1 << 20

MAX_DATA_URL_HEAD = 1 << 10
"""The most characters of a data URL before its base64."""

MAX_PART_HEADER_BYTES = 8192
MAX_PARTS_OF_ONE_IMAGE = 8


class ClientLeft(Exception):  # noqa: N818  an event, not an error
    """Raised when the client closes the connection before its request is complete."""


def reserve_body(length: bytes, limit: int, memory: Reservation) -> None:
    """Reserve the memory of a body with this Content-Length.

    Call it before the body is read, or asked for (100-continue). Raises `TooLarge` above `limit`
    bytes, and `MemoryFull`. Large bodies leave some memory to small ones: slow uploads must not
    shut out everyone else.
    """
    size = _number(length)
    if size > limit:
        raise TooLarge(
            f"the body has {length[:20].decode('latin-1')} bytes, at most {limit} are accepted "
            "(max_body)"
        )
    spare = int(budget.limit * SPARE) if size > SMALL_BODY_BYTES else 0
    memory.resize(int(size), "a body", spare)


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
        return b"expect" in headers or not is_discarded(headers[b"content-length"])
    return b"transfer-encoding" in headers


def is_discarded(length: bytes | None) -> bool:
    """Return whether a body of this Content-Length is read even if its request is refused."""
    return length is not None and _number(length) <= MAX_DISCARDED_BYTES


@lru_cache(256)
def _number(length: bytes) -> float:
    """Parse a Content-Length.

    Returns infinity if it is not a number or has 20 digits or more after its first zeros. `int`
    refuses texts of more than 4300 digits.
    """
    if not length.isdigit():
        return inf
    digits = length.lstrip(b"0")
    return int(digits or b"0") if len(digits) < 20 else inf


async def read_rest(first: Message, receive: Receive, limit: int, memory: Reservation) -> bytes:
    """Read the whole body, whose first message is `first`.

    `memory` then has the bytes of the body. Raises `TooLarge` above `limit` bytes, `MemoryFull`,
    `ClientLeft`.
    """
    message = first
    body = Pieces()
    while True:
        if message["type"] != "http.request":
            raise ClientLeft
        body.write(message.get("body", b""))
        if body.size > limit:
            raise TooLarge(f"the body has more than {limit} bytes (max_body)")
        memory.cover(body.size, "a body")
        if not message.get("more_body"):
            return await body.joined(memory)
        message = await receive()


class Pieces:
    """Bytes that come piece by piece, `size` so far, kept in blocks until they are joined.

    One buffer that grows would be moved again and again and leave holes, which took half as much
    memory again with several large bodies at once (measured).
    """

    __slots__ = ("_blocks", "_last", "size")

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._last = io.BytesIO()
        self.size = 0

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        self._last.write(piece)
        if self._last.tell() >= BLOCK_BYTES:
            self._blocks.append(self._last.getvalue())
            self._last = io.BytesIO()

    def join(self, memory: Reservation) -> bytes:
        """Return all bytes. `memory`, which has them, is grown for the moment that both are there.

        Raises `MemoryFull`.
        """
        if not self._blocks:
            return self._last.getvalue()
        memory.resize(memory.size + self.size, "a body")
        # Not by bytes.join, which stops all other threads until it is done.
        whole = io.BytesIO(bytes(self.size))
        for block in (*self._blocks, self._last.getvalue()):
            whole.write(block)
        self._blocks.clear()
        memory.resize(memory.size - self.size, "a body")
        return whole.getvalue()

    def clear(self) -> None:
        """Let go of the bytes."""
        self._blocks.clear()
        self._last = io.BytesIO()

    async def joined(self, memory: Reservation) -> bytes:
        """Join the bytes as `join` does, many of them on a helper thread."""
        if self.size <= JOIN_OFF_LOOP_BYTES:
            return self.join(memory)
        return await on_helper_thread(self.join, memory)


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
    if body.startswith(b"{") and body[-1024:].rstrip()[-1:] == b"}":
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
    body: bytes,
    form: Form,
    content_type: bytes | None,
    memory: Reservation,
    *,
    many: bool,
    limit: int,
    json: JsonLimits,
) -> list[bytes] | Link:
    """Take the images out of a body as `parse_images` does, a large one on a helper thread."""
    parse = partial(
        parse_images, body, form, content_type, memory, many=many, limit=limit, json=json
    )
    return await on_helper_thread(parse) if len(body) >= PARSE_OFF_LOOP_BYTES else parse()


def parse_images(
    body: bytes,
    form: Form,
    content_type: bytes | None,
    memory: Reservation,
    *,
    many: bool,
    limit: int,
    json: JsonLimits,
) -> list[bytes] | Link:
    """Take the images out of a JSON or multipart body: 1 to `limit` if `many`, else one or its URL.

    `memory` has the bytes of the body, and then those of the images alone. Raises `InvalidRequest`,
    `TooLarge` for too many, `MemoryFull`.
    """
    images: list[bytes] | Link
    if form == "json":
        images = _from_json(body, memory, json, many, limit)
    else:
        images = _from_multipart(body, content_type or b"", memory, many, limit)
    memory.resize(sum(map(len, images)), "images")
    return images


def _from_json(
    body: bytes, memory: Reservation, limits: JsonLimits, many: bool, limit: int
) -> list[bytes] | Link:
    text, taken = take_long_strings(body)
    # The document, and the bytes in its texts, besides the body.
    size = check_json(text, limits) + parsed_bytes(text)
    memory.resize(2 * len(body) + size, "a parsed body")
    try:
        document = loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    name = "images" if many else "image"
    expected = '{"images": [base64, …]}' if many else '{"image": base64}'
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body is a JSON {kind_of(document)}, expected {expected}")
    if not many and len(document) == 1 and "url" in document:
        if not isinstance(document["url"], str):
            raise InvalidRequest(f"'url' is a JSON {kind_of(document['url'])}, expected a string")
        if document["url"] in taken:
            raise InvalidRequest(f"'url' has {len(taken[document['url']])} bytes, which no URL has")
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
        return [_from_base64(value, taken, name)]
    if not isinstance(value, list):
        raise InvalidRequest(f"{name!r} is a JSON {kind_of(value)}, expected {expected}")
    _check_count(len(value), limit)
    return [_from_base64(element, taken, f"images[{index}]") for index, element in enumerate(value)]


def _from_base64(value: Any, taken: dict[str, memoryview], name: str) -> bytes:
    """Decode the base64 of an image. `taken` has the long texts, of which `value` is the name."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name!r} is a JSON {kind_of(value)}, expected a base64 string")
    text: str | memoryview = taken.get(value, value)
    start = text[:MAX_DATA_URL_HEAD]
    head = start if isinstance(start, str) else str(start, "latin-1")
    if head.startswith("data:"):  # a data URL, as browsers' FileReader gives it
        kind, comma, _ = head.partition(",")
        if not kind.endswith(";base64"):
            raise InvalidRequest(f"{name!r} is a data URL without ';base64', expected base64")
        text = text[len(kind + comma) :]
    try:
        return decode_base64(text)
    except ValueError as error:
        raise InvalidRequest(f"{name!r} is not valid base64: {error}") from None


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


def _check_count(count: int, limit: int) -> None:
    if count == 0:
        raise InvalidRequest("the request has no image, expected at least one")
    if count > limit:
        raise TooLarge(f"the request has {count} images, at most {limit} are accepted (max_images)")


def _from_multipart(
    body: bytes, content_type: bytes, memory: Reservation, many: bool, limit: int
) -> list[bytes]:
    memory.resize(2 * len(body), "a parsed body")
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
        self.data = io.BytesIO()  # a list of small pieces would take much more memory
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
        self.data.write(memoryview(data)[start:end])

    def on_part_end(self) -> None:
        self.done.append((self.name, self.data.getvalue()))

    def on_end(self) -> None:
        self.complete = True
