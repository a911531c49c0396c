"""Shared memory regions: registering, reading, writing, closing, and clients that truncate them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as triton

from penstock import create_app, lifespan
from penstock.app.http.inputs.datatypes import DATATYPES
from penstock.app.http.inputs.declared import Tensor
from penstock.app.settings import Settings
from penstock.app.v2.infer.response import takes_long
from penstock.app.v2.infer.wanted import Wanted
from penstock.app.v2.shared_memory import SharedMemory
from penstock.app.v2.tensors import COPY_OFF_LOOP_BYTES
from penstock.backends.errors import InvalidRequest, NotFound
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.repository import Repository

ADMIN = "adm1n"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
ON: dict[str, Any] = {"admin_token": ADMIN, "allow_shared_memory": True}


@pytest.fixture
def region(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """Make a POSIX object of three pages by tritonclient's own utility; yield key and handle."""
    key = f"/penstock_{os.getpid()}_{id(request)}"
    handle = triton.create_shared_memory_region("region", key, 3 * 4096)
    GATE.set()
    yield key, handle
    GATE.set()
    triton.destroy_shared_memory_region(handle)


INT32 = {"kind": "tensor", "dtype": "INT32", "shape": [-1, 4]}
TEXT = {"kind": "tensor", "dtype": "BYTES", "shape": [-1, 2]}
GATE = threading.Event()
ENTERED = threading.Semaphore(0)


class Gated:
    """A backend that waits for the gate, then looks at its input. It fails for negative numbers."""

    def forward(self, batch: Any) -> None:
        ENTERED.release()
        assert GATE.wait(60)
        for item in batch:
            if item["data"].min() < 0:
                raise RuntimeError("negative")
            item["result"] = item["data"] * 2


def pair(data: Any) -> Any:
    first, second = data
    return [first + second, first - second]


def model(name: Any, port: Any, backend: Any) -> Any:
    return {
        "pipeline": {"name": name, "inputs": {"X": port}, "outputs": {"Y": port}},
        "node": {"backend": backend, "max": 8},
    }


