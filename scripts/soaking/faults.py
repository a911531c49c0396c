"""What goes wrong among the tagged requests, and what must come of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path

from tally import Tally
from wire import Wire, request

BOMB = gzip.compress(bytes(256 << 20))
"""A quarter of a gigabyte, as 256 KB."""

LARGE_BYTES = 1 << 20

Fault = Callable[[Tally, int], Coroutine[None, None, None]]


async def abort(tally: Tally, port: int) -> None:
    """Leave after a whole request."""
    wire = Wire(port)
    await wire.send(request("POST", "/predict/tagged", b"x" * random.choice([10, 100_000])))
    await asyncio.sleep(random.random() / 100)
    await wire.close()
    tally.faults["left before the answer"] += 1


async def half_a_body(tally: Tally, port: int) -> None:
    """Close in the middle of a body."""
    wire = Wire(port)
    await wire.send(request("POST", "/predict/tagged", b"x" * 5000)[:-2500])
    await asyncio.sleep(random.random() / 100)
    await wire.close()
    tally.faults["half a body"] += 1


async def reset(tally: Tally, port: int) -> None:
    """End a connection by RST: before, in or after a request."""
    wire = Wire(port)
    whole = request("POST", "/predict/tagged", b"x" * 5000)
    await wire.send(whole[: random.choice([0, 10, 4000, len(whole)])])
    await asyncio.sleep(random.random() / 100)
    wire.reset()
    tally.faults["RST"] += 1


async def slow_reader(tally: Tally, port: int) -> None:
    """Read a large answer slowly. It must be whole."""
    wire = Wire(port)
    tag = tally.tag().ljust(LARGE_BYTES, "y")
    await wire.send(request("POST", "/predict/tagged", tag.encode()))
    await asyncio.sleep(0.5)
    try:
        answer = await wire.answer()
    except (OSError, EOFError, TimeoutError) as error:
        tally.lost += 1
        tally.complain(f"slow reader: the answer did not come: {type(error).__name__}: {error}")
        return
    if answer.status == 200:
        tally.check("slow reader", tag, json.loads(answer.body)["result"])
    tally.faults[f"slow reader {answer.status}"] += 1
    await wire.close()


async def _refused(tally: Tally, port: int, fault: str, data: bytes, *wanted: int) -> None:
    """Send what must be refused with one of the statuses `wanted`, or a full server's."""
    wire = Wire(port)
    try:
        await wire.send(data)
        status = (await wire.answer()).status
    except (OSError, EOFError, TimeoutError) as error:
        tally.complain(f"{fault}: the refusal did not come: {type(error).__name__}: {error}")
        wire.reset()
        return
    if status not in {*wanted, 429, 503}:
        tally.complain(f"{fault}: the status is {status}, not {' or '.join(map(str, wanted))}")
    tally.faults[f"{fault} {status}"] += 1
    await wire.close()


async def bad_image(tally: Tally, port: int) -> None:
    body = b"\x89PNG\r\n\x1a\n" + random.randbytes(500)
    await _refused(tally, port, "bad image", request("POST", "/predict/digits", body), 400, 422)


async def oversize(tally: Tally, port: int) -> None:
    data = b"POST /predict/tagged HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
    await _refused(tally, port, "oversize", data + bytes(1000), 413)


async def gzip_bomb(tally: Tally, port: int) -> None:
    for path in ("/predict/tagged", "/v2/models/tagged/infer"):
        data = request("POST", path, BOMB, "Content-Encoding: gzip")
        await _refused(tally, port, f"gzip bomb {path}", data, 413, 400)


async def malformed(tally: Tally, port: int) -> None:
    for data in (b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
        await _refused(tally, port, "malformed", data, 400, 505)


async def unknown_path(tally: Tally, port: int) -> None:
    data = request("POST", f"/predict/{random.randrange(10)}", bytes(100_000))
    await _refused(tally, port, "unknown path", data, 404)


FAULTS: tuple[Fault, ...] = (
    *(abort, half_a_body, reset, slow_reader, bad_image, oversize, gzip_bomb, malformed),
    unknown_path,
)


async def faults(tally: Tally, port: int, pause: float) -> None:
    """Make one fault after the other."""
    while not tally.over:
        fault = random.choice(FAULTS)
        try:
            await fault(tally, port)
        except OSError as error:
            tally.complain(f"{fault.__name__}: {type(error).__name__}: {error}")
        await asyncio.sleep(random.random() * pause)


async def reload(tally: Tally, port: int, name: str, token: str, pause: float) -> None:
    """Load a pipeline again and again, in place of itself."""
    wire = Wire(port)
    while not tally.over:
        await asyncio.sleep(pause)
        await wire.send(
            request("POST", f"/pipelines/{name}/load", b"", f"Authorization: Bearer {token}")
        )
        tally.faults[f"reload {(await wire.answer()).status}"] += 1
    await wire.close()


async def kill_children(tally: Tally, pid: int, pause: float) -> None:
    """Kill a child process of the server by SIGKILL, again and again."""
    while not tally.over:
        await asyncio.sleep(pause)
        children = children_of(pid)
        if children:
            try:
                os.kill(random.choice(children), signal.SIGKILL)
            except ProcessLookupError:
                continue
            tally.faults["child process killed"] += 1


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, on any of its threads."""
    children: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, file.read_text().split())
        except OSError:  # the thread has ended
            continue
    return children
