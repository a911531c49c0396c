"""`RequestHead`: the head of a request, parsed by httptools, within limits.

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


class RequestHead:
    """The newest head of a connection. `parse` sets the other attributes.

    `length`: the Content-Length, 0 without one. `coding`: the Transfer-Encoding, b"chunked" or b"".
    `expects`: the client waits for 100 Continue. `offers_upgrade`: the parser takes what follows
    for another protocol, so it can't be used again.
    """

    __slots__ = (
        "_complete",
        "_host",
        "_hosts",
        "_parser",
        "_url",
        "_valid_host",
        "coding",
        "expects",
        "fields",
        "http_1_0",
        "keep_alive",
        "length",
        "method",
        "offers_upgrade",
        "path",
        "query",
    )

    def __init__(self) -> None:
        self.length = 0
        self.expects = False
        self.keep_alive = True
        self.fields: list[tuple[bytes, bytes]] = []
        self._parser: httptools.HttpRequestParser | None = None
        self._host = self._valid_host = b""

    def parse(self, head: bytes, max_fields: int) -> None:
        """Parse `head`, which ends with an empty line.

        Raises `InvalidRequest`, `HeadTooLarge`, `UnsupportedVersion`.
        """
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self.fields = []
        self._hosts = self.length = 0
        self.coding = b""
        self.expects = self._complete = self.offers_upgrade = False
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # Java's HttpClient and `curl --http2` offer HTTP/2 with a request (`Upgrade: h2c`). A
            # server may ignore that (RFC 9110, 7.8).
            self.offers_upgrade = True
        except httptools.HttpParserCallbackError:
            raise  # a mistake of ours
        except httptools.HttpParserError as error:
            raise _wrong_version(head) or InvalidRequest(f"malformed: {error}") from None
        self.http_1_0 = not head.startswith(b" HTTP/1.1\r\n", head.find(b"\r\n") - 9)
        self.method = parser.get_method()
        self._check(head, max_fields)
        try:
            self.path, self.query = _target(self._url)
        except httptools.HttpParserError:
            self.path = b"\xff"
        if not self.path.isascii():
            raise InvalidRequest("malformed: the target is no path and no URL")

    def skip_body(self, body: bytes) -> None:
        """Tell the parser of the whole body, which is cheaper than another parser."""
        if self._parser is not None:
            self._parser.feed_data(body)

    def drop_parser(self) -> None:
        """Parse the next head with another parser. This one waits for a body that it won't get.

        Until then, parser and head refer to each other: a cycle.
        """
        self._parser = None

    # httptools calls these while it is fed. It calls no others: bodies are split off elsewhere.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.fields.append((name, value))
        if name in _FRAMING:
            if name == b"host":
                self._hosts += 1
                self._host = value.strip(b" \t")
            elif name == b"content-length":
                # The parser refuses lengths above 64 bits, but takes any number of zeros before
                # one, and `int` no more than 4300 digits.
                self.length = int(value.lstrip(b" \t0")[:MAX_LENGTH_DIGITS] or b"0")
            elif name == b"expect":
                self.expects = value.lower() == b"100-continue"
            else:
                self.coding += value.strip().lower() or b"?"

    def on_headers_complete(self) -> None:
        self._complete = True
        parser = self._parser
        self.keep_alive = parser is not None and parser.should_keep_alive()

    def _check(self, head: bytes, max_fields: int) -> None:
        """Raise the error of a head that httptools takes and we don't."""
        if self.http_1_0 and not head.startswith(b" HTTP/1.0\r\n", head.find(b"\r\n") - 9):
            raise _wrong_version(head) or InvalidRequest("malformed: the request has no version")
        if not self._complete:
            raise InvalidRequest("malformed: the head does not end where its empty line is")
        if len(self.fields) > max_fields:
            raise HeadTooLarge(
                f"the head has {len(self.fields)} fields, at most {max_fields} are accepted "
                "(max_fields)"
            )
        if self._hosts != 1 and (self._hosts or not self.http_1_0):
            raise InvalidRequest(f"malformed: {self._hosts} Host fields, expected one")
        if self._hosts and self._host != self._valid_host:  # a connection repeats its host
            if not _HOST.fullmatch(self._host):
                raise InvalidRequest("malformed: the Host field is no host name or address")
            self._valid_host = self._host
        if self.coding and (self.coding != b"chunked" or self.http_1_0):
            raise InvalidRequest(
                "malformed: Transfer-Encoding can only be chunked, and only in HTTP/1.1"
            )
        if self.method == b"CONNECT":
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