@pytest.fixture(scope="module")
def server(running: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.backends.expressions.registry._registered", {})
        register_backend("Gated", Gated)
        register_backend("Pair", pair)
        sources = [
            model("identity", INT32, "Identity"),
            model("text", TEXT, "Identity"),
            model("gated", INT32, "Gated"),
            {
                "pipeline": {
                    "name": "pair",
                    "inputs": {"X": INT32, "Z": INT32},
                    "outputs": {"Y": INT32, "W": INT32},
                },
                "node": {"backend": "Pair"},
            },
        ]
        with running(
            create_app(Repository.read(sources), settings=Settings(**ON)),
            http="penstock",
        ) as client:
            yield client


@pytest.fixture
def client(server: Any) -> Any:
    with tritonclient.http.InferenceServerClient(server.base_url.netloc.decode()) as client:
        yield client
        client.unregister_system_shared_memory(headers=HEADERS)


def open_files() -> Any:
    """Return the descriptors of POSIX objects that this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(
            FileNotFoundError
        ):  # the server's thread may close a descriptor meanwhile
            count += str(link.readlink()).startswith("/dev/shm/")
    return count


def until(condition: Any, seconds: Any = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_register_status_unregister(client: Any, region: tuple[str, Any]) -> None:
    key, _ = region
    assert client.get_system_shared_memory_status() == []
    client.register_system_shared_memory("one", key, 4096, offset=100, headers=HEADERS)
    client.register_system_shared_memory("two", key, 3 * 4096, headers=HEADERS)
    one = {"name": "one", "key": key, "offset": 100, "byte_size": 4096}
    two = {"name": "two", "key": key, "offset": 0, "byte_size": 3 * 4096}
    assert client.get_system_shared_memory_status() == [one, two]
    assert client.get_system_shared_memory_status("two") == [two]
    client.unregister_system_shared_memory("one", headers=HEADERS)
    client.unregister_system_shared_memory(
        "one", headers=HEADERS
    )  # not registered any more: not an error
    assert client.get_system_shared_memory_status() == [two]
    with pytest.raises(
        InferenceServerException, match=r"\[404\] Unable to find system shared memory region: 'one'"
    ):
        client.get_system_shared_memory_status("one")
    client.unregister_system_shared_memory(headers=HEADERS)
    assert client.get_system_shared_memory_status() == []


def test_a_name_is_taken_once(client: Any, region: tuple[str, Any]) -> None:
    client.register_system_shared_memory("one", region[0], 64, headers=HEADERS)
    with pytest.raises(
        InferenceServerException, match=r"\[400\] shared memory region 'one' already in manager"
    ):
        client.register_system_shared_memory("one", region[0], 128, headers=HEADERS)
    assert client.get_system_shared_memory_status()[0]["byte_size"] == 64


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [(0, 3 * 4096 + 1), (1, 3 * 4096), (2**64 - 1, 1), (3 * 4096, 1), (0, 0), (3 * 4096, 0)],
)
def test_a_region_must_lie_within_its_object(
    client: Any, region: tuple[str, Any], offset: int, byte_size: int
) -> None:
    before = open_files()
    with pytest.raises(
        InferenceServerException,
        match=r"\[400\] failed to register shared memory region 'r': invalid args",
    ):
        client.register_system_shared_memory(
            "r", region[0], byte_size, offset=offset, headers=HEADERS
        )
    assert client.get_system_shared_memory_status() == []
    assert open_files() == before


@pytest.mark.parametrize(
    "key", ["", "/", "//", "/a/b", "..", "/..", ".", "a\0b", "x" * 300, "/none-of-this-name"]
)
def test_a_key_must_be_the_name_of_an_object(server: Any, key: str) -> None:
    before = open_files()
    document = {"key": key, "offset": 0, "byte_size": 1}
    answer = server.post("/v2/systemsharedmemory/region/r/register", headers=HEADERS, json=document)
    assert answer.status_code == 400
    assert "'r'" in answer.json()["error"]
    assert ("its key is not the name of a shared memory object" in answer.json()["error"]) == (
        len(key) < 10
    )
    assert len(key) < 3 or key not in answer.json()["error"]
    assert open_files() == before


@pytest.mark.parametrize(
    "key",
    ["triton_python_backend_shm_region_1", "///triton_python_backend_shm_region_1", "/sem.lock"],
)
def test_reserved_names(server: Any, key: str) -> None:
    """Reserved names are refused even if there is such an object.

    tritonclient can't make some of them, so they are made without it.
    """
    memory = shared_memory.SharedMemory(key.lstrip("/"), create=True, size=64)
    try:
        answer = server.post(
            "/v2/systemsharedmemory/region/r/register",
            headers=HEADERS,
            json={"key": key, "byte_size": 64},
        )
        assert answer.status_code == 400
        assert "reserved" in answer.json()["error"] and key not in answer.json()["error"]
    finally:
        memory.close()
        memory.unlink()


def test_a_file_that_is_not_memory_is_not_registered(server: Any) -> None:
    pipe = Path("/dev/shm") / f"penstock_pipe_{os.getpid()}"
    os.mkfifo(pipe)
    before = open_files()
    try:
        answer = server.post(
            "/v2/systemsharedmemory/region/r/register",
            headers=HEADERS,
            json={"key": pipe.name, "byte_size": 1},
        )
        assert answer.status_code == 400 and pipe.name not in answer.text
    finally:
        pipe.unlink()
    assert open_files() == before


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"key": 1, "byte_size": 1},
        {"key": None, "byte_size": 1},
        {"key": "/k"},
        *[{"key": "/k", "byte_size": size} for size in (-1, 1.0, True, "1", 2**64)],
        *[{"key": "/k", "byte_size": 1, "offset": offset} for offset in (-1, None, 2**64)],
    ],
)
def test_malformed_registrations(server: Any, wanted: Any) -> None:
    answer = server.post("/v2/systemsharedmemory/region/r/register", headers=HEADERS, json=wanted)
    assert answer.status_code == 400
    assert (
        answer.json()["error"].startswith("failed to register shared memory region 'r': '")
        or 2**64 in wanted.values()
    )


@pytest.mark.parametrize(
    ("settings", "token", "status"),
    [
        ({}, None, 501),
        ({"admin_token": ADMIN}, ADMIN, 501),
        ({"allow_shared_memory": True}, None, 501),
        ({"allow_shared_memory": True, "api_key": "k3y"}, "k3y", 501),
        (ON, None, 401),
        (ON, "wrong", 401),
        (ON | {"api_key": "k3y"}, "k3y", 403),
        (ON | {"api_key": "k3y"}, ADMIN, 200),
    ],
)
def test_who_may_register(
    running: Any, region: tuple[str, Any], settings: Any, token: Any, status: int
) -> None:
    with running(create_app({"backend": "Identity"}, settings=Settings(**settings))) as server:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        wanted = {"key": region[0], "byte_size": 64}
        answer = server.post(
            "/v2/systemsharedmemory/region/r/register", headers=headers, json=wanted
        )
        assert answer.status_code == status
        assert (answer.content == b"") == (status == 200)
        assert (
            server.post("/v2/systemsharedmemory/region/r/unregister", headers=headers).status_code
            == status
        )
        if status == 501:
            assert "Client shared memory is disabled" in answer.json()["error"]
            assert "--allow-shared-memory" in answer.json()["error"]


def test_slices_must_lie_within_their_region(region: tuple[str, Any]) -> None:
    key, handle = region
    memory = SharedMemory()
    memory.register("r", key, 100, 5000)
    triton.set_shared_memory_region(handle, [np.arange(256, dtype=np.uint8)], offset=100)
    part = memory.borrow("r", 3, 4)
    assert bytes(part.read()) == b"\3\4\5\6"
    part.write(memoryview(b"abcd"))
    assert bytes(handle._mpsm_handle.buf[102:108]) == b"\2abcd\7"
    assert memory.borrow("r", 4999, 1).size == 1
    assert bytes(memory.borrow("r", 4999, 0).read()) == b""
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'x'"):
        memory.borrow("x", 0, 1)
    for offset in (5000, -1, 2**64 - 1):
        with pytest.raises(InvalidRequest, match="Invalid offset for shared memory region: 'r'"):
            memory.borrow("r", offset, 0)
    for offset, byte_size in ((0, 5001), (4999, 2), (1, 5000), (0, -1)):
        with pytest.raises(
            InvalidRequest, match=r"Invalid offset \+ byte size for shared memory region: 'r'"
        ):
            memory.borrow("r", offset, byte_size)
    with pytest.raises(
        InvalidRequest, match=r"Integer overflow detected: byte_size \(18446744073709551615\)"
    ):
        memory.borrow("r", 1, 2**64 - 1)


def test_an_object_that_its_client_has_truncated(region: tuple[str, Any]) -> None:
    """Reading beyond its end would kill the server; writing would make the object grow."""
    key, _ = region
    memory = SharedMemory()
    memory.register("r", key, 0, 3 * 4096)
    os.truncate(f"/dev/shm{key}", 4096)
    part = memory.borrow("r", 0, 3 * 4096)
    part.write(memoryview(bytes(4096)))
    assert bytes(memory.borrow("r", 0, 4096).read()) == bytes(4096)
    for use in (
        part.read,
        memory.borrow("r", 8192, 1).read,
        lambda: part.write(memoryview(bytes(4097))),
    ):
        with pytest.raises(InvalidRequest, match="'r' is no longer as large"):
            use()
    assert Path(f"/dev/shm{key}").stat().st_size == 4096
    os.truncate(f"/dev/shm{key}", 3 * 4096)


def test_a_sparse_object_larger_than_all_memory(region: tuple[str, Any]) -> None:
    key, _ = region
    size = 1 << 50
    os.truncate(f"/dev/shm{key}", size)
    memory = SharedMemory()
    memory.register("r", key, 0, size)
    with pytest.raises(InvalidRequest, match=f"'r': there is no memory for {size} bytes"):
        memory.borrow("r", 0, size).read()
    files = open_files()
    with pytest.raises(InvalidRequest, match="'r': it can't be mapped"):
        SharedMemory(mapped=True).register("r", key, 0, size)
    assert open_files() == files
    os.truncate(f"/dev/shm{key}", 3 * 4096)


def test_an_object_is_closed_when_its_last_slice_is_released(region: tuple[str, Any]) -> None:
    key, _ = region
    before = open_files()
    memory = SharedMemory()
    memory.register("r", key, 0, 64)
    memory.register("s", key, 64, 64)
    assert open_files() == before + 2
    part, other = memory.borrow("r", 0, 64), memory.borrow("r", 8, 8)
    memory.unregister()
    assert memory.status() == []
    assert open_files() == before + 1
    with pytest.raises(NotFound):
        memory.borrow("r", 0, 1)
    memory.register("r", key, 128, 64)  # the name can be used again
    part.write(memoryview(b"\7"))
    part.release()
    assert open_files() == before + 2
    other.release()
    assert open_files() == before + 1
    assert bytes(memory.borrow("r", 0, 1).read()) == b"\0"
    memory.unregister("r")
    assert open_files() == before


def mapped() -> Any:
    """Return the POSIX objects that this process has mapped, except by the tests' handles."""
    return sum(
        "/dev/shm/penstock_" in line for line in Path("/proc/self/maps").read_text().splitlines()
    )


def test_mapped_regions_are_used_in_place(region: tuple[str, Any]) -> None:
    key, handle = region
    memory = SharedMemory(mapped=True)
    memory.register("r", key, 4096, 8192)
    view = memory.borrow("r", 16, 64).read()
    handle._mpsm_handle.buf[4096 + 16] = 7
    assert view[0] == 7  # no copy
    copy = memory.borrow("r", 17, 64).read()  # not aligned: a copy
    handle._mpsm_handle.buf[4096 + 17] = 8
    assert (view[1], copy[0]) == (8, 0)
    target = memory.borrow("r", 20, 80)
    target.write(view)  # to the place of a slice of it
    assert bytes(handle._mpsm_handle.buf[4096 + 20 : 4096 + 22]) == b"\7\10"
    os.truncate(f"/dev/shm{key}", 4096)
    for use in (memory.borrow("r", 0, 1).read, lambda: target.write(memoryview(b"x"))):
        with pytest.raises(InvalidRequest, match="'r' is no longer as large"):
            use()
    os.truncate(f"/dev/shm{key}", 3 * 4096)


def test_a_region_is_unmapped_with_its_last_view(region: tuple[str, Any]) -> None:
    key, _ = region
    memory = SharedMemory(mapped=True)
    files, mappings = open_files(), mapped()
    memory.register("r", key, 0, 64)
    assert (open_files(), mapped()) == (
        files + 2,
        mappings + 1,
    )  # a mapping has a descriptor of its own
    part = memory.borrow("r", 0, 64)
    array = np.frombuffer(part.read(), np.int32)
    memory.unregister("r")
    part.release()
    assert (open_files(), mapped()) == (files + 1, mappings + 1)  # an executor may still read it
    assert array.sum() == 0
    del array
    assert (open_files(), mapped()) == (files, mappings)


def test_a_server_that_maps_regions(running: Any, region: tuple[str, Any]) -> None:
    key, handle = region
    sources = [model("identity", INT32, "Identity")]
    app = create_app(sources, settings=Settings(**ON, map_shared_memory=True))
    with (
        running(app) as http,
        tritonclient.http.InferenceServerClient(http.base_url.netloc.decode()) as client,
    ):
        before = mapped()
        client.register_system_shared_memory("in", key, 4096, headers=HEADERS)
        client.register_system_shared_memory("out", key, 4096, offset=4096, headers=HEADERS)
        assert mapped() == before + 2
        array = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)
        triton.set_shared_memory_region(handle, [array])
        client.infer("identity", [given(array)], outputs=[wanted(32)])
        assert (triton.get_contents_as_numpy(handle, np.int32, [2, 4], offset=4096) == array).all()
        client.unregister_system_shared_memory(headers=HEADERS)
        until(lambda: mapped() == before)


