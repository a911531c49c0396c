"""CUDA shared memory by gRPC, as far as no GPU is needed."""

from __future__ import annotations

import base64
import ctypes
import inspect
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

ADMIN = {"authorization": "Bearer admin"}
HANDLE = base64.b64encode(bytes(range(64)))


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(params=["threads", "asyncio"])
async def call(request: pytest.FixtureRequest, served: Any) -> Any:
    kinds: dict[str, Any] = {"threads": tritonclient.grpc, "asyncio": tritonclient.grpc.aio}
    client = kinds[request.param].InferenceServerClient(served.address)

    async def call(method: str, *args: Any, **more: Any) -> Any:
        answer = getattr(client, method)(*args, **more)
        return await answer if inspect.isawaitable(answer) else answer

    yield call
    await call("close")


async def test_the_clients_methods(call: Any) -> None:
    assert not (await call("get_cuda_shared_memory_status")).regions
    await call("unregister_cuda_shared_memory", headers=ADMIN)
    await call("unregister_cuda_shared_memory", "unknown", headers=ADMIN)
    with pytest.raises(InferenceServerException, match="Unable to find cuda shared") as caught:
        await call("get_cuda_shared_memory_status", "r")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize(
    ("arguments", "headers", "code"),
    [
        (["r", HANDLE[:-4], 0, 64], ADMIN, "INVALID_ARGUMENT"),
        (["r", HANDLE, -1, 64], ADMIN, "INVALID_ARGUMENT"),
        (["r", HANDLE, 0, 0], ADMIN, "INVALID_ARGUMENT"),
        (["", HANDLE, 0, 64], ADMIN, "INVALID_ARGUMENT"),
        (["r", HANDLE, 0, 64], {}, "UNAUTHENTICATED"),
    ],
)
async def test_refused_registrations(call: Any, arguments: Any, headers: Any, code: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await call("register_cuda_shared_memory", *arguments, headers=headers)
    assert caught.value.status() == f"StatusCode.{code}"


@pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
async def test_a_machine_without_a_gpu_says_so(call: Any) -> None:
    text = "GPUs not supported: this machine has no CUDA driver"
    with pytest.raises(InferenceServerException, match=text):
        await call("register_cuda_shared_memory", "r", HANDLE, 0, 64, headers=ADMIN)
