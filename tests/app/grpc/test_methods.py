"""Every method of Triton's clients for gRPC, with the arguments that it takes, and an API key."""

from __future__ import annotations

import asyncio
import inspect
import queue
from collections.abc import AsyncIterator, Iterator
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferRequestedOutput, KeepAliveOptions
from tritonclient.utils import InferenceServerException

ADMIN = {"authorization": "Bearer admin"}
KINDS = {"threads": tritonclient.grpc, "asyncio": tritonclient.grpc.aio}
MODELS = ("simple", "identity_FP32", "identity_BYTES", "gated", "letters")

OF_OTHERS = {
    *(f"{verb}_cuda_shared_memory" for verb in ("register", "unregister")),
    "get_cuda_shared_memory_status",
    *(f"{verb}_log_settings" for verb in ("get", "update")),
}
"""Methods that tests of their own drive."""

METHODS = [
    (kind, name)
    for kind, module in KINDS.items()
    for name, _ in inspect.getmembers(module.InferenceServerClient, callable)
    if not name.startswith("_") and name not in OF_OTHERS
]


class Key:
    """A plugin that adds the API key to calls without a token of their own."""

    def __call__(self, request: Any) -> None:
        request.headers = {"authorization": "Bearer key", **(request.headers or {})}


class Caller:
    """Calls one of the two clients, which have the same methods."""

    def __init__(self, kind: str, served: Any) -> None:
        self.kind = kind
        self.served = served
        # A ping a minute is what the server allows.
        options = KeepAliveOptions(60_000, 20_000, True, 0)
        self.client: Any = KINDS[kind].InferenceServerClient(
            served.address, keepalive_options=options
        )
        self.client.register_plugin(Key())

    async def __call__(self, method: str, *args: Any, **more: Any) -> Any:
        answer = getattr(self.client, method)(*args, **more)
        return await answer if inspect.isawaitable(answer) else answer


@pytest.fixture(scope="module")
def keyed(serve: Any, sources: Any) -> Iterator[Any]:
    chosen = [one for one in sources if one["pipeline"]["name"] in MODELS]
    with serve(
        chosen,
        api_key="key",
        admin_token="admin",
        allow_shared_memory=True,
        allow_model_control=True,
        allow_trace_settings=True,
    ) as one:
        yield one


@pytest.fixture
async def call(request: pytest.FixtureRequest, keyed: Any) -> AsyncIterator[Caller]:
    caller = Caller(request.param, keyed)
    yield caller
    await caller("close")


def tensors(model: str = "simple") -> list[InferInput]:
    if model == "simple":
        names, array = ["INPUT0", "INPUT1"], np.arange(16, dtype=np.int32).reshape(1, 16)
    else:
        names, array = ["X" if model == "gated" else "INPUT0"], np.ones((1, 2), np.float32)
    datatype = "INT32" if model == "simple" else "FP32"
    made = [InferInput(name, array.shape, datatype) for name in names]
    for one in made:
        one.set_data_from_numpy(array)
    return made


def letters(content: str) -> list[InferInput]:
    made = InferInput("data", [1], "BYTES")
    made.set_data_from_numpy(np.array([content.encode()], object))
    return [made]


def result_of(answers: queue.Queue[Any]) -> Any:
    result, error = answers.get(timeout=60)
    return result if error is None else error


@pytest.mark.parametrize(("call", "method"), METHODS, indirect=["call"])
async def test_method(call: Caller, method: str, gate: Any) -> None:
    gate.open()
    await globals()[f"use_{method}"](call)


async def use_is_server_live(call: Caller) -> None:
    assert await call("is_server_live", headers={"x-any": "1"}, client_timeout=60) is True


async def use_is_server_ready(call: Caller) -> None:
    assert await call("is_server_ready", client_timeout=60) is True


async def use_is_model_ready(call: Caller) -> None:
    assert await call("is_model_ready", "simple") is True
    assert await call("is_model_ready", "simple", "1", client_timeout=60) is True
    with pytest.raises(InferenceServerException, match="unknown model: 'nope' is not found"):
        await call("is_model_ready", "nope")