def test_thousands_of_registrations_leave_nothing_open(region: tuple[str, Any]) -> None:
    key, _ = region
    memory = SharedMemory()
    before = open_files()
    for _ in range(2000):
        memory.register("r", key, 0, 64)
        for wrong in (
            ("r", key, 0, 64),
            ("s", key, 3 * 4096, 1),
            ("s", f"{key}x", 0, 64),
            ("s", "//", 0, 64),
        ):
            with pytest.raises(InvalidRequest):
                memory.register(*wrong)
        memory.unregister("r")
    assert open_files() == before


# inference


def given(
    array: Any, region: Any = "in", offset: Any = 0, byte_size: Any = None, datatype: Any = "INT32"
) -> Any:
    tensor = tritonclient.http.InferInput("X", list(array.shape), datatype)
    tensor.set_shared_memory(
        region, array.nbytes if byte_size is None else byte_size, offset=offset
    )
    return tensor


def wanted(byte_size: Any, region: Any = "out", offset: Any = 0) -> Any:
    output = tritonclient.http.InferRequestedOutput("Y", binary_data=False)
    output.set_shared_memory(region, byte_size, offset=offset)
    return output


def test_inputs_and_outputs_in_place(client: Any, region: tuple[str, Any]) -> None:
    key, handle = region
    client.register_system_shared_memory("in", key, 4096, headers=HEADERS)
    client.register_system_shared_memory("out", key, 4096, offset=4096 + 100, headers=HEADERS)
    array = np.arange(8, dtype=np.int32).reshape(2, 4)
    triton.set_shared_memory_region(handle, [array], offset=16)
    result = client.infer("gated", [given(array, offset=16)], outputs=[wanted(64, offset=8)])
    output = result.get_output("Y")
    assert "data" not in output and output["datatype"] == "INT32" and output["shape"] == [2, 4]
    # Triton's client in C++, and so perf_analyzer, asks for the size wherever there are parameters.
    assert output["parameters"] == {
        "binary_data_size": 0,
        "shared_memory_region": "out",
        "shared_memory_byte_size": 32,
        "shared_memory_offset": 8,
    }
    assert (
        triton.get_contents_as_numpy(handle, np.int32, [2, 4], offset=4096 + 100 + 8) == array * 2
    ).all()
    assert bytes(handle._mpsm_handle.buf[4096 + 100 + 8 + 32 : 4096 + 100 + 8 + 64]) == bytes(
        32
    )  # the tensor and not a byte more
    # the input in shared memory, the output in the answer; then the reverse
    doubled = client.infer("gated", [given(array, offset=16)]).as_numpy("Y")
    assert (doubled == array * 2).all()
    plain = tritonclient.http.InferInput("X", [2, 4], "INT32").set_data_from_numpy(array + 1)
    client.infer("gated", [plain], outputs=[wanted(32)])
    assert (
        triton.get_contents_as_numpy(handle, np.int32, [2, 4], offset=4096 + 100) == (array + 1) * 2
    ).all()


