"""`HeadParser` makes the `RequestHead` of a request, by httptools and within limits.

Heads that two parsers could read in two ways are refused: behind a proxy, the one that disagrees
would take a part of this request for another one (request smuggling, RFC 9112, 11.2).
"""

from __future__ import annotations

import re

import httptools

from penstock.backends.errors import InvalidRequest

from .refusals import HeadTooLarge, UnsupportedVersion

_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
MAX_LENGTH_DIGITS = 20
_HOST = re.compile(
    rb"(?:\[[0-9A-Za-z.:%_~-]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)
"""A host and a port, as a URL has them (RFC 3986, 3.2.2). The host may be empty."""

_VERSION = re.compile(rb"HTTP/[0-9]+\.[0-9]+")


KNOWN_HEAD_BYTES = 1 << 10
KNOWN_HEADS = 256
"""So many heads of at most so many bytes are remembered. The clients of a program send the same
bytes again and again, unless their bodies or ids differ.
"""

SEEN_HEADS = 1 << 10


class RequestHead:
    """A parsed head. Read-only: requests with the same bytes share it.

    `fields`: in order, their names in lower case. `length`: the Content-Length, 0 without one.
    `coding`: the Transfer-Encoding, b"chunked" or b"". `expects`: the client waits for 100
    Continue. `offers_upgrade`: the parser takes what follows for another protocol. `plain`: it is
    HTTP/1.1 without any of these, so the body has `length` bytes. `direct` is for direct_routes.py.
    """

    __slots__ = (
        "coding",
        "direct",
        "expects",
        "fields",
        "http_1_0",
        "keep_alive",
        "length",
        "method",
        "offers_upgrade",
        "path",
        "plain",
        "query",
    )

    def __init__(self) -> None:
        # The others are set when it is complete.
        self.fields: list[tuple[bytes, bytes]] = []
        self.coding = b""
        self.length = 0
        self.expects = self.offers_upgrade = False
        self.keep_alive = True
        self.direct: object = None
        self.http_1_0: bool
        self.method: bytes
        self.path: bytes
        self.plain: bool
        self.query: bytes


NO_HEAD = RequestHead()
"""The head of a connection without a request."""


class KnownHeads(dict[bytes, RequestHead]):
    """Parsed heads by their bytes, for all connections of a server.

    A head is kept when it comes for the second time. To keep each would cost those that never come
    again 2 µs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[int] = set()  # hashes: two heads with one hash do no harm here

    def add(self, text: bytes, head: RequestHead) -> None:
        number = hash(text)
        if number not in self._seen:
            if len(self._seen) >= SEEN_HEADS:
                self._seen.clear()
            self._seen.add(number)
        elif len(text) <= KNOWN_HEAD_BYTES and head.plain:
            if len(self) >= KNOWN_HEADS:
                self.clear()
            self[text] = head


class HeadParser:
    """Parses the heads of one connection."""

    __slots__ = (
        "_complete",
        "_head",
        "_host",
        "_hosts",
        "_parser",
        "_url",
        "_valid_host",
        "awaits_body",
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpRequestParser | None = None
        self._host = self._valid_host = b""
        self.awaits_body = False
        """`skip_body` or `drop` has to come before the next head."""

    def parse(self, text: bytes, max_fields: int) -> RequestHead:
        """Parse a head, which ends with an empty line.

        Raises `InvalidRequest`, `HeadTooLarge`, `UnsupportedVersion`.
        """
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        head = self._head = RequestHead()
        self._url = b""
        self._hosts = 0
        self._complete = False
        try:
            parser.feed_data(text)
        except httptools.HttpParserUpgrade:
            # Java's HttpClient and `curl --http2` offer HTTP/2 with a request (`Upgrade: h2c`). A
            # server may ignore that (RFC 9110, 7.8).
            head.offers_upgrade = True
        except httptools.HttpParserCallbackError:
            raise  # a mistake of ours
        except httptools.HttpParserError as error:
            raise _wrong_version(text) or InvalidRequest(f"malformed: {error}") from None
        head.http_1_0 = not text.startswith(b" HTTP/1.1\r\n", text.find(b"\r\n") - 9)
        head.method = parser.get_method()
        self._check(text, head, max_fields)
        try:
            head.path, head.query = _target(self._url)
        except httptools.HttpParserError:
            head.path = b"\xff"
        if not head.path.isascii():
            raise InvalidRequest("malformed: the target is no path and no URL")
        head.plain = not (head.coding or head.expects or head.offers_upgrade or head.http_1_0)
        self._head = NO_HEAD
        self.awaits_body = head.length > 0
        return head

    def skip_body(self, body: bytes) -> None:
        """Tell the parser of the whole body, which is cheaper than another parser."""
        if self.awaits_body and self._parser is not None:
            self._parser.feed_data(body)
            self.awaits_body = False

    def drop(self) -> None:
        """Parse the next head with another parser. This one waits for a body that it won't get.

        Until then they refer to each other: a cycle.
        """
        self._parser = None
        self.awaits_body = False

    # httptools calls these while it is fed. It calls no others: bodies are split off elsewhere.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        head = self._head
        head.fields.append((name, value))
        if name in _FRAMING:
            if name == b"host":
                self._hosts += 1
                self._host = value.strip(b" \t")
            elif name == b"content-length":
                # The parser refuses lengths above 64 bits, but takes any number of zeros before
                # one, and `int` no more than 4300 digits.
                head.length = int(value.lstrip(b" \t0")[:MAX_LENGTH_DIGITS] or b"0")
            elif name == b"expect":
                head.expects = value.lower() == b"100-continue"
            else:
                head.coding += value.strip().lower() or b"?"

    def on_headers_complete(self) -> None:
        self._complete = True
        parser = self._parser
        self._head.keep_alive = parser is not None and parser.should_keep_alive()

    def _check(self, text: bytes, head: RequestHead, max_fields: int) -> None:
        """Raise the error of a head that httptools takes and we don't."""
        if head.http_1_0 and not text.startswith(b" HTTP/1.0\r\n", text.find(b"\r\n") - 9):
            raise _wrong_version(text) or InvalidRequest("malformed: the request has no version")
        if not self._complete:
            raise InvalidRequest("malformed: the head does not end where its empty line is")
        if len(head.fields) > max_fields:
            raise HeadTooLarge(
                f"the head has {len(head.fields)} fields, at most {max_fields} are accepted "
                "(max_fields)"
            )
        if self._hosts != 1 and (self._hosts or not head.http_1_0):
            raise InvalidRequest(f"malformed: {self._hosts} Host fields, expected one")
        if self._hosts and self._host != self._valid_host:  # a connection repeats its host
            if not _HOST.fullmatch(self._host):
                raise InvalidRequest("malformed: the Host field is no host name or address")
            self._valid_host = self._host
        if head.coding and (head.coding != b"chunked" or head.http_1_0):
            raise InvalidRequest(
                "malformed: Transfer-Encoding can only be chunked, and only in HTTP/1.1"
            )
        if head.method == b"CONNECT":
            raise InvalidRequest("CONNECT is not supported: this is no proxy")


def _wrong_version(head: bytes) -> UnsupportedVersion | None:
    """Return the error of a request line that ends with a version other than 1.1 and 1.0."""
    version = head.partition(b"\r\n")[0].rpartition(b" ")[2]
    if _VERSION.fullmatch(version) and version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return UnsupportedVersion(
            f"{version[:20].decode()} is not supported, expected HTTP/1.1 or HTTP/1.0"
        )
    return None


def _target(url: bytes) -> tuple[bytes, bytes]:
    """Split the target of a request into path and query.

    Raises `httptools.HttpParserError` for what is neither a path nor a URL.
    """
    if b"#" in url:
        url = url.partition(b"#")[0]
    path, _, query = url.partition(b"?")
    if path[:1] != b"/":
        path = httptools.parse_url(path).path or b"/"
    return path, query
