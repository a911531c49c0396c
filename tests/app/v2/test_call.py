"""The bodies of the protocol's rarer calls: in time, within bounds, JSON objects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.app.settings import Settings
from penstock.app.v2.call import ProtocolCall
from penstock.backends.errors import InvalidRequest, TooLarge


def call(*bodies: Any, then: Any = None, **settings: Any) -> Any:
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    messages[-1]["more_body"] = then is not None

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await then()

    return ProtocolCall({"type": "http", "headers": []}, receive, {}, Settings(**settings))


async def test_pieces_make_one_body() -> None:
    assert await call(b"{", b"", b'"ready"', b":true}").json() == {"ready": True}
    assert await call(b"").json() == {}


async def test_a_body_must_be_an_object() -> None:
    with pytest.raises(InvalidRequest, match="the body is a JSON array, expected an object"):
        await call(b"[1]").json()
    with pytest.raises(InvalidRequest, match="failed to parse the request JSON buffer"):
        await call(b"{").json()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"null", "null"),
        (b"true", "boolean"),
        (b"1", "number"),
        (b"0.5", "number"),
        (b'""', "string"),
        (b"[]", "array"),
    ],
)
async def test_the_error_names_what_the_body_is(body: bytes, kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"the body is a JSON {kind}, expected an object"):
        await call(body).json()


async def test_a_body_must_come_in_time() -> None:
    slow = call(b"{", then=asyncio.Event().wait, body_timeout=0.01)
    with pytest.raises(InvalidRequest, match=r"did not arrive within 0.01 s \(body_timeout\)"):
        await slow.body()
    assert slow.body_was_late and not slow.body_was_read


async def test_a_body_is_bounded() -> None:
    with pytest.raises(TooLarge, match="max_body"):
        await call(bytes(6), bytes(6), max_body=10).body()
    with pytest.raises(InvalidRequest, match="max_chunks"):
        await call(b"1", b"2", b"3", max_chunks=2).body()