def test_text_in_memory(client: Any, region: tuple[str, Any]) -> None:
    key, handle = region
    client.register_system_shared_memory("in", key, 4096, headers=HEADERS)
    client.register_system_shared_memory("out", key, 4096, offset=4096, headers=HEADERS)
    words = np.array([["one", ""], ["z\u00fcrich", "4"]], np.object_)
    serialized = serialize_byte_tensor(words)
    triton.set_shared_memory_region(handle, [serialized])
    size = len(serialized.item())
    x = tritonclient.http.InferInput("X", [2, 2], "BYTES")
    x.set_shared_memory("in", size)
    result = client.infer("text", [x], outputs=[wanted(4096)])
    assert result.get_output("Y")["shape"] == [2, 2]
    written = triton.get_contents_as_numpy(handle, np.object_, [2, 2], offset=4096)
    assert (written == np.char.encode(words.astype(str), "utf-8")).all()


def test_a_request_for_memory_that_does_not_exist(client: Any, region: tuple[str, Any]) -> None:
    key, _ = region
    before = open_files()
    client.register_system_shared_memory("in", key, 64, headers=HEADERS)
    client.register_system_shared_memory("out", key, 64, offset=64, headers=HEADERS)
    array = np.zeros((2, 4), np.int32)
    for request, message in (
        (
            {"inputs": [given(array, region="x")]},
            r"\[404\] Unable to find shared memory region: 'x'",
        ),
        (
            {"inputs": [given(array, offset=64)]},
            r"\[400\] Invalid offset for shared memory region: 'in'",
        ),
        (
            {"inputs": [given(array, offset=33)]},
            r"\[400\] Invalid offset \+ byte size for shared memory region: 'in'",
        ),
        (
            {"inputs": [given(array, byte_size=2**64 - 1, offset=1)]},
            r"\[400\] Integer overflow detected: byte_size",
        ),
        ({"inputs": [given(array, byte_size=31)]}, r"\[400\] .*Expected 32, got 31"),
        (
            {"inputs": [given(array)], "outputs": [wanted(32, region="x")]},
            r"\[404\] Unable to find shared memory region: 'x'",
        ),
        (
            {"inputs": [given(array)], "outputs": [wanted(65)]},
            r"\[400\] Invalid offset \+ byte size for shared memory region: 'out'",
        ),
        (
            {"inputs": [given(array)], "outputs": [wanted(31)]},
            r"\[400\] shared memory size specified .* \(31 bytes\) should be at least 32",
        ),
    ):
        with pytest.raises(InferenceServerException, match=message):
            client.infer("identity", **request)
    client.unregister_system_shared_memory(headers=HEADERS)
    assert open_files() == before  # a refused request does not keep it


