"""Regions: what may be registered, what is told of it, and that nothing stays open or mapped."""

from __future__ import annotations

import contextlib
import gc
import os
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as triton

from penstock import create_app
from penstock.app.settings import Settings
from penstock.app.v2.shared_memory import SharedMemory
from penstock.backends.errors import InvalidRequest, NotFound

ADMIN = "adm1n"
HEADERS = {"Authorization": f"Bearer {ADMIN}"}
ON = {"admin_token": ADMIN, "allow_shared_memory": True}


@pytest.fixture
def region(request):
    """A POSIX object of three pages, by tritonclient's own utility; its key."""
    key = f"/penstock_{os.getpid()}_{id(request)}"
    handle = triton.create_shared_memory_region("region", key, 3 * 4096)
    yield key, handle
    triton.destroy_shared_memory_region(handle)


@pytest.fixture(scope="module")
def server(running):
    with running(create_app({"backend": "Identity"}, settings=Settings(**ON))) as client:
        yield client


@pytest.fixture
def client(server):
    with tritonclient.http.InferenceServerClient(server.base_url.netloc.decode()) as found:
        yield found
        found.unregister_system_shared_memory(headers=HEADERS)


def open_files():
    """Descriptors of POSIX objects that this process has."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the server's thread may close one meanwhile
            found += str(each.readlink()).startswith("/dev/shm/")
    return found


def mapped(key):
    return Path("/proc/self/maps").read_text().count(f"/dev/shm{key}")


def test_register_status_unregister(client, region):
    key, _ = region
    assert client.get_system_shared_memory_status() == []
    client.register_system_shared_memory("one", key, 4096, offset=100, headers=HEADERS)
    client.register_system_shared_memory("two", key, 3 * 4096, headers=HEADERS)
    one = {"name": "one", "key": key, "offset": 100, "byte_size": 4096}
    two = {"name": "two", "key": key, "offset": 0, "byte_size": 3 * 4096}
    assert client.get_system_shared_memory_status() == [one, two]
    assert client.get_system_shared_memory_status("two") == [two]
    client.unregister_system_shared_memory("one", headers=HEADERS)
    client.unregister_system_shared_memory("one", headers=HEADERS)  # not there any more: nothing to complain about
    assert client.get_system_shared_memory_status() == [two]
    with pytest.raises(InferenceServerException, match=r"\[404\] Unable to find system shared memory region: 'one'"):
        client.get_system_shared_memory_status("one")
    client.unregister_system_shared_memory(headers=HEADERS)
    assert client.get_system_shared_memory_status() == []


def test_a_name_is_taken_once(client, region):
    client.register_system_shared_memory("one", region[0], 64, headers=HEADERS)
    with pytest.raises(InferenceServerException, match=r"\[400\] shared memory region 'one' already in manager"):
        client.register_system_shared_memory("one", region[0], 128, headers=HEADERS)
    assert client.get_system_shared_memory_status()[0]["byte_size"] == 64


@pytest.mark.parametrize(
    ("offset", "byte_size"),
    [(0, 3 * 4096 + 1), (1, 3 * 4096), (2**64 - 1, 1), (3 * 4096, 1), (0, 0), (3 * 4096, 0)],
)
def test_a_region_lies_inside_its_object(client, region, offset, byte_size):
    before = open_files()
    with pytest.raises(InferenceServerException, match=r"\[400\] failed to register shared memory region 'r': invalid args"):
        client.register_system_shared_memory("r", region[0], byte_size, offset=offset, headers=HEADERS)
    assert client.get_system_shared_memory_status() == []
    assert open_files() == before
    assert mapped(region[0]) == 1  # tritonclient's own


@pytest.mark.parametrize("key", ["", "/", "//", "/a/b", "..", "/..", ".", "a\0b", "\ud800", "x" * 300, "/none-of-this-name"])
def test_a_key_is_the_name_of_an_object(server, key):
    before = open_files()
    body = b'{"key": "\\ud800", "byte_size": 1}' if key == "\ud800" else None
    answer = server.post(
        "/v2/systemsharedmemory/region/r/register",
        headers=HEADERS,
        **({"content": body} if body else {"json": {"key": key, "offset": 0, "byte_size": 1}}),
    )
    assert answer.status_code == 400
    assert "'r'" in answer.json()["error"]
    assert len(key) < 3 or key not in answer.json()["error"]
    assert open_files() == before


@pytest.mark.parametrize("key", ["triton_python_backend_shm_region_1", "///triton_python_backend_shm_region_1", "/sem.lock"])
def test_reserved_names(server, key):
    """Even where there is such an object: a place that tritonclient can't even make some of."""
    found = shared_memory.SharedMemory(key.lstrip("/"), create=True, size=64)
    try:
        answer = server.post("/v2/systemsharedmemory/region/r/register", headers=HEADERS, json={"key": key, "byte_size": 64})
        assert answer.status_code == 400
        assert "reserved" in answer.json()["error"] and key not in answer.json()["error"]
    finally:
        found.close()
        found.unlink()


