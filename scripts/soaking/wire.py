"""HTTP/1.1 as bytes on a connection, for requests that a well-behaved client would not send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import NamedTuple

ANSWER_SECONDS = 60.0
"""The seconds after which an answer counts as lost."""


class Answer(NamedTuple):
    status: int
    body: bytes
    closes: bool


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """Return the bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: soak", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Wire:
    """One connection, which is opened when it is first used, and again when it has closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes) -> None:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """Read one answer. Raises `EOFError` or `OSError` if it does not come whole."""
        async with asyncio.timeout(ANSWER_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = 0
            for line in head.split("\r\n")[1:]:
                name, _, value = line.partition(":")
                if name == "content-length":
                    length = int(value)
            body = await self.reader.readexactly(length)
        answer = Answer(int(head.split(" ", 2)[1]), body, "connection: close" in head)
        if answer.closes:
            await self.close()
        return answer

    async def more(self) -> bytes:
        """Return what came although nothing was asked for. Ends the connection."""
        if self.writer is None:
            return b""
        self.writer.write_eof()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self.reader.read()
        except OSError:
            return b""
        finally:
            await self.close()

    def reset(self) -> None:
        """End the connection by RST."""
        if self.writer is not None:
            connection: socket.socket = self.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
            self.writer = None

    async def close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