def test_a_request_that_repeats_may_have_one_output_in_memory(
    client: Any, region: tuple[str, Any]
) -> None:
    key, handle = region
    client.register_system_shared_memory("out", key, 64, headers=HEADERS)
    for number in range(3):
        array = np.full((1, 4), number, np.int32)
        inputs = [
            tritonclient.http.InferInput(name, [1, 4], "INT32").set_data_from_numpy(array)
            for name in ("X", "Z")
        ]
        answer = client.infer(
            "pair", inputs, outputs=[wanted(16), tritonclient.http.InferRequestedOutput("W")]
        )
        assert (triton.get_contents_as_numpy(handle, np.int32, [1, 4]) == array * 2).all()
        assert (answer.as_numpy("W") == 0).all()


def test_a_request_that_repeats_finds_the_current_region(
    client: Any, region: tuple[str, Any]
) -> None:
    key, handle = region
    before = open_files()
    array = np.array([[1, 2, 3, 4]], np.int32)
    plain = tritonclient.http.InferInput("X", [1, 4], "INT32").set_data_from_numpy(array)
    for offset in (0, 4096):
        client.register_system_shared_memory("out", key, 64, offset=offset, headers=HEADERS)
        client.infer("identity", [plain], outputs=[wanted(16)])
        assert (
            triton.get_contents_as_numpy(handle, np.int32, [1, 4], offset=offset) == array
        ).all()
        client.unregister_system_shared_memory("out", headers=HEADERS)
        with pytest.raises(
            InferenceServerException, match="Unable to find shared memory region: 'out'"
        ):
            client.infer("identity", [plain], outputs=[wanted(16)])
    for offset in (0, 4096, 4097):
        triton.set_shared_memory_region(handle, [array + offset], offset=offset)
        client.register_system_shared_memory("in", key, 64, offset=offset, headers=HEADERS)
        for _ in range(2):
            assert (client.infer("identity", [given(array)]).as_numpy("Y") == array + offset).all()
            array += 1
            triton.set_shared_memory_region(handle, [array + offset], offset=offset)
        client.unregister_system_shared_memory("in", headers=HEADERS)
        with pytest.raises(
            InferenceServerException, match="Unable to find shared memory region: 'in'"
        ):
            client.infer("identity", [given(array)])
    assert open_files() == before


