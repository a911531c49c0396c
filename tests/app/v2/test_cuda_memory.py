"""CUDA shared memory as far as no GPU is needed: who may register, what is refused, and how.

`scripts/gpu_check` reads and writes regions on a GPU.
"""

from __future__ import annotations

import base64
import ctypes
import inspect
import os
from collections.abc import Iterator
from multiprocessing import shared_memory
from typing import Any

import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.settings import Settings

ADMIN = {"Authorization": "Bearer adm1n"}
ON: dict[str, Any] = {"admin_token": "adm1n", "allow_shared_memory": True}
HANDLE = base64.b64encode(bytes(range(64)))
CLIENTS: dict[str, Any] = {"threads": tritonclient.http, "asyncio": tritonclient.http.aio}


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def server(running: Any) -> Iterator[Any]:
    with running(create_app(settings=Settings(**ON)), http="penstock") as client:
        yield client


@pytest.fixture
def region() -> Iterator[str]:
    """An object of system memory."""
    memory = shared_memory.SharedMemory(f"penstock_cuda_{os.getpid()}", create=True, size=64)
    yield memory.name
    memory.close()
    memory.unlink()


@pytest.fixture(params=CLIENTS)
async def call(request: pytest.FixtureRequest, server: Any) -> Any:
    client = CLIENTS[request.param].InferenceServerClient(server.base_url.netloc.decode())

    async def call(method: str, *args: Any, **more: Any) -> Any:
        answer = getattr(client, method)(*args, **more)
        return await answer if inspect.isawaitable(answer) else answer

    yield call
    await call("close")


async def test_the_clients_methods(call: Any) -> None:
    assert await call("get_cuda_shared_memory_status") == []
    await call("unregister_cuda_shared_memory", headers=ADMIN)
    await call("unregister_cuda_shared_memory", "unknown", headers=ADMIN)
    unknown = r"\[404\] Unable to find cuda shared memory region: 'r'"
    with pytest.raises(InferenceServerException, match=unknown):
        await call("get_cuda_shared_memory_status", "r")
    with pytest.raises(InferenceServerException, match=r"\[401\]"):
        await call("register_cuda_shared_memory", "r", HANDLE, 0, 64)
    with pytest.raises(InferenceServerException, match=r"\[401\]"):
        await call("unregister_cuda_shared_memory", "r")


@pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")
async def test_a_machine_without_a_gpu_says_so(call: Any) -> None:
    text = (
        "failed to register CUDA shared memory region: 'r', GPUs not supported: this machine has "
        r"no CUDA driver \(libcuda.so.1\)"
    )
    with pytest.raises(InferenceServerException, match=rf"\[400\] {text}"):
        await call("register_cuda_shared_memory", "r", HANDLE, 0, 64, headers=ADMIN)
    assert await call("get_cuda_shared_memory_status") == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Shared memory register request has no 'raw_handle' field"),
        ({"raw_handle": "x"}, "Shared memory register request has no 'raw_handle' field"),
        ({"raw_handle": {"b64": 1}}, "Shared memory register request has no 'raw_handle' field"),
        ({"raw_handle": {"b64": "??"}}, "'raw_handle' must be a valid base64 encoded cudaIpcMem"),
        ({"raw_handle": {"b64": "é"}}, "'raw_handle' must be a valid base64 encoded cudaIpcMem"),
        ({"raw_handle": {"b64": HANDLE[4:].decode()}}, "'raw_handle' must be a valid base64"),
        ({"raw_handle": {"b64": f"AAAA{HANDLE.decode()}"}}, "'raw_handle' must be a valid base64"),
        ({"raw_handle": {"b64": HANDLE.decode()}}, "'byte_size' must be an unsigned 64-bit"),
        ({"raw_handle": {"b64": HANDLE.decode()}, "byte_size": -1}, "'byte_size' must be an unsig"),
        ({"raw_handle": {"b64": HANDLE.decode()}, "byte_size": 2**64}, "'byte_size' must be an un"),
        ({"raw_handle": {"b64": HANDLE.decode()}, "byte_size": 64}, "'device_id' must be an unsig"),
        (
            {"raw_handle": {"b64": HANDLE.decode()}, "byte_size": 64, "device_id": -1},
            "'device_id' must be an unsigned 64-bit integer",
        ),
        (
            {"raw_handle": {"b64": HANDLE.decode()}, "byte_size": 0, "device_id": 0},
            "invalid args: 'byte_size' is 0",
        ),
    ],
)
def test_malformed_registrations(server: Any, body: Any, text: str) -> None:
    url = "/v2/cudasharedmemory/region/r/register"
    answer = server.post(url, json=body, headers=ADMIN)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.startswith("failed to register shared memory region 'r'") and text in error


@pytest.mark.parametrize("on", [{}, {"admin_token": "adm1n"}, {"allow_shared_memory": True}])
def test_registering_is_off_unless_the_operator_allows_it(running: Any, on: Any) -> None:
    with running(create_app(settings=Settings(**on))) as client:
        assert client.get("/v2/cudasharedmemory/status").json() == []
        for path in ("/region/r/register", "/region/r/unregister", "/unregister"):
            answer = client.post(f"/v2/cudasharedmemory{path}", headers=ADMIN)
            assert answer.status_code == 501, path
            assert answer.json()["error"].startswith("Client shared memory is disabled.")


def test_kinds_of_regions_are_apart(server: Any, region: str) -> None:
    """A name stands for one region, but each kind is listed and unregistered by its own routes."""
    system = "/v2/systemsharedmemory"
    wanted = {"key": region, "byte_size": 64}
    server.post(f"{system}/region/r/register", json=wanted, headers=ADMIN).raise_for_status()
    try:
        body = {"raw_handle": {"b64": HANDLE.decode()}, "byte_size": 64, "device_id": 0}
        answer = server.post("/v2/cudasharedmemory/region/r/register", json=body, headers=ADMIN)
        assert answer.json()["error"] == "shared memory region 'r' already in manager"
        assert server.get("/v2/cudasharedmemory/status").json() == []
        assert server.get("/v2/cudasharedmemory/region/r/status").status_code == 404
        for path in ("/region/r/unregister", "/unregister"):
            server.post(f"/v2/cudasharedmemory{path}", headers=ADMIN).raise_for_status()
        assert [one["name"] for one in server.get(f"{system}/status").json()] == ["r"]
    finally:
        server.post(f"{system}/unregister", headers=ADMIN).raise_for_status()
