"""Use of KServe's client with a server of the protocol.

Calls every method of the client that speaks version 2, and sends all that it can send.

use_kserve.py ADDRESS IMAGE prints the outcome of each `use_…` as JSON: null, or the error.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.errors import UnsupportedProtocol
from kserve.inference_client import PredictorProtocol
from kserve.protocol.infer_type import RequestedOutput

ADDRESS = f"http://{sys.argv[1]}"
IMAGE = Path(sys.argv[2]).read_bytes()
ARRAYS = {
    "BOOL": np.array([[True, False, True]]),
    **{
        f"{kind}INT{bits}": np.array(
            [[0, 1, np.iinfo(f"{kind.lower()}int{bits}").max]], f"{kind.lower()}int{bits}"
        )
        for kind in ("", "U")
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": np.array([[0.5, -2.25, 7]], f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.array([[b"one", "zwölf".encode(), b""]], np.object_),
}
"""The datatypes that the client knows: all but BF16."""


def given(name: str, datatype: str, array: np.ndarray, binary: bool = True) -> InferInput:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def same(output: Any, datatype: str, array: np.ndarray) -> bool:
    """Compare values. The client makes `str` of BYTES, whether they came as binary or as JSON."""
    wanted = (
        [[str(text, "utf-8") for text in row] for row in array]
        if datatype == "BYTES"
        else array.tolist()
    )
    described = (output.datatype, output.shape) == (datatype, list(array.shape))
    return described and bool(output.as_numpy().tolist() == wanted)


async def use_health(client: InferenceRESTClient) -> None:
    assert await client.is_server_live(ADDRESS) is True
    assert await client.is_server_ready(ADDRESS) is True
    assert await client.is_model_ready(ADDRESS, "simple") is True
    assert await client.is_model_ready(ADDRESS, "nope") is False


async def use_json(client: InferenceRESTClient) -> None:
    numbers = np.arange(16, dtype=np.int32).reshape(1, 16)
    inputs = [
        InferInput("INPUT0", [1, 16], "INT32", list(range(16))),
        given("INPUT1", "INT32", numbers, binary=False),
    ]
    headers: dict[str, str] = {}
    response = await client.infer(
        ADDRESS,
        InferRequest("simple", inputs, request_id="mine"),
        "simple",
        response_headers=headers,
    )
    assert (response.id, response.model_name) == ("mine", "simple")
    assert [(output.name, output.datatype, output.shape) for output in response.outputs] == [
        (f"OUTPUT{n}", "INT32", [1, 16]) for n in (0, 1)
    ]
    assert response.get_output_by_name("OUTPUT0").data == (numbers + numbers).ravel().tolist()
    assert not response.get_output_by_name("OUTPUT1").as_numpy().any()
    assert headers["content-type"] == "application/json"


async def use_json_of_every_datatype(client: InferenceRESTClient) -> None:
    for datatype, array in ARRAYS.items():
        if datatype != "FP16":  # as in Triton, the client has them in binary only
            request = InferRequest(
                f"identity_{datatype}", [given("INPUT0", datatype, array, binary=False)]
            )
            response = await client.infer(ADDRESS, request, f"identity_{datatype}")
            assert same(response.outputs[0], datatype, array), (datatype, response.outputs[0])


async def use_binary_of_every_datatype(client: InferenceRESTClient) -> None:
    for datatype, array in ARRAYS.items():
        for binary in (True, False):
            request = InferRequest(
                f"identity_{datatype}",
                [given("INPUT0", datatype, array)],
                parameters={"binary_data_output": binary},
            )
            headers: dict[str, str] = {}
            response = await client.infer(
                ADDRESS, request, f"identity_{datatype}", response_headers=headers
            )
            assert same(response.outputs[0], datatype, array), (
                datatype,
                binary,
                response.outputs[0],
            )
            assert headers["content-type"] == (
                "application/octet-stream" if binary else "application/json"
            )


async def use_both_at_once(client: InferenceRESTClient) -> None:
    ones, twos = np.ones((2, 16), np.int32), np.full((2, 16), 2, np.int32)
    inputs = [given("INPUT0", "INT32", ones), given("INPUT1", "INT32", twos, binary=False)]
    outputs = [RequestedOutput("OUTPUT1"), RequestedOutput("OUTPUT0", {"binary_data": True})]
    response = await client.infer(
        ADDRESS, InferRequest("simple", inputs, request_outputs=outputs), "simple"
    )
    assert (response.get_output_by_name("OUTPUT0").as_numpy() == 3).all()
    assert (response.get_output_by_name("OUTPUT1").as_numpy() == -1).all()
    response = await client.infer(
        ADDRESS, InferRequest("simple", inputs, request_outputs=outputs[:1]), "simple"
    )
    assert [output.name for output in response.outputs] == ["OUTPUT1"]


async def use_tensors_of_no_elements(client: InferenceRESTClient) -> None:
    """In binary the client sends their size, and null as `data`."""
    for datatype in ("INT32", "BYTES"):
        nothing = np.empty((1, 0), ARRAYS[datatype].dtype)
        for binary in (True, False):
            request = InferRequest(
                f"identity_{datatype}", [given("INPUT0", datatype, nothing, binary)]
            )
            response = await client.infer(ADDRESS, request, f"identity_{datatype}")
            assert same(response.outputs[0], datatype, nothing), (datatype, binary)


async def use_parameters(client: InferenceRESTClient) -> None:
    numbers = InferInput("data", [1, 2], "FP64", [1.5, 2.5])
    request = InferRequest(
        "scaled", [numbers], parameters={"factor": 3, "timeout": 20_000_000, "priority": 1}
    )
    assert (await client.infer(ADDRESS, request, "scaled")).outputs[0].data == [4.5, 7.5]


async def use_dictionaries(client: InferenceRESTClient) -> None:
    """A value that the client does not set is null."""
    wanted = InferRequest(
        "text", [InferInput("data", [1], "BYTES", ["hello"])], request_id="mine"
    ).to_dict()
    assert (await client.infer(ADDRESS, wanted, "text")).outputs[0].data == ["HELLO"]
    answer = await client.infer(f"{ADDRESS}/v2/models/text/infer", wanted, is_graph_endpoint=True)
    assert (
        answer["id"] == "mine"
        and answer["model_version"] == "1"
        and answer["outputs"][0]["data"] == ["HELLO"]
    )


async def use_an_engine(client: InferenceRESTClient) -> None:
    request = InferRequest("matmul", [given("x", "FP32", np.array([[1, 2], [3, 4]], np.float32))])
    response = await client.infer(ADDRESS, request, "matmul")
    assert response.get_output_by_name("y").as_numpy().tolist() == [[5], [11]]


async def use_an_image(client: InferenceRESTClient) -> None:
    request = InferRequest("digits", [given("data", "BYTES", np.array([IMAGE], np.object_))])
    response = await client.infer(ADDRESS, request, "digits")
    assert "three" in str([output.data for output in response.outputs])


async def use_large_answers(client: InferenceRESTClient) -> None:
    """The client accepts gzip, so JSON of this size comes compressed."""
    array = np.arange(100_000, dtype=np.int32).reshape(1, -1)
    for binary in (True, False):
        request = InferRequest(
            "identity_INT32",
            [given("INPUT0", "INT32", array)],
            parameters={"binary_data_output": binary},
        )
        headers: dict[str, str] = {}
        response = await client.infer(ADDRESS, request, "identity_INT32", response_headers=headers)
        assert (response.outputs[0].as_numpy() == array).all()
        assert ("content-encoding" in headers) is not binary


async def use_many_at_once(client: InferenceRESTClient) -> None:
    async def one(number: int) -> bool:
        inputs = [
            given(name, "INT32", np.full((1, 16), number, np.int32))
            for name in ("INPUT0", "INPUT1")
        ]
        response = await client.infer(ADDRESS, InferRequest("simple", inputs), "simple")
        return bool(response.get_output_by_name("OUTPUT0").data == [2 * number] * 16)

    assert all(await asyncio.gather(*map(one, range(64))))


async def use_errors(client: InferenceRESTClient) -> None:
    wrong = {
        "Request for unknown model: 'nope' is not found": (
            "nope",
            InferInput("X", [1], "INT32", [1]),
        ),
        "invalid datatype for input 'data'": ("text", InferInput("data", [1], "INT33", [1])),
        "inference input 'data' data-type is 'INT32', but model 'text' expects 'BYTES'": (
            "text",
            InferInput("data", [1], "INT32", [1]),
        ),
        "unexpected shape for input 'data' for model 'scaled'. Expected [1,-1], got [2,1]": (
            "scaled",
            InferInput("data", [2, 1], "FP64", [1, 2]),
        ),
    }
    for text, (model, tensor) in wrong.items():
        try:
            await client.infer(ADDRESS, InferRequest(model, [tensor]), model)
        except httpx.HTTPStatusError as error:
            assert str(error).startswith(
                text
            ) and f"'400 Bad Request' for url '{ADDRESS}/v2/models/{model}/infer'" in str(error), (
                error
            )
        else:
            raise AssertionError(f"no error: {text}")


async def use_headers(client: InferenceRESTClient) -> None:
    headers: dict[str, str] = {}
    request = InferRequest("text", [given("data", "BYTES", np.array([b"hello"], np.object_))])
    await client.infer(
        ADDRESS,
        request,
        "text",
        headers={"X-Request-Id": "mine"},
        response_headers=headers,
        timeout=20,
    )
    assert headers["x-request-id"] == "mine"


async def use_explain(client: InferenceRESTClient) -> None:
    """Version 2 does not have it, and the client knows that."""
    try:
        await client.explain(ADDRESS, "text", {})
    except UnsupportedProtocol:
        return
    raise AssertionError("it was sent")


async def main() -> None:
    outcomes: dict[str, str | None] = {}
    async with InferenceRESTClient(
        RESTConfig(protocol=PredictorProtocol.REST_V2, retries=0, timeout=30)
    ) as client:
        for name, use in inspect.getmembers(sys.modules[__name__], inspect.iscoroutinefunction):
            if name.startswith("use_"):
                try:
                    await use(client)
                except Exception:
                    outcomes[name] = traceback.format_exc()
                else:
                    outcomes[name] = None
    print(json.dumps(outcomes))


asyncio.run(main())
