from __future__ import annotations

import asyncio
from typing import Any

from penstock.app.protocol import LARGE, HeadHolder

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Transport:
    def __init__(self) -> None:
        self.writes: list[Any] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def writelines(self, data: Any) -> None:
        self.writes.append(list(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> str:
        return name


def holder() -> tuple[HeadHolder, Transport]:
    transport = Transport()
    return HeadHolder(transport, asyncio.get_running_loop()), transport  # type: ignore[arg-type]


async def test_head_and_body_are_one_write() -> None:
    held, transport = holder()
    for _ in range(2):
        held.write(HEAD)
        held.write(b"body")
    await asyncio.sleep(0)
    assert transport.writes == [HEAD + b"body"] * 2


async def test_a_head_whose_body_comes_later_does_not_wait_for_it() -> None:
    held, transport = holder()
    held.write(HEAD)
    assert transport.writes == []
    await asyncio.sleep(0)
    assert transport.writes == [HEAD]
    held.write(b"body")
    assert transport.writes == [HEAD, b"body"]


async def test_a_large_body_is_not_copied() -> None:
    held, transport = holder()
    body = bytes(LARGE)
    held.write(HEAD)
    held.write(body)
    assert transport.writes == [[HEAD, body]]
    assert transport.writes[0][1] is body


async def test_closing_loses_nothing() -> None:
    held, transport = holder()
    held.write(HEAD)
    held.close()
    await asyncio.sleep(0)
    assert transport.writes == [HEAD]
    assert held.is_closing()


async def test_a_body_that_looks_like_a_head_is_only_late() -> None:
    held, transport = holder()
    held.write(HEAD)
    held.write(HEAD)
    held.write(HEAD)
    await asyncio.sleep(0)
    assert b"".join(transport.writes) == HEAD * 3


async def test_all_else_is_the_transports() -> None:
    held, _ = holder()
    assert held.get_extra_info("peername") == "peername"