@pytest.mark.parametrize("value", [3, -1])
def test_a_region_that_is_unregistered_while_a_request_uses_it(
    client: Any, server: Any, region: tuple[str, Any], caplog: pytest.LogCaptureFixture, value: int
) -> None:
    """The region closes when its last request has ended, well or not. No new one may use it."""
    caplog.set_level(
        logging.CRITICAL, "penstock"
    )  # pytest keeps records, with their exceptions, with all that was in their frames
    key, handle = region
    before = open_files()
    client.register_system_shared_memory("in", key, 4096, headers=HEADERS)
    client.register_system_shared_memory("out", key, 4096, offset=4096, headers=HEADERS)
    array = np.full((1, 4), value, np.int32)
    triton.set_shared_memory_region(handle, [array])
    document = {
        "inputs": [given(array)._get_tensor()],
        "outputs": [wanted(16)._get_tensor()],
    }
    GATE.clear()
    while ENTERED.acquire(blocking=False):
        pass
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, "/v2/models/gated/infer", json=document)
        assert ENTERED.acquire(timeout=60)
        client.unregister_system_shared_memory(headers=HEADERS)
        assert client.get_system_shared_memory_status() == []
        assert open_files() == before + 1  # the output's memory; the input has been read
        handle._mpsm_handle.buf[:16] = bytes(16)
        with pytest.raises(
            InferenceServerException, match="Unable to find shared memory region: 'in'"
        ):
            client.infer("identity", [given(array)])
        client.register_system_shared_memory(
            "in", key, 16, headers=HEADERS
        )  # the name stands for another region now
        client.unregister_system_shared_memory("in", headers=HEADERS)
        GATE.set()
        assert running.result().status_code == (200 if value > 0 else 500)
    if value > 0:
        assert (
            triton.get_contents_as_numpy(handle, np.int32, [1, 4], offset=4096) == array * 2
        ).all()
    assert open_files() == before


def test_a_client_that_leaves_while_its_region_is_used(
    client: Any, server: Any, leaving: Any, region: tuple[str, Any]
) -> None:
    """Its regions are let go at once.

    Nothing is written to them, although the executor is not done.
    """
    key, handle = region
    before = open_files()
    client.register_system_shared_memory("in", key, 4096, headers=HEADERS)
    client.register_system_shared_memory("out", key, 4096, offset=4096, headers=HEADERS)
    array = np.full((1, 4), 3, np.int32)
    triton.set_shared_memory_region(handle, [array])
    GATE.clear()
    while ENTERED.acquire(blocking=False):
        pass
    document = {"inputs": [given(array)._get_tensor()], "outputs": [wanted(16)._get_tensor()]}
    with leaving(server, "/v2/models/gated/infer", json.dumps(document).encode()):
        assert ENTERED.acquire(timeout=60)
    client.unregister_system_shared_memory(headers=HEADERS)
    until(lambda: open_files() == before)
    GATE.set()
    plain = tritonclient.http.InferInput("X", [1, 4], "INT32").set_data_from_numpy(array)
    assert (
        client.infer("gated", [plain]).as_numpy("Y") == array * 2
    ).all()  # after it, on the only executor
    assert bytes(handle._mpsm_handle.buf[4096 : 4096 + 16]) == bytes(16)


def test_slices_that_overlap(client: Any, region: tuple[str, Any]) -> None:
    """Several inputs may be the same bytes, and outputs may go where the inputs were.

    The inputs have been read by then.
    """
    key, handle = region
    client.register_system_shared_memory("in", key, 3 * 4096, headers=HEADERS)
    client.register_system_shared_memory("out", key, 64, headers=HEADERS)
    array = np.array([[1, 2, 3, 4]], np.int32)
    triton.set_shared_memory_region(handle, [array])
    inputs = [given(array), given(array)]
    inputs[1]._name = "Z"
    outputs = [wanted(16), wanted(16, offset=8)]
    outputs[1]._name = "W"
    client.infer("pair", inputs, outputs=outputs)
    written = np.frombuffer(handle._mpsm_handle.buf[:24], np.int32)
    assert written.tolist() == [2, 4, 0, 0, 0, 0]  # the sum, and the difference over its end
    del written


