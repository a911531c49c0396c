"""Every method of tritonclient's two HTTP clients that this server answers.

At the root and below a path, with headers and a query.
"""

from __future__ import annotations

import inspect
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from tritonclient.http import (
    InferAsyncRequest,
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    InferResult,
)
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException, shared_memory

from penstock import create_app, lifespan
from penstock.app.settings import Settings

if TYPE_CHECKING:
    from tests.app.v2.conftest import Served

ADMIN = {"Authorization": "Bearer adm1n"}
QUERY = {"caller": "a b&c", "n": 1}
ON: dict[str, Any] = {
    "admin_token": "adm1n",
    "allow_model_control": True,
    "allow_model_overrides": True,
    "allow_shared_memory": True,
}
DRIVEN_ELSEWHERE = {
    f"{verb}_{what}" for what in ("trace_settings", "log_settings") for verb in ("get", "update")
} | {
    f"{verb}_cuda_shared_memory{end}"
    for verb, end in (("get", "_status"), ("register", ""), ("unregister", ""))
}
"""Methods that tests of their own drive: test_log_settings, test_cuda_memory, those of traces."""

SEND_NOTHING = {
    "close",
    "register_plugin",
    "plugin",
    "unregister_plugin",
    "generate_request_body",
    "parse_response_body",
}
"""The tests below have these."""

ARRAY = np.arange(16, dtype=np.int32).reshape(1, 16)


def given(name: Any, array: Any = ARRAY, datatype: Any = "INT32", binary: Any = True) -> Any:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def both() -> Any:
    return [given("INPUT0"), given("INPUT1", np.ones_like(ARRAY))]


@pytest.fixture(params=["", "/some/models"], ids=["root", "mounted"])
def address(request: Any, running: Any, sources: Any) -> Any:
    """Run the operator's own server of `simple`, and yield its address."""
    simple = [
        source
        for source in sources
        if isinstance(source, dict) and source["pipeline"]["name"] == "simple"
    ]
    app = create_app(simple, settings=Settings(**ON))
    host = (
        Starlette(routes=[Mount(request.param, app)], lifespan=lambda host: lifespan(app))
        if request.param
        else app
    )
    with running(host, http="penstock") as client:
        yield client.base_url.netloc.decode() + request.param


@pytest.fixture
def region() -> Any:
    key = f"/penstock_tritonclient_{os.getpid()}"
    handle = shared_memory.create_shared_memory_region("region", key, 128)
    shared_memory.set_shared_memory_region(handle, [ARRAY])
    yield handle, key
    shared_memory.destroy_shared_memory_region(handle)