async def use_get_server_metadata(call: Caller) -> None:
    metadata = await call("get_server_metadata")
    assert metadata.name == "penstock" and "binary_tensor_data" in metadata.extensions
    assert (await call("get_server_metadata", as_json=True))["name"] == "penstock"


async def use_get_model_metadata(call: Caller) -> None:
    metadata = await call("get_model_metadata", "simple", "1")
    assert (metadata.name, metadata.versions, metadata.platform) == ("simple", ["1"], "penstock")
    as_json = await call("get_model_metadata", "simple", as_json=True)
    assert as_json["inputs"] == [
        {"name": name, "datatype": "INT32", "shape": ["-1", "16"]} for name in ("INPUT0", "INPUT1")
    ]


async def use_get_model_config(call: Caller) -> None:
    config = (await call("get_model_config", "simple")).config
    assert (config.name, config.max_batch_size) == ("simple", 8)
    assert [list(one.dims) for one in config.output] == [[16], [16]]
    assert (await call("get_model_config", "letters")).config.model_transaction_policy.decoupled
    as_json = await call("get_model_config", "simple", "1", as_json=True)
    assert as_json["config"]["input"][0]["data_type"] == "TYPE_INT32"


async def use_get_model_repository_index(call: Caller) -> None:
    index = await call("get_model_repository_index")
    assert {(one.name, one.version, one.state) for one in index.models} >= {
        ("simple", "1", "READY")
    }
    assert (await call("get_model_repository_index", as_json=True))["models"]


async def use_get_trace_settings(call: Caller) -> None:
    settings = await call("get_trace_settings", "simple")
    assert list(settings.settings["trace_level"].value) == ["OFF"]
    as_json = await call("get_trace_settings", as_json=True, client_timeout=60)
    assert as_json["settings"]["trace_rate"]["value"] == ["1000"]


async def use_update_trace_settings(call: Caller) -> None:
    for rate in ("7", None):  # None: that of the start again
        changed = await call("update_trace_settings", "simple", {"trace_rate": rate}, headers=ADMIN)
        assert list(changed.settings["trace_rate"].value) == [rate or "1000"]
    with pytest.raises(InferenceServerException, match="admin token"):
        await call("update_trace_settings", settings={"trace_rate": "7"})


async def use_load_model(call: Caller) -> None:
    await call("load_model", "identity_BYTES", headers=ADMIN, client_timeout=60)
    assert await call("is_model_ready", "identity_BYTES")
    with pytest.raises(InferenceServerException, match="'nope'"):
        await call("load_model", "nope", headers=ADMIN)
    with pytest.raises(InferenceServerException, match="overrides are off"):
        await call("load_model", "simple", headers=ADMIN, config="{}", files={"file:1/m": b"m"})
    with pytest.raises(InferenceServerException, match="admin token") as caught:
        await call("load_model", "simple")
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


async def use_unload_model(call: Caller) -> None:
    await call("unload_model", "identity_BYTES", headers=ADMIN, unload_dependents=True)
    with pytest.raises(InferenceServerException, match="identity_BYTES"):
        await call("is_model_ready", "identity_BYTES")
    await call("load_model", "identity_BYTES", headers=ADMIN)


async def use_get_inference_statistics(call: Caller) -> None:
    before = (await call("get_inference_statistics", "simple")).model_stats[0].inference_count
    await call("infer", "simple", tensors())
    (one,) = (await call("get_inference_statistics", "simple", "1")).model_stats
    assert (one.name, one.version, one.inference_count) == ("simple", "1", before + 1)
    assert one.inference_stats.success.count == before + 1 and one.inference_stats.success.ns > 0
    everything = await call("get_inference_statistics", as_json=True)
    assert {one["name"] for one in everything["model_stats"]} == set(MODELS)