def test_text_that_does_not_fit_is_not_written(client: Any, region: tuple[str, Any]) -> None:
    key, handle = region
    client.register_system_shared_memory("out", key, 4096, headers=HEADERS)
    x = tritonclient.http.InferInput("X", [1, 2], "BYTES").set_data_from_numpy(
        np.array([["one", "three"]], np.object_)
    )
    with pytest.raises(
        InferenceServerException,
        match=r"\[400\] .* output 'Y' \(15 bytes\) should be at least 16 bytes",
    ):
        client.infer("text", [x], outputs=[wanted(15)])
    assert bytes(handle._mpsm_handle.buf[:64]) == bytes(64)
    client.infer("text", [x], outputs=[wanted(16)])
    assert (
        bytes(handle._mpsm_handle.buf[:16])
        == serialize_byte_tensor(np.array([["one", "three"]], np.object_)).item()
    )


@pytest.mark.parametrize(
    ("port", "size", "elements"), [(TEXT, 1_600_000, 400_000), (INT32, 1 << 26, 1 << 24)]
)
async def test_large_copies_do_not_block_the_loop(
    region: tuple[str, Any], port: Any, size: int, elements: int
) -> None:
    """A helper thread does the copy, and the loop goes on meanwhile.

    On the loop itself it would stand still.
    """
    key = f"{region[0]}_much"
    handle = triton.create_shared_memory_region("much", key, size)
    answers: list[Any] = []

    async def ask(path: Any, document: Any) -> None:
        messages = [
            {"type": "http.request", "body": json.dumps(document).encode(), "more_body": False}
        ]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            answers.append(message)

        headers = [(b"authorization", f"Bearer {ADMIN}".encode())]
        await app(
            {
                "type": "http",
                "method": "POST",
                "path": path,
                "headers": headers,
                "http_version": "1.1",
            },
            receive,
            send,
        )

    app = create_app(model("same", port | {"shape": [-1]}, "Identity"), settings=Settings(**ON))
    try:
        async with lifespan(app):
            await ask(
                "/v2/systemsharedmemory/region/much/register", {"key": key, "byte_size": size}
            )
            assert answers[0]["status"] == 200
            answers.clear()
            parameters = {"shared_memory_region": "much", "shared_memory_byte_size": size}
            document = {
                "inputs": [
                    {
                        "name": "X",
                        "shape": [elements],
                        "datatype": port["dtype"],
                        "parameters": parameters,
                    }
                ]
            }
            answering = asyncio.create_task(
                ask("/v2/models/same/infer", document | {"outputs": [{"name": "none"}]})
            )
            rounds = 0
            while not answering.done():
                rounds += 1
                await asyncio.sleep(0)
            assert answers[0]["status"] == 400
            assert rounds > 50  # on the loop: three
    finally:
        triton.destroy_shared_memory_region(handle)


