"""Clients that send tagged items through every door, and check what comes back."""

from __future__ import annotations

import asyncio
import json
import random
from base64 import b64encode
from collections.abc import Callable, Coroutine

from tally import Tally
from wire import Answer, Wire, request

MAY_REFUSE = frozenset({429, 503})
"""The statuses of a server that is full, drains or reloads a pipeline."""

LONGEST_PIPELINE = 32
IMAGES_IN_A_BATCH = 64

Client = Callable[[Tally, int, str], Coroutine[None, None, None]]
"""Sends through one door, to the pipeline of a name, until the tally is over."""


async def predict(tally: Tally, port: int, name: str) -> None:
    """Send requests one behind the other on a connection, without waiting for answers."""
    door = f"/predict/{name}"
    wire = Wire(port)
    while not tally.over:
        sent = [tally.tag() for _ in range(random.randint(1, LONGEST_PIPELINE))]
        requests = [request("POST", door, tag.encode()) for tag in sent]
        try:
            await wire.send(b"".join(requests))
            for position, tag in enumerate(sent):
                answer = await wire.answer()
                _check_result(tally, door, tag, answer)
                if answer.closes:  # the others were not taken
                    tally.refused[f"{door} not taken"] += len(sent) - position - 1
                    break
        except (OSError, EOFError, TimeoutError) as error:
            lose(tally, door, error)
            wire.reset()
        if random.random() < 0.01:
            await end(tally, door, wire)
    await end(tally, door, wire)


async def batch(tally: Tally, port: int, name: str) -> None:
    """Send many items in a request."""
    door = f"/predict/{name}/batch"
    wire = Wire(port)
    while not tally.over:
        sent = [tally.tag() for _ in range(IMAGES_IN_A_BATCH)]
        body = json.dumps({"images": [b64encode(tag.encode()).decode() for tag in sent]}).encode()
        try:
            await wire.send(request("POST", door, body, "Content-Type: application/json"))
            answer = await wire.answer()
        except (OSError, EOFError, TimeoutError) as error:
            lose(tally, door, error)
            wire.reset()
            continue
        if answer.status != 200:
            _refuse(tally, door, answer.status, len(sent))
            continue
        results = json.loads(answer.body)["results"]
        if len(results) != len(sent):
            tally.complain(f"{door}: {len(sent)} items gave {len(results)} results")
        for tag, result in zip(sent, results, strict=False):
            if "result" in result:
                tally.check(door, tag, result["result"])
            else:
                _refuse(tally, door, result["status"])
    await end(tally, door, wire)


async def infer(tally: Tally, port: int, name: str) -> None:
    """Send inference requests of the Open Inference Protocol, with an id."""
    door = f"/v2/models/{name}/infer"
    wire = Wire(port)
    while not tally.over:
        tag = tally.tag()
        tensor = {"name": "data", "shape": [1], "datatype": "BYTES", "data": [tag]}
        body = json.dumps({"id": tag, "inputs": [tensor]}).encode()
        try:
            await wire.send(request("POST", door, body))
            answer = await wire.answer()
        except (OSError, EOFError, TimeoutError) as error:
            lose(tally, door, error)
            wire.reset()
            continue
        if answer.status != 200:
            _refuse(tally, door, answer.status)
            continue
        content = json.loads(answer.body)
        data = next(each["data"] for each in content["outputs"] if each["name"] == "result")
        tally.check(door, f"{tag} {tag}", f"{content['id']} {data[0]}")
    await end(tally, door, wire)


async def end(tally: Tally, door: str, wire: Wire) -> None:
    """Close a connection on which no answer is due."""
    more = await wire.more()
    if more:
        tally.doubled += 1
        tally.complain(f"{door}: an answer to nothing came: {more[:80]!r}")


def lose(tally: Tally, door: str, error: BaseException) -> None:
    tally.lost += 1
    tally.complain(f"{door}: an answer did not come: {type(error).__name__}: {error}")


def _check_result(tally: Tally, door: str, tag: str, answer: Answer) -> None:
    if answer.status == 200:
        tally.check(door, tag, json.loads(answer.body)["result"])
    else:
        _refuse(tally, door, answer.status)


def _refuse(tally: Tally, door: str, status: int, items: int = 1) -> None:
    # A child process that is killed, by us, fails what it runs.
    if status not in MAY_REFUSE and not (status == 500 and "child" in door):
        tally.complain(f"{door}: the status {status} came for an item without a fault")
    tally.refused[f"{door} {status}"] += items


async def in_process(tally: Tally, clients: int) -> None:
    """Send items to a pipeline of this process, some of which are cancelled or come too late."""
    from penstock.backends.errors import PenstockError
    from penstock.pipelines.pipeline import Pipeline

    nodes = {
        "first": {"backend": "Identity", "max": 32, "next": "second"},
        "second": {"backend": "Identity", "max": 8, "instance_num": 2},
    }

    async def client() -> None:
        while not tally.over:
            tag = tally.tag()
            roll = random.random()
            if roll < 0.002:
                task = asyncio.ensure_future(pipeline({"data": tag}))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                tally.faults["in process: cancelled"] += 1
                continue
            try:
                item = await pipeline({"data": tag}, timeout=1e-6 if roll < 0.004 else 60)
            except PenstockError as error:
                tally.refused[f"in process {error.code}"] += 1
            else:
                tally.check("in process", tag, item["result"])

    async with Pipeline.load(nodes) as pipeline:
        await asyncio.gather(*(client() for _ in range(clients)))
        if pipeline.in_flight:
            tally.complain(f"in process: {pipeline.in_flight} items are in flight at the end")