async def use_register_system_shared_memory(call: Caller) -> None:
    made = shared_memory.SharedMemory(create=True, size=512)
    content = made.buf
    assert content is not None
    try:
        await call("register_system_shared_memory", "r", f"/{made.name}", 256, 256, headers=ADMIN)
        try:
            await use_regions(call, content)
        finally:
            await call("unregister_system_shared_memory", "r", headers=ADMIN)
    finally:
        del content
        made.close()
        made.unlink()


async def use_regions(call: Caller, content: memoryview) -> None:
    (region,) = (await call("get_system_shared_memory_status", "r")).regions.values()
    assert (region.name, region.byte_size, region.offset) == ("r", 256, 256)
    array = np.arange(32, dtype=np.int32)
    content[256:384] = array.tobytes()
    inputs = [InferInput(f"INPUT{number}", [1, 16], "INT32") for number in (0, 1)]
    for number, one in enumerate(inputs):
        one.set_shared_memory("r", 64, 64 * number)
    outputs = [InferRequestedOutput(f"OUTPUT{number}") for number in (0, 1)]
    outputs[0].set_shared_memory("r", 64, 128)
    for _ in range(2):  # the second time its layout is known
        content[384:448] = bytes(64)
        answer = await call("infer", "simple", inputs, outputs=outputs)
        total = np.frombuffer(bytes(content[384:448]), np.int32)
        assert (total == array[:16] + array[16:]).all()
        assert (answer.as_numpy("OUTPUT1") == array[:16] - array[16:]).all()
        parameters = answer.get_output("OUTPUT0").parameters
        assert parameters["shared_memory_region"].string_param == "r"
        assert parameters["shared_memory_byte_size"].int64_param == 64
        assert parameters["shared_memory_offset"].int64_param == 128
        assert len(parameters) == 3
    inputs[0].set_shared_memory("r", 64, 224)
    with pytest.raises(InferenceServerException, match="shared memory region: 'r'") as caught:
        await call("infer", "simple", inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


async def use_unregister_system_shared_memory(call: Caller) -> None:
    await call("unregister_system_shared_memory", headers=ADMIN)
    await call("unregister_system_shared_memory", "unknown", headers=ADMIN)  # as in Triton
    assert (await call("get_system_shared_memory_status", as_json=True)) == {}


async def use_get_system_shared_memory_status(call: Caller) -> None:
    assert not (await call("get_system_shared_memory_status")).regions
    with pytest.raises(InferenceServerException, match="Unable to find system shared memory"):
        await call("get_system_shared_memory_status", "r")


async def use_infer(call: Caller) -> None:
    for compression in (None, "gzip", "deflate"):
        answer = await call(
            "infer",
            "simple",
            tensors(),
            model_version="1",
            outputs=[InferRequestedOutput("OUTPUT1"), InferRequestedOutput("OUTPUT0")],
            request_id="mine",
            priority=1,
            timeout=60_000_000,
            client_timeout=60,
            headers={"x-request-id": "theirs"},
            compression_algorithm=compression,
            parameters={"text": "a", "flag": True, "number": -3, "share": 0.5},
        )
        response = answer.get_response()
        assert (response.model_name, response.model_version, response.id) == ("simple", "1", "mine")
        assert [one.name for one in response.outputs] == ["OUTPUT1", "OUTPUT0"]
        assert (answer.as_numpy("OUTPUT0") == 2 * np.arange(16)).all()
        assert (await call("infer", "simple", tensors())).get_response().id == ""
    assert answer.get_response(as_json=True)["outputs"][0]["datatype"] == "INT32"
    for sequence in (7, "seven"):  # no model here has sequences, and Triton's ignores them then
        await call("infer", "simple", tensors(), sequence_id=sequence, sequence_start=True)


async def use_async_infer(call: Caller) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(8):
        call.client.async_infer(
            "simple",
            tensors(),
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
            client_timeout=60,
            compression_algorithm="gzip",
        )
    assert {result_of(answers).get_response().id for _ in range(8)} == set("01234567")
    call.client.async_infer("nope", tensors(), lambda result, error: answers.put((result, error)))
    assert result_of(answers).status() == "StatusCode.INVALID_ARGUMENT"


async def use_start_stream(call: Caller) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    call.client.start_stream(
        lambda result, error: answers.put((result, error)),
        stream_timeout=60,
        headers={"x-any": "1"},
        compression_algorithm="gzip",
    )
    send = call.client.async_stream_infer
    send("simple", tensors(), "1", [InferRequestedOutput("OUTPUT0")], "a", parameters={"p": "v"})
    assert (result_of(answers).as_numpy("OUTPUT0") == 2 * np.arange(16)).all()
    send("letters", letters("xyz"), request_id="b", enable_empty_final_response=True, priority=1)
    parts = [result_of(answers).get_response() for _ in range(4)]
    assert [len(part.outputs) for part in parts] == [1, 1, 1, 0]
    send("nope", tensors(), timeout=60_000_000)
    assert "unknown model: 'nope' is not found" in result_of(answers).message()
    send("simple", tensors(), request_id="c")
    call.client.stop_stream()  # waits for the answers
    assert result_of(answers).get_response().id == "c"
    assert answers.empty()


use_async_stream_infer = use_start_stream


async def use_stop_stream(call: Caller) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    call.client.start_stream(lambda result, error: answers.put((result, error)))
    call.client.stop_stream(cancel_requests=True)
    assert "cancelled" in result_of(answers).message().lower()
    call.client.start_stream(lambda result, error: answers.put((result, error)))
    call.client.async_stream_infer("simple", tensors(), request_id="again")
    assert result_of(answers).get_response().id == "again"


async def use_stream_infer(call: Caller) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "simple", "inputs": tensors(), "request_id": "a"}
        yield {"model_name": "nope", "inputs": tensors()}
        yield {"model_name": "letters", "inputs": letters("xy"), "request_id": "b"}

    stream = call.client.stream_infer(
        requests(), stream_timeout=60, headers={"x-any": "1"}, compression_algorithm="deflate"
    )
    answers = [
        result.get_response().id if error is None else error.message()
        async for result, error in stream
    ]
    assert sorted(answers) == ["Request for unknown model: 'nope' is not found", "a", "b", "b"]


