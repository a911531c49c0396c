"""Parsed heads, which requests with the same bytes share."""

from __future__ import annotations

import pytest

from penstock.app.server.head import (
    KNOWN_HEAD_BYTES,
    KNOWN_HEADS,
    HeadParser,
    KnownHeads,
    RequestHead,
)

from .test_connection import post
from .wire import served


def parsed(text: bytes) -> RequestHead:
    return HeadParser().parse(text, 100)


def get(*fields: bytes) -> bytes:
    return b"\r\n".join([b"GET / HTTP/1.1", b"Host: x", *fields, b"", b""])


def test_so_many_heads_are_remembered() -> None:
    known = KnownHeads()
    for number in range(10 * KNOWN_HEADS):
        text = get(b"A: %d" % number)
        known.add(text, parsed(text))
        assert known.get(text) is None
        known.add(text, parsed(text))
        assert known.get(text) is not None and len(known) <= KNOWN_HEADS


@pytest.mark.parametrize(
    "text",
    [
        get(b"A: " + bytes(KNOWN_HEAD_BYTES).replace(b"\0", b"a")),
        get(b"Transfer-Encoding: chunked"),
        get(b"Expect: 100-continue"),
        get(b"Connection: Upgrade", b"Upgrade: h2c"),
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_others_are_parsed_each_time(text: bytes) -> None:
    known = KnownHeads()
    for _ in range(3):
        known.add(text, parsed(text))
    assert not known


async def test_an_app_may_change_its_headers() -> None:
    """Those of the next request with the same head are as they were sent."""
    async with served() as server:
        client = await server.connect()
        for body in (b"one", b"two", b"six"):
            client.send(post(body))
            assert (await client.answer()).endswith(body)
            headers = server.app.scopes[-1]["headers"]
            assert headers == [(b"host", b"x"), (b"content-length", b"3")]
            headers.clear()
        assert len(server.connections.heads) == 1


async def test_a_parser_goes_on_behind_heads_that_are_known() -> None:
    """It has seen neither these heads nor their bodies."""
    async with served() as server:
        first = await server.connect()
        for client, bodies in (
            (first, [b"a", b"a", b"bb"]),
            (await server.connect(), [b"a", b"ccc", b"a", b"dddd"]),
        ):
            for body in bodies:
                client.send(post(body))
                assert (await client.answer()).endswith(b"\r\n\r\n" + body)
            client.send(b"".join(post(body) for body in reversed(bodies)))
            for body in reversed(bodies):
                assert (await client.answer()).endswith(b"\r\n\r\n" + body)
