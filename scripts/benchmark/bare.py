"""The yardstick of what goes over HTTP: a bare ASGI app that reads the body and answers as many bytes as Penstock's no-op does.

At /echo it answers the body itself.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from penstock.backends.process.allocator import keep_memory

BODY = b'{"result":1024}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["path"] == "/echo":
        await echo(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})


async def echo(receive: Any, send: Any) -> None:
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(pieces)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    keep_memory()  # as `penstock serve` does: a body of 600 kB would else be given back to the kernel, and cleared by it, each time
    config = uvicorn.Config(
        app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False,
        log_level="warning", server_header=False, timeout_keep_alive=75,
    )  # fmt: skip
    uvicorn.Server(config).run()
