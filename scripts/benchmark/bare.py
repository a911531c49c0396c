"""The baseline for HTTP: a bare ASGI app that answers as many bytes as Penstock's no-op pipeline.

At /echo it answers with the body of the request.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

from penstock.backends.malloc import keep_memory

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
    # As `penstock serve` does. Otherwise the memory of a 600 kB body goes back to the kernel, which
    # clears it, after each request.
    keep_memory()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
    )
    uvicorn.Server(config).run()