@pytest.mark.parametrize(
    ("size", "long"), [(COPY_OFF_LOOP_BYTES, False), (COPY_OFF_LOOP_BYTES + 4, True)]
)
def test_large_outputs_are_written_on_a_helper_thread(size: Any, long: bool) -> None:
    tensor = Tensor("Y", DATATYPES["INT32"], (-1,))
    assert takes_long([(tensor, np.empty(size // 4, np.int32), Wanted("Y", region="r"))]) == long
    assert not takes_long([(tensor, np.empty(size // 4, np.int32), Wanted("Y", binary=True))])


def test_errors_repeat_a_long_name_only_in_part(server: Any) -> None:
    parameters = {"shared_memory_region": "x" * 10**6, "shared_memory_byte_size": 16}
    document = {
        "inputs": [{"name": "X", "shape": [1, 4], "datatype": "INT32", "parameters": parameters}]
    }
    answer = server.post("/v2/models/identity/infer", json=document)
    assert answer.status_code == 404 and len(answer.content) < 1000


OPERATORS = """
import time
from pathlib import Path

def gate(data):
    'Waits for the file `open` beside this one; says that it is inside by making another.'
    folder = Path(__file__).parent
    (folder / "inside").touch()
    while not (folder / "open").exists():
        time.sleep(0.005)
    return data + 1
"""
LARGE_TENSOR_PIPELINE = """
[pipeline]
inputs.X = {{ kind = "tensor", dtype = "FP32", shape = [-1, 3, 224, 224] }}
outputs.Y = {{ kind = "tensor", dtype = "FP32", shape = [-1, 3, 224, 224] }}
[node]
backend = "{backend}"
"""


def test_a_client_that_truncates_its_object_harms_no_other(
    spawn: Any, tmp_path: Path, region: tuple[str, Any]
) -> None:
    """Before a request, and while one is in flight.

    The server is a process of its own: with regions mapped, this would kill it.
    """
    size = 4 * 3 * 224 * 224
    (tmp_path / "operators.py").write_text(OPERATORS)
    (tmp_path / "plain.toml").write_text(LARGE_TENSOR_PIPELINE.format(backend="Identity"))
    (tmp_path / "gated.toml").write_text(
        LARGE_TENSOR_PIPELINE.format(backend="Python[operators.py:gate]")
    )
    key = f"{region[0]}_large"
    path = Path(f"/dev/shm{key}")
    handle = triton.create_shared_memory_region("large", key, 2 * size)
    try:
        process = spawn(
            "serve",
            tmp_path,
            "--port",
            0,
            PENSTOCK_ADMIN_TOKEN=ADMIN,
            PENSTOCK_ALLOW_SHARED_MEMORY="true",
        )
        with process.listening() as server, ThreadPoolExecutor() as pool:
            process.wait_for("ready after")
            wanted = {"key": key, "byte_size": 2 * size}
            assert (
                server.post(
                    "/v2/systemsharedmemory/region/large/register", headers=HEADERS, json=wanted
                ).status_code
                == 200
            )

            def infer(model: Any, *, reads: Any = True, writes: Any = True) -> Any:
                array = np.zeros((1, 3, 224, 224), np.float32)
                x = tritonclient.http.InferInput("X", list(array.shape), "FP32")
                y = tritonclient.http.InferRequestedOutput("Y")
                if reads:
                    x.set_shared_memory("large", size)
                else:
                    x.set_data_from_numpy(array)
                if writes:
                    y.set_shared_memory("large", size, offset=size)
                body, length = tritonclient.http.InferenceServerClient.generate_request_body(
                    [x], outputs=[y]
                )
                headers = (
                    {"Inference-Header-Content-Length": str(length)} if length is not None else {}
                )
                answer = server.post(f"/v2/models/{model}/infer", content=body, headers=headers)
                return answer.status_code, answer.json()["error"] if answer.is_error else ""

            refused = (
                400,
                "shared memory region 'large' is no longer as large as it was registered",
            )
            assert infer("plain") == (200, "")
            os.truncate(path, size - 1)
            assert (
                infer("plain")
                == infer("plain", writes=False)
                == infer("plain", reads=False)
                == refused
            )
            os.truncate(path, 0)
            assert infer("plain") == refused
            os.truncate(path, 2 * size)

            held = [pool.submit(infer, "gated", writes=writes) for writes in (True, False)]
            until((tmp_path / "inside").exists)
            until(
                lambda: (
                    'penstock_requests_in_flight{pipeline="gated"} 2.0'
                    in server.get("/metrics").text
                )
            )
            os.truncate(path, 0)
            assert infer("plain", reads=False, writes=False) == (200, "")  # a neighbour
            (tmp_path / "open").touch()
            assert [request.result() for request in held] == [
                refused,
                (200, ""),
            ]  # what was read before is still valid
            assert path.stat().st_size == 0  # and the write that failed has not made it grow

            stop = threading.Event()

            def truncate() -> None:
                while not stop.is_set():
                    os.truncate(path, 0)
                    os.truncate(path, 2 * size)

            restless = pool.submit(truncate)
            answers = list(pool.map(lambda _: infer("plain"), range(200)))
            stop.set()
            restless.result()
            assert set(answers) <= {refused, (200, "")}
            os.truncate(path, 2 * size)
            assert infer("plain") == (200, "")
            process.process.terminate()
            assert process.end() == 0
            assert not [line for line in process.lines if key in line]
    finally:
        triton.destroy_shared_memory_region(handle)


def test_the_number_of_regions_is_bounded(running: Any, region: tuple[str, Any]) -> None:
    settings = Settings(**ON, max_shared_memory_regions=2)
    with running(create_app(settings=settings)) as client:

        def change(name: str, way: str, **document: Any) -> httpx.Response:
            path = f"/v2/systemsharedmemory/region/{name}/{way}"
            answer: httpx.Response = client.post(path, json=document, headers=HEADERS)
            return answer

        place = {"key": region[0], "byte_size": 64}
        assert [change(name, "register", **place).status_code for name in "ab"] == [200, 200]
        refused = change("c", "register", **place)
        assert refused.status_code == 400
        assert "max_shared_memory_regions = 2" in refused.json()["error"]
        assert change("a", "unregister").status_code == 200
        assert change("c", "register", **place).status_code == 200