def test_what_is_no_memory_is_not_mapped(server):
    pipe = Path("/dev/shm") / f"penstock_pipe_{os.getpid()}"
    os.mkfifo(pipe)
    before = open_files()
    try:
        answer = server.post("/v2/systemsharedmemory/region/r/register", headers=HEADERS, json={"key": pipe.name, "byte_size": 1})
        assert answer.status_code == 400 and pipe.name not in answer.text
    finally:
        pipe.unlink()
    assert open_files() == before


@pytest.mark.parametrize(
    "wanted",
    [
        {}, {"key": 1, "byte_size": 1}, {"key": None, "byte_size": 1}, {"key": "/k"},
        *[{"key": "/k", "byte_size": size} for size in (-1, 1.0, True, "1", 2**64)],
        *[{"key": "/k", "byte_size": 1, "offset": offset} for offset in (-1, None, 2**64)],
    ],
)  # fmt: skip
def test_a_registration_that_is_none(server, wanted):
    answer = server.post("/v2/systemsharedmemory/region/r/register", headers=HEADERS, json=wanted)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("failed to register shared memory region 'r': '") or 2**64 in wanted.values()


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
def test_who_may_register(running, region, settings, token, status):
    with running(create_app({"backend": "Identity"}, settings=Settings(**settings))) as server:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        wanted = {"key": region[0], "byte_size": 64}
        answer = server.post("/v2/systemsharedmemory/region/r/register", headers=headers, json=wanted)
        assert answer.status_code == status
        assert (answer.content == b"") == (status == 200)
        assert server.post("/v2/systemsharedmemory/region/r/unregister", headers=headers).status_code == status
        if status == 501:
            assert "Client shared memory is disabled" in answer.json()["error"]
            assert "--allow-shared-memory" in answer.json()["error"]


def test_parts_are_inside_their_region(region):
    key, handle = region
    memory = SharedMemory()
    memory.register("r", key, 100, 5000)
    triton.set_shared_memory_region(handle, [np.arange(256, dtype=np.uint8)], offset=100)
    part = memory.borrow("r", 3, 4)
    assert bytes(part.view) == b"\3\4\5\6"
    part.view[:] = b"abcd"
    assert bytes(handle._mpsm_handle.buf[103:107]) == b"abcd"
    assert len(memory.borrow("r", 4999, 1).view) == 1
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'x'"):
        memory.borrow("x", 0, 1)
    for offset in (5000, -1, 2**64 - 1):
        with pytest.raises(InvalidRequest, match="Invalid offset for shared memory region: 'r'"):
            memory.borrow("r", offset, 0)
    for offset, byte_size in ((0, 5001), (4999, 2), (1, 5000), (0, -1)):
        with pytest.raises(InvalidRequest, match=r"Invalid offset \+ byte size for shared memory region: 'r'"):
            memory.borrow("r", offset, byte_size)
    with pytest.raises(InvalidRequest, match=r"Integer overflow detected: byte_size \(18446744073709551615\)"):
        memory.borrow("r", 1, 2**64 - 1)


def test_an_object_that_its_client_has_truncated(region):
    """Reading beyond its end would be the end of the server."""
    key, _ = region
    memory = SharedMemory()
    memory.register("r", key, 0, 3 * 4096)
    os.truncate(f"/dev/shm{key}", 4096)
    assert bytes(memory.borrow("r", 0, 4096).view) == bytes(4096)
    with pytest.raises(InvalidRequest, match="'r' is no longer as large"):
        memory.borrow("r", 0, 4097)
    os.truncate(f"/dev/shm{key}", 3 * 4096)


def test_memory_is_unmapped_when_the_last_array_of_it_is_gone(region):
    key, _ = region
    before = open_files()
    memory = SharedMemory()
    memory.register("r", key, 0, 64)
    memory.register("s", key, 64, 64)
    assert mapped(key) == 3
    part = memory.borrow("r", 0, 64)
    array = np.frombuffer(part.view, np.int32)
    part.release()
    memory.unregister()
    assert memory.status() == []
    assert mapped(key) == 2
    array[0] = 7  # as the executor may, whatever became of the request
    del array
    gc.collect()
    assert mapped(key) == 1
    assert open_files() == before
    with pytest.raises(NotFound):
        memory.borrow("r", 0, 1)
    memory.register("r", key, 0, 64)  # the name is free again
    assert bytes(memory.borrow("r", 0, 1).view) == b"\7"


def test_cuda_shared_memory_is_not_here(server):
    for method, path in (("GET", "/status"), ("POST", "/region/r/register"), ("POST", "/unregister")):
        answer = server.request(method, f"/v2/cudasharedmemory{path}", headers=HEADERS)
        assert answer.status_code in (404, 501)
        assert set(answer.json()) == {"error"}
