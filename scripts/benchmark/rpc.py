"""ModelInfer by gRPC, compared with a bare grpc.aio server that echoes the same bytes, and with
binary infer requests by HTTP.

The load is made here: no generator like wrk is installed everywhere. So the rates are those of a
client in Python, which is as busy as the servers; the notes have the servers' processor time.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from figures import Figure, of_runs, say
from servers import Server, free_port, penstock, process
from wrk import Run, compared, ratios

from penstock.app.bench.usage import processor_seconds
from penstock.app.grpc.messages import messages

PART = "gRPC"

PIPELINE = """
[pipeline.inputs]
X = { kind = "tensor", dtype = "FP32", shape = [-1] }

[pipeline.outputs]
Y = { kind = "tensor", dtype = "FP32", shape = [-1] }

[identity]
backend = "Identity"
max = 32
"""
SIZES = {"64 B": 16, "4 kB": 1000, "600 kB": 150_000}
"""Elements of the tensor, by how they are called."""
LEAST_RATIO = 0.9
"""Target, as a multiple of the bare server's rate."""
MOST_HTTP_RATIO = 1.3
"""Target of the time of 600 kB, as a multiple of that by HTTP."""
SECONDS = 2.0
START_SECONDS = 30.0

Call = Callable[[], Awaitable[Any]]


def measure(quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        path = Path(name) / "identity.toml"
        path.write_text(PIPELINE)
        port = free_port()
        ours = running.enter_context(penstock(path, "--grpc-port", str(port)))
        bare_command = [sys.executable, str(Path(__file__).with_name("bare_rpc.py"))]
        bare = running.enter_context(process(bare_command, None))
        turns = 3 if quick else 9
        for size, count in SIZES.items():
            for in_flight in (1, 16):
                say(f"{PART}, {size}, {in_flight} in flight")
                runs = asyncio.run(
                    _in_turns(ours, port, bare, count, in_flight=in_flight, turns=turns)
                )
                what = f"{size}, rate ÷ bare grpc.aio echo's, {in_flight} in flight"
                figures.append(
                    of_runs(
                        PART,
                        what,
                        ratios(runs[0], runs[1]),
                        least=LEAST_RATIO,
                        note=compared(runs[0], runs[1]),
                    )
                )
        say(f"{PART}, against HTTP")
        figures.append(_against_http(ours, port, SIZES["600 kB"], turns))
    return figures


async def _in_turns(
    ours: Server, port: int, bare: Server, count: int, *, in_flight: int, turns: int
) -> tuple[list[Run], list[Run]]:
    """Load both in turns, from one channel each. Return the runs of ours, and of the bare one."""
    message = _message(count)
    runs: tuple[list[Run], list[Run]] = ([], [])
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_options()) as first,
        grpc.aio.insecure_channel(f"127.0.0.1:{bare.port}", options=_options()) as second,
    ):
        await asyncio.wait_for(second.channel_ready(), START_SECONDS)
        calls = (
            (first.unary_unary("/inference.GRPCInferenceService/ModelInfer"), ours.pid),
            (second.unary_unary("/bare/Echo"), bare.pid),
        )
        for turn in range(-1, turns):  # the first is to warm up
            for (call, pid), its in zip(calls, runs, strict=True):
                run = await _load(partial(call, message), pid, in_flight)
                if turn >= 0:
                    its.append(run)
    return runs


async def _load(call: Call, pid: int, in_flight: int) -> Run:
    times: list[float] = []
    used = processor_seconds(pid) or 0.0
    started = time.perf_counter()

    async def ask() -> None:
        while (before := time.perf_counter()) < started + SECONDS:
            await call()
            times.append(time.perf_counter() - before)

    await asyncio.gather(*[ask() for _ in range(in_flight)])
    seconds = time.perf_counter() - started
    used = (processor_seconds(pid) or 0.0) - used
    times.sort()
    p50, p99 = (1000 * times[int(share * (len(times) - 1))] for share in (0.5, 0.99))
    return Run(len(times) / seconds, p50, p99, used / len(times) * 1e6, len(times))


def _against_http(ours: Server, port: int, count: int, turns: int) -> Figure:
    """Compare the times of one request after another, by the clients that cost the least."""
    message = _message(count)
    head, body = _http_request(count)
    connection = http.client.HTTPConnection("127.0.0.1", ours.port)

    def by_http() -> None:
        connection.request("POST", "/v2/models/identity/infer", head + body, _head_length(head))
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"an infer request by HTTP was answered {answer.status}")

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_options()) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        quotients: list[float] = []
        pairs: list[tuple[float, float]] = []
        for turn in range(-1, turns):
            both = _median_time(lambda: call(message)), _median_time(by_http)
            if turn >= 0:
                pairs.append(both)
                quotients.append(both[0] / both[1])
    connection.close()
    rpc, plain = (median(times) for times in zip(*pairs, strict=True))
    return of_runs(
        PART,
        "600 kB, time ÷ that by HTTP, one after another",
        quotients,
        most=MOST_HTTP_RATIO,
        note=f"{rpc * 1000:.3g} to {plain * 1000:.3g} ms",
    )


def _median_time(call: Callable[[], object]) -> float:
    times: list[float] = []
    started = time.perf_counter()
    while (before := time.perf_counter()) < started + SECONDS:
        call()
        times.append(time.perf_counter() - before)
    return median(times)


def _message(count: int) -> bytes:
    request = messages.ModelInferRequest(
        model_name="identity", raw_input_contents=[bytes(4 * count)]
    )
    request.inputs.add(name="X", datatype="FP32", shape=[count])
    serialised: bytes = request.SerializeToString()
    return serialised


def _http_request(count: int) -> tuple[bytes, bytes]:
    tensor = {
        "name": "X",
        "datatype": "FP32",
        "shape": [count],
        "parameters": {"binary_data_size": 4 * count},
    }
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(document).encode(), bytes(4 * count)


def _head_length(head: bytes) -> dict[str, str]:
    return {"Inference-Header-Content-Length": str(len(head))}


def _options() -> Sequence[tuple[str, int]]:
    return [("grpc.max_receive_message_length", -1)]
