"""Sends what comes on standard input to a pipeline by WebSocket, and prints what it answers.

pip install websockets
arecord -t raw -f S16_LE -r 16000 -c 1 | python send.py
"""

import asyncio
import os
import sys

from websockets.asyncio.client import ClientConnection, connect


async def main(url: str) -> None:
    async with connect(url) as socket:
        sending = asyncio.create_task(send(socket))
        async for answer in socket:  # until the server closes
            print(answer, flush=True)
        await sending


async def send(socket: ClientConnection) -> None:
    while chunk := await asyncio.to_thread(os.read, 0, 3200):
        await socket.send(chunk)
    await socket.send("")  # an empty message ends the input


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8000/predict/speech/stream"
    asyncio.run(main(url))
