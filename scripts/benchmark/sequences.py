"""1,000 sequences at once, of 20 steps each, over two instances, by Triton's clients.

Every answer is checked: it depends on all steps before it and their order, and names the instance
that made it, which is the same for all steps of a sequence. The client is Python too, and as busy
as the server: the rates are those of both together.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio
import tritonclient.http.aio
from figures import Figure, say
from servers import free_port, penstock

PART = "sequences"
SEQUENCES, STEPS = 1000, 20
CONNECTIONS = 64

CHAIN = """
import numpy as np


class Chain:
    '''Keeps a number for each sequence, which depends on all its steps and their order.'''

    def init(self, params, context):
        self.instance = context.instance

    def forward(self, batch):
        for item in batch:
            sequence = item["sequence"]
            sequence.state = ((sequence.state or 0) * 31 + int(item["data"][0, 0])) % 1_000_003
            item["result"] = np.array([[sequence.state, self.instance, len(batch)]], np.int32)
"""
PIPELINE = f"""
[pipeline]
max_requests = {2 * SEQUENCES}

[pipeline.inputs]
X = {{ kind = "tensor", dtype = "INT32", shape = [-1, 1] }}

[pipeline.outputs]
Y = {{ kind = "tensor", dtype = "INT32", shape = [-1, 3] }}

[chain]
backend = "Python[chain.py:Chain]"
max = 64
instance_num = 2

[chain.sequence]
max_sequences = {SEQUENCES}
"""

Infer = Callable[..., Awaitable[Any]]


def measure(quick: bool) -> list[Figure]:
    count = SEQUENCES // 10 if quick else SEQUENCES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "chain.py").write_text(CHAIN)
        path = folder / "chain.toml"
        path.write_text(PIPELINE)
        port = free_port()
        with penstock(path, "--grpc-port", str(port)) as server:
            figures = []
            for transport, client, url in (
                ("HTTP", tritonclient.http, f"127.0.0.1:{server.port}"),
                ("gRPC", tritonclient.grpc, f"127.0.0.1:{port}"),
            ):
                say(f"{PART}, {transport}")
                figures.append(asyncio.run(_by(transport, client, url, count)))
    return figures


async def _by(transport: str, library: Any, url: str, count: int) -> Figure:
    more = {"conn_limit": CONNECTIONS} if transport == "HTTP" else {}
    async with library.aio.InferenceServerClient(url, **more) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(
            *[_sequence(client.infer, library, number) for number in range(1, count + 1)]
        )
        seconds = time.perf_counter() - began
    owners = Counter(owner for owner, _ in answers)
    rows = [size for _, sizes in answers for size in sizes]
    return Figure(
        PART,
        f"{transport}, {count:,} sequences of {STEPS} steps at once, 2 instances",
        count * STEPS / seconds,
        "steps/s",
        note=f"each answer right; sequences an instance: {sorted(owners.values())}; "
        f"a step's batch has {np.mean(rows):.3g} rows (mean)",
    )


async def _sequence(infer: Infer, library: Any, number: int) -> tuple[int, list[int]]:
    """Run one sequence, and check its answers. Returns its instance, and its batches' rows.

    Raises RuntimeError for a wrong answer.
    """
    expected, owners, sizes = 0, set(), []
    identity = number if number % 2 else f"sequence {number}"
    for step in range(STEPS):
        value = (number * 7919 + step * 104_729) % 10_007
        expected = (expected * 31 + value) % 1_000_003
        tensor = library.InferInput("X", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.array([[value]], np.int32))
        answer = await infer(
            "chain",
            [tensor],
            sequence_id=identity,
            sequence_start=step == 0,
            sequence_end=step == STEPS - 1,
        )
        state, owner, size = answer.as_numpy("Y")[0].tolist()
        owners.add(owner)
        sizes.append(size)
        if state != expected or len(owners) > 1:
            raise RuntimeError(
                f"sequence {number}, step {step}: expected {expected} of one instance, found "
                f"{state} of instances {owners}"
            )
    return owners.pop(), sizes
