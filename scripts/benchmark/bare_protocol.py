"""The ceiling of one Python process: an asyncio.Protocol that parses a request and answers it.

It has httptools and uvloop, as Penstock has, but no ASGI, no limits, no time-outs and no batches.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n"
    b'{"result":1024}'
)


class BareProtocol(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has no such base
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None: ...

    def on_header(self, name: bytes, value: bytes) -> None: ...

    def on_body(self, body: bytes) -> None: ...

    def on_message_complete(self) -> None:
        self.transport.write(ANSWER)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(BareProtocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[2])))
