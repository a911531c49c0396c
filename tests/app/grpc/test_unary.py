"""Every ordinary RPC, by Triton's clients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

ADMIN = {"authorization": "Bearer admin"}


async def call(client: Any, method: str, *args: Any, **more: Any) -> Any:
    """Call a method of the client for threads or of the one for asyncio."""
    answer = getattr(client, method)(*args, **more)
    return await answer if inspect.isawaitable(answer) else answer


@pytest.fixture
def region() -> Iterator[tuple[str, memoryview]]:
    """An object of shared memory: its key and its bytes."""
    made = shared_memory.SharedMemory(create=True, size=256)
    content = made.buf
    assert content is not None
    try:
        yield f"/{made.name}", content
    finally:
        content.release()
        made.close()
        made.unlink()


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
async def test_every_method(served: Any, kind: str, region: Any) -> None:
    key, content = region
    if kind == "threads":
        client: Any = served.client
    else:
        client = tritonclient.grpc.aio.InferenceServerClient(served.address)
    assert await call(client, "is_server_live")
    assert await call(client, "is_server_ready")
    assert await call(client, "is_model_ready", "simple")
    assert await call(client, "is_model_ready", "simple", "1")
    assert (await call(client, "get_server_metadata")).name == "penstock"
    metadata = await call(client, "get_model_metadata", "simple")
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    config = (await call(client, "get_model_config", "simple")).config
    assert config.max_batch_size == 8
    assert [list(one.dims) for one in config.output] == [[16], [16]]
    index = await call(client, "get_model_repository_index")
    assert {"simple": "READY"}.items() <= {one.name: one.state for one in index.models}.items()
    statistics = await call(client, "get_inference_statistics", "simple")
    assert [one.name for one in statistics.model_stats] == ["simple"]
    assert len((await call(client, "get_inference_statistics")).model_stats) > 10

    assert not (await call(client, "get_system_shared_memory_status")).regions
    await call(client, "register_system_shared_memory", "r", key, 256, headers=ADMIN)
    status = await call(client, "get_system_shared_memory_status", "r")
    assert (status.regions["r"].key, status.regions["r"].byte_size) == (key, 256)
    tensors = np.arange(32, dtype=np.int32)
    content[:128] = tensors.tobytes()
    inputs = [InferInput(f"INPUT{number}", [1, 16], "INT32") for number in (0, 1)]
    inputs[0].set_shared_memory("r", 64, 0)
    inputs[1].set_shared_memory("r", 64, 64)
    outputs = [InferRequestedOutput("OUTPUT0"), InferRequestedOutput("OUTPUT1")]
    outputs[0].set_shared_memory("r", 64, 128)
    for _ in range(2):  # the second time its layout is known
        content[128:192] = bytes(64)
        answer = await call(client, "infer", "simple", inputs, outputs=outputs)
        total = np.frombuffer(bytes(content[128:192]), np.int32)
        assert (total == tensors[:16] + tensors[16:]).all()
        assert (answer.as_numpy("OUTPUT1") == tensors[:16] - tensors[16:]).all()
        parameters = answer.get_output("OUTPUT0").parameters
        assert parameters.keys() == {
            "shared_memory_region",
            "shared_memory_byte_size",
            "shared_memory_offset",
        }
        assert parameters["shared_memory_byte_size"].int64_param == 64
    await call(client, "unregister_system_shared_memory", "r", headers=ADMIN)
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'r'"):
        await call(client, "infer", "simple", inputs)
    if kind == "asyncio":
        await client.close()


@pytest.mark.parametrize(
    ("method", "arguments", "code", "message"),
    [
        ("is_model_ready", ["nope"], "INVALID_ARGUMENT", "Request for unknown model: 'nope'"),
        ("get_model_metadata", ["simple", "9"], "INVALID_ARGUMENT", "version 9 is not found"),
        ("get_model_config", ["nope"], "INVALID_ARGUMENT", "Request for unknown model: 'nope'"),
        ("load_model", ["simple"], "PERMISSION_DENIED", "PENSTOCK_ALLOW_MODEL_CONTROL"),
        ("unload_model", ["simple"], "PERMISSION_DENIED", "PENSTOCK_ALLOW_MODEL_CONTROL"),
        ("get_system_shared_memory_status", ["nope"], "NOT_FOUND", "Unable to find"),
        ("register_system_shared_memory", ["r", "k", 1], "UNAUTHENTICATED", "admin token"),
    ],
)
def test_errors_have_a_code_and_a_message(
    served: Any, method: str, arguments: list[Any], code: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        getattr(served.client, method)(*arguments)
    assert caught.value.status() == f"StatusCode.{code}"


def test_load_and_unload(serve: Any, sources: Any) -> None:
    with serve(sources[:1], admin_token="admin", allow_model_control=True) as one:
        one.client.unload_model("simple", headers=ADMIN)
        with pytest.raises(InferenceServerException, match="'simple'"):
            one.client.get_model_metadata("simple")
        one.client.load_model("simple", headers=ADMIN)
        assert one.client.is_model_ready("simple")
        with pytest.raises(InferenceServerException, match="overrides are off"):
            one.client.load_model("simple", config="{}", headers=ADMIN)


def test_keys(serve: Any, sources: Any) -> None:
    with serve(sources[:1], api_key="key") as one:
        client = one.client
        assert client.is_server_live() and client.is_server_ready()
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "key"}):
            with pytest.raises(InferenceServerException) as caught:
                client.get_model_metadata("simple", headers=headers)
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
        good = {"authorization": "Bearer key"}
        assert client.get_model_metadata("simple", headers=good).name == "simple"


def test_restricted_apis(serve: Any, sources: Any) -> None:
    rules = "metadata:x-operator=secret;statistics:off"
    with serve(sources[:1], restricted_api=rules) as one:
        client = one.client
        assert client.is_model_ready("simple")
        for name in ("x-operator", "triton-grpc-protocol-x-operator"):
            assert client.get_server_metadata(headers={name: "secret"}).name == "penstock"
            with pytest.raises(InferenceServerException, match="protocol-x-operator'") as caught:
                client.get_server_metadata(headers={name: "wrong"})
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        with pytest.raises(InferenceServerException, match="turned it off"):
            client.get_inference_statistics()