async def use_close(call: Caller) -> None:
    other = Caller(call.kind, call.served)
    assert await other("is_server_live")
    await other("close")
    with pytest.raises(Exception, match=r"(?i)closed"):
        await other("is_server_live")


async def use_register_plugin(call: Caller) -> None:
    plugin = call.client.plugin()
    call.client.unregister_plugin()
    with pytest.raises(InferenceServerException) as caught:
        await call("get_server_metadata")
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    call.client.register_plugin(plugin)
    assert (await call("get_server_metadata")).name == "penstock"


use_plugin = use_unregister_plugin = use_register_plugin


@pytest.mark.parametrize("call", ["asyncio"], indirect=True)
async def test_cancelled_calls_leave_the_queue(call: Caller, gate: Any) -> None:
    """Cancel a task, and a stream: with the client for asyncio there is no other way."""
    pipeline = call.served.repository.pipelines["gated"]

    async def in_flight(count: int) -> None:
        async with asyncio.timeout(60):
            while pipeline.in_flight != count:
                await asyncio.sleep(0.01)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "gated", "inputs": tensors("gated")}
        yield {"model_name": "gated", "inputs": tensors("gated")}

    held = asyncio.create_task(call("infer", "gated", tensors("gated")))
    await asyncio.to_thread(gate.wait_entered)
    queued = asyncio.create_task(call("infer", "gated", tensors("gated")))
    await in_flight(2)
    stream = call.client.stream_infer(requests())
    reader = asyncio.create_task(anext(stream))
    await in_flight(4)
    queued.cancel()
    await in_flight(3)
    stream.cancel()
    await in_flight(1)
    with pytest.raises(asyncio.CancelledError):
        await reader
    gate.open()
    assert (await held).as_numpy("Y").tolist() == [[1, 1]]