class Driver:
    """Calls the methods of either client, and records which it has called."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.driven: set[str] = set()

    async def __call__(self, method: Any, *arguments: Any, **more: Any) -> Any:
        self.driven.add(method)
        result = getattr(self.client, method)(
            *arguments, headers=dict(ADMIN), query_params=QUERY, **more
        )
        return await result if inspect.isawaitable(result) else result

    def left(self) -> Any:
        """Return the public methods of the client that have not been called."""
        methods = {
            name
            for name, _ in inspect.getmembers(type(self.client), inspect.isroutine)
            if not name.startswith("_")
        }
        return methods - self.driven - DRIVEN_ELSEWHERE - SEND_NOTHING


async def drive(call: Any, region: Any) -> None:
    memory, key = region
    assert (
        await call("is_server_live")
        and await call("is_server_ready")
        and await call("is_model_ready", "simple", "1")
    )
    assert not await call("is_model_ready", "nope")
    assert (await call("get_server_metadata"))["name"] == "penstock"
    for version in ("", "1"):
        metadata = await call("get_model_metadata", "simple", version)
        assert [tensor["name"] for tensor in metadata["inputs"]] == [
            "INPUT0",
            "INPUT1",
        ] and metadata["versions"] == ["1"]
        assert (await call("get_model_config", "simple", version))["max_batch_size"] == 8

    for version in ("", "1"):
        answer = await call("infer", "simple", both(), version, request_id="mine")
        assert (
            answer.get_response()["id"] == "mine" and answer.get_response()["model_version"] == "1"
        )
        assert answer.as_numpy("OUTPUT0").tolist() == (ARRAY + 1).tolist()
    for version in ("", "1"):
        entry = (await call("get_inference_statistics", "simple", version))["model_stats"][0]
        assert entry["inference_stats"]["success"]["count"] == 2
    assert [entry["name"] for entry in (await call("get_inference_statistics"))["model_stats"]] == [
        "simple"
    ]

    await call("register_system_shared_memory", "region", key, 128)
    status = [{"name": "region", "key": key, "offset": 0, "byte_size": 128}]
    assert (
        await call("get_system_shared_memory_status")
        == await call("get_system_shared_memory_status", "region")
        == status
    )
    first = InferInput("INPUT0", [1, 16], "INT32").set_shared_memory("region", 64)
    wanted = InferRequestedOutput("OUTPUT1")
    wanted.set_shared_memory("region", 64, offset=64)
    answer = await call(
        "infer", "simple", [first, given("INPUT1", np.ones_like(ARRAY))], outputs=[wanted]
    )
    assert "data" not in answer.get_output("OUTPUT1")
    assert (
        shared_memory.get_contents_as_numpy(memory, np.int32, [1, 16], offset=64).tolist()
        == (ARRAY - 1).tolist()
    )
    wanted.unset_shared_memory()
    answer = await call(
        "infer", "simple", [first, given("INPUT1", np.ones_like(ARRAY))], outputs=[wanted]
    )
    assert answer.as_numpy("OUTPUT1").tolist() == (ARRAY - 1).tolist()
    await call("unregister_system_shared_memory", "region")
    await call("unregister_system_shared_memory")
    assert await call("get_system_shared_memory_status") == []

    await call("load_model", "simple", config=json.dumps({"max_batch_size": 3}))
    assert (await call("get_model_config", "simple"))["max_batch_size"] == 3
    await call("unload_model", "simple", unload_dependents=True)
    assert (await call("get_model_repository_index"))[0]["state"] == "UNAVAILABLE"
    await call("load_model", "simple")
    assert await call("get_model_repository_index") == [
        {"name": "simple", "version": "1", "state": "READY", "reason": ""}
    ]


async def test_every_method(address: Any, region: str) -> None:
    with InferenceServerClient(address) as client:
        call = Driver(client)
        await drive(call, region)
        asked = await call("async_infer", "simple", both())
        assert asked.get_result().as_numpy("OUTPUT0").tolist() == (ARRAY + 1).tolist()
        assert call.left() == set()


async def test_every_method_of_the_asyncio_client(address: Any, region: str) -> None:
    async with tritonclient.http.aio.InferenceServerClient(address) as client:
        call = Driver(client)
        await drive(call, region)
        assert call.left() == set()


def test_greenlets(served: Served) -> None:
    arrays = [np.full((1 + index % 2, 3), index, np.float32) for index in range(24)]
    with InferenceServerClient(served.address, concurrency=12) as client:
        asked = [
            client.async_infer("sum", [given("data", array, "FP32")], "1", request_id=str(n))
            for n, array in enumerate(arrays)
        ]
        assert all(isinstance(request, InferAsyncRequest) for request in asked)
        answers = [request.get_result(timeout=30) for request in asked]
        refused = client.async_infer("nope", [given("data", arrays[0], "FP32")])
        with pytest.raises(
            InferenceServerException, match="Request for unknown model: 'nope' is not found"
        ):
            refused.get_result()
    for number, (array, answer) in enumerate(zip(arrays, answers, strict=True)):
        assert answer.get_response()["id"] == str(number)
        np.testing.assert_array_equal(answer.as_numpy("total"), array.sum(axis=1))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_compression_of_greenlets_and_of_the_asyncio_client(
    served: Served, algorithm: str
) -> None:
    options: dict[str, Any] = {
        "request_compression_algorithm": algorithm,
        "response_compression_algorithm": algorithm,
    }
    array = np.arange(4096, dtype=np.int32).reshape(1, -1)
    outputs = [InferRequestedOutput("OUTPUT0", binary_data=True)]
    with InferenceServerClient(served.address) as client:
        asked = client.async_infer(
            "identity_INT32", [given("INPUT0", array)], outputs=outputs, **options
        )
        np.testing.assert_array_equal(asked.get_result().as_numpy("OUTPUT0"), array)
    async with tritonclient.http.aio.InferenceServerClient(served.address) as client:
        answer = await client.infer(
            "identity_INT32", [given("INPUT0", array)], outputs=outputs, **options
        )
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize(
    "client",
    [InferenceServerClient, tritonclient.http.aio.InferenceServerClient],
    ids=["sync", "aio"],
)
@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_bodies_that_the_client_makes_and_reads_without_sending(
    served: Served, client: Any, algorithm: str | None
) -> None:
    """A benchmark or another HTTP library can send them."""
    array = np.arange(2048, dtype=np.int32).reshape(1, -1)
    outputs = [InferRequestedOutput("OUTPUT0", binary_data=False)]
    for wanted in (None, outputs):
        body, size = client.generate_request_body(
            [given("INPUT0", array)], wanted, request_id="7", parameters={"note": "x"}
        )
        headers = {
            "Inference-Header-Content-Length": str(size),
            "Accept-Encoding": algorithm or "identity",
        }
        with served.http.stream(
            "POST", "/v2/models/identity_INT32/infer", content=body, headers=headers
        ) as answer:
            raw = b"".join(answer.iter_raw())
        assert answer.status_code == 200 and answer.headers.get("content-encoding") == algorithm
        length = answer.headers.get("inference-header-content-length")
        assert (length is None) is (wanted is not None)
        result = client.parse_response_body(
            raw, header_length=length and int(length), content_encoding=algorithm
        )
        assert isinstance(result, InferResult) and result.get_response()["id"] == "7"
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_a_request_without_any_binary_data_has_no_length(served: Served) -> None:
    body, size = InferenceServerClient.generate_request_body(
        [given("data", np.array([b"hello"], np.object_), "BYTES", binary=False)],
        [InferRequestedOutput("result", binary_data=False)],
    )
    assert size is None
    answer = served.http.post("/v2/models/text/infer", content=body)
    result = InferenceServerClient.parse_response_body(answer.content)
    np.testing.assert_array_equal(result.as_numpy("result"), ["HELLO"])


def test_a_missing_output_is_none(client: Any) -> None:
    answer = client.infer("simple", both(), outputs=[InferRequestedOutput("OUTPUT1")])
    assert answer.get_output("OUTPUT0") is None and answer.as_numpy("OUTPUT0") is None
    assert answer.get_output("OUTPUT1") == {
        "name": "OUTPUT1",
        "datatype": "INT32",
        "shape": [1, 16],
        "parameters": {"binary_data_size": 64},
    }
    assert answer.get_response() == {
        "model_name": "simple",
        "model_version": "1",
        "outputs": [answer.get_output("OUTPUT1")],
    }


def test_an_input_can_be_used_again_with_another_shape(client: Any) -> None:
    tensor = InferInput("INPUT0", [1, 2], "FP32")
    for rows in (1, 3):
        array = np.full((rows, 2), rows, np.float32)
        tensor.set_shape([rows, 2]).set_data_from_numpy(array)
        np.testing.assert_array_equal(
            client.infer("identity_FP32", [tensor]).as_numpy("OUTPUT0"), array
        )


async def test_errors_have_the_servers_status_and_message(served: Served) -> None:
    message = "inference input 'INPUT1' data-type is 'FP32', but model 'simple' expects 'INT32'"
    wrong = [given("INPUT0"), given("INPUT1", ARRAY.astype(np.float32), "FP32")]
    with (
        InferenceServerClient(served.address) as client,
        pytest.raises(InferenceServerException) as sync,
    ):
        client.infer("simple", wrong)
    with pytest.raises(InferenceServerException) as aio:
        async with tritonclient.http.aio.InferenceServerClient(served.address) as client:
            await client.infer("simple", wrong)
    for error in (sync.value, aio.value):
        assert (error.status(), error.message()) == ("400", message)


class Bearer(tritonclient.http.InferenceServerClientPlugin):  # type: ignore[misc]  # untyped
    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = "Bearer k3y"


def test_plugins(running: Any, sources: Any) -> None:
    """A proxy in front checks basic authentication. A plugin sends our key like any header."""
    seen: list[Any] = []

    class Note:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(dict(scope.get("headers", ())).get(b"authorization"))
            await self.app(scope, receive, send)

    app = create_app(
        sources[1:2], settings=Settings(api_key=SecretStr("k3y")), middleware=[Middleware(Note)]
    )
    with running(app) as server, InferenceServerClient(server.base_url.netloc.decode()) as client:
        basic = BasicAuth("user", "pass")
        client.register_plugin(basic)
        assert client.plugin() is basic
        with pytest.raises(InferenceServerException, match="already registered"):
            client.register_plugin(Bearer())
        with pytest.raises(
            InferenceServerException, match=r"\[401\] expected the header Authorization: Bearer"
        ):
            client.infer("simple", both())
        assert seen[-1] == b"Basic dXNlcjpwYXNz"
        client.unregister_plugin()
        client.register_plugin(Bearer())
        assert client.get_server_metadata()["name"] == "penstock"
        np.testing.assert_array_equal(client.infer("simple", both()).as_numpy("OUTPUT0"), ARRAY + 1)
        client.unregister_plugin()
        assert client.plugin() is None and client.is_server_live()
        with pytest.raises(InferenceServerException, match="401"):
            client.get_server_metadata()


def test_names_are_quoted(client: Any) -> None:
    assert not client.is_model_ready("a b/c?d#e%2F")
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'a b'"):
        client.get_model_metadata("a b")
