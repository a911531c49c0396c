"""Inputs that a request may leave out: initializers that are inputs too, and declared ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.http import InferenceServerClient, InferInput

import penstock
from penstock import create_app

LENGTH = "Inference-Header-Content-Length"

OPS = """
def plus(data):
    a, b = data
    return a if b is None else a + b


class Plus:
    def forward(self, batch):
        for item in batch:
            item["result"] = item["data"] + item.get("b", 100)


def given(data):
    return -1 if data is None else int(data)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write models y[n, 2] = x[n, 2] * scale + shift, where scale [2] and shift [] have defaults,
    of an open and of a fixed batch; and functions.
    """
    folder = tmp_path_factory.mktemp("optional")
    value = helper.make_tensor_value_info
    for name, rows in (("affine", "n"), ("fixed", 4)):
        graph = helper.make_graph(
            [
                helper.make_node("Mul", ["x", "scale"], ["s"]),
                helper.make_node("Add", ["s", "shift"], ["y"]),
            ],
            "affine",
            [
                value("x", TensorProto.FLOAT, [rows, 2]),
                value("scale", TensorProto.FLOAT, [2]),
                value("shift", TensorProto.FLOAT, []),
            ],
            [value("y", TensorProto.FLOAT, [rows, 2])],
            [
                helper.make_tensor("scale", TensorProto.FLOAT, [2], [1, 10]),
                helper.make_tensor("shift", TensorProto.FLOAT, [], [0]),
            ],
        )
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / f"{name}.onnx"
        )
    (folder / "ops.py").write_text(OPS)
    return folder


def affine(folder: Path, name: str = "affine", **keys: Any) -> dict[str, Any]:
    node = {"backend": "OnnxTensor", "model": str(folder / f"{name}.onnx"), "max": 4, "threads": 1}
    return {"pipeline": {"name": "affine"}, "net": {**node, **keys}}


def declared(folder: Path, inputs: dict[str, Any], backend: str) -> dict[str, Any]:
    return {
        "pipeline": {"name": "declared", "inputs": inputs},
        "node": {"backend": f"Python[{folder}/ops.py:{backend}]", "max": 8},
    }


@asynccontextmanager
async def client_of(source: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app([source])
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


def tensor(name: str, data: Any, datatype: str = "FP32") -> dict[str, Any]:
    array = np.asarray(data)
    return {
        "name": name,
        "datatype": datatype,
        "shape": array.shape,
        "data": array.ravel().tolist(),
    }


async def infer(client: httpx.AsyncClient, model: str, *inputs: dict[str, Any]) -> Any:
    answer = await client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
    if answer.status_code != 200:
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]
    (output,) = answer.json()["outputs"]
    return np.reshape(output["data"], output["shape"]).tolist()


X = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("backend", ["OnnxTensor", "S[OnnxTensor]", "ModelTensor"])
async def test_initializers_that_are_inputs_are_optional_below_v2(
    folder: Path, backend: str
) -> None:
    async with client_of(affine(folder, backend=backend)) as client:
        described = (await client.get("/v2/models/affine")).json()["inputs"]
        assert [(port["name"], port["shape"], port.get("optional")) for port in described] == [
            ("x", [-1, 2], None),
            ("scale", [2], True),
            ("shift", [], True),
        ]
        config = (await client.get("/v2/models/affine/config")).json()
        assert [port["optional"] for port in config["input"]] == [False, True, True]
        assert config["max_batch_size"] == 0

        x, scale, shift = tensor("x", X), tensor("scale", [2, 3]), tensor("shift", 1)
        answers = await asyncio.gather(
            infer(client, "affine", x),
            infer(client, "affine", scale, x),
            infer(client, "affine", x, shift),
            infer(client, "affine", x, scale, shift),
            infer(client, "affine", tensor("x", X[:1])),
        )
        assert list(answers) == [
            [[1, 20], [3, 40]],
            [[2, 6], [6, 12]],
            [[2, 21], [4, 41]],
            [[3, 7], [7, 13]],
            [[1, 20]],
        ]
        message = await infer(client, "affine", scale, shift)
        assert "missing required input(s) ['x']" in message
        assert "number of inputs between 1 and 3 but got 2" in message
        assert "unexpected inference input 'z'" in await infer(client, "affine", x, tensor("z", 1))
        assert "unexpected shape for input 'scale'" in await infer(
            client, "affine", x, tensor("scale", [1, 2, 3])
        )
        assert "batch-size must be <= 4" in await infer(client, "affine", tensor("x", X * 3))


async def test_binary_requests_with_and_without_an_optional_input(folder: Path) -> None:
    """The layout of a request is kept for the next one of the same JSON."""
    x, scale = np.array(X, np.float32), np.array([2, 3], np.float32)
    async with client_of(affine(folder)) as client:
        for _ in range(2):
            for arrays in ({"x": x}, {"x": x, "scale": scale}):
                inputs = []
                for name, array in arrays.items():
                    given = InferInput(name, list(array.shape), "FP32")
                    given.set_data_from_numpy(array)
                    inputs.append(given)
                body, size = InferenceServerClient.generate_request_body(inputs)
                answer = await client.post(
                    "/v2/models/affine/infer",
                    content=body,
                    headers={LENGTH: str(size)},
                )
                result = InferenceServerClient.parse_response_body(
                    answer.content, header_length=int(answer.headers[LENGTH])
                ).as_numpy("y")
                assert result is not None
                assert (
                    result.tolist()
                    == (x * arrays.get("scale", np.array([1, 10], np.float32))).tolist()
                )
        answer = await client.post(
            "/v2/models/affine/infer",
            content=x[:1].tobytes(),
            headers={LENGTH: "0"},
        )
        size = int(answer.headers[LENGTH])
        assert np.frombuffer(answer.content[size:], np.float32).tolist() == [1, 20]


@pytest.mark.parametrize("name", ["affine", "fixed"])
@pytest.mark.parametrize("executor", ["thread", "process"])
async def test_items_from_python(folder: Path, name: str, executor: str) -> None:
    x, scale, shift = np.array(X, np.float32), np.array([2, 3], np.float32), np.array(1, np.float32)
    cases: list[tuple[Any, Any]] = [
        (x, x * [1, 10]),
        ([x], x * [1, 10]),
        ([x, None, None], x * [1, 10]),
        ([x, scale], x * scale),
        ([x, None, shift], x * [1, 10] + 1),
        ({"x": x}, x * [1, 10]),
        ({"shift": shift, "x": x, "scale": None}, x * [1, 10] + 1),
        ({"x": x[:1], "scale": scale, "shift": shift}, x[:1] * scale + 1),
        ({"x": x[:1]}, x[:1] * [1, 10]),
    ] * 2
    keys = {"executor": executor, "batching_timeout": 5}
    async with penstock.Pipeline.load(affine(folder, name, **keys)) as pipeline:
        answers = await asyncio.gather(*(pipeline({"data": data}) for data, _ in cases))
        for answer, (_, expected) in zip(answers, cases, strict=True):
            np.testing.assert_allclose(answer["result"], expected)
        assert max(pipeline.nodes[0].statistics.sizes) <= 4
        for data, message in (
            ({"scale": scale}, "input x is missing"),
            ([None, scale], "input x is missing"),
            ([], r"1 inputs \(x; optional: scale, shift\), but data holds 0"),
            ([x, None, None, None], "but data holds 4"),
            ({"x": x, "z": x}, "input 'z' is unknown"),
            ({"x": x, "scale": x}, "input scale: expected float32 of shape 2, found"),
        ):
            with pytest.raises(penstock.InvalidInput, match=message):
                await pipeline({"data": data})


async def test_declared_inputs_may_hide_the_optional_ones(folder: Path) -> None:
    source = affine(folder)
    source["pipeline"]["inputs"] = {"image": {"kind": "tensor"}}
    async with client_of(source) as client:
        config = (await client.get("/v2/models/affine/config")).json()
        assert [port["name"] for port in config["input"]] == ["image"]
        assert config["max_batch_size"] == 4
        assert await infer(client, "affine", tensor("image", X)) == [[1, 20], [3, 40]]


async def test_a_list_of_declared_inputs_has_none_for_one_that_is_left_out(folder: Path) -> None:
    port = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}
    inputs = {"a": port, "b": {**port, "optional": True}}
    async with client_of(declared(folder, inputs, "plus")) as client:
        config = (await client.get("/v2/models/declared/config")).json()
        assert [port["optional"] for port in config["input"]] == [False, True]
        assert config["max_batch_size"] == 8
        assert await infer(client, "declared", tensor("a", X)) == X
        both = await infer(client, "declared", tensor("a", X), tensor("b", X))
        assert both == [[2, 4], [6, 8]]
        message = await infer(client, "declared", tensor("b", X))
        assert "missing required input(s) ['a']" in message
        assert "batch size does not match" in await infer(
            client, "declared", tensor("a", X), tensor("b", X[:1])
        )


async def test_the_item_lacks_the_key_of_an_input_that_is_left_out(folder: Path) -> None:
    inputs = {"data": {"kind": "integer"}, "b": {"kind": "integer", "optional": True}}
    async with client_of(declared(folder, inputs, "Plus")) as client:
        assert await infer(client, "declared", tensor("data", [1], "INT64")) == [101]
        both = tensor("data", [1], "INT64"), tensor("b", [2], "INT64")
        assert await infer(client, "declared", *both) == [3]
        assert "missing required input(s) ['data']" in await infer(client, "declared", both[1])


async def test_the_only_input_may_be_optional(folder: Path) -> None:
    inputs = {"a": {"kind": "integer", "optional": True}}
    async with client_of(declared(folder, inputs, "given")) as client:
        assert await infer(client, "declared", tensor("a", [3], "INT64")) == [3]
        assert await infer(client, "declared") == [-1]


def test_an_output_is_not_optional(folder: Path) -> None:
    source = declared(folder, {"data": {"kind": "text"}}, "given")
    source["pipeline"]["outputs"] = {"y": {"kind": "text", "optional": True}}
    with pytest.raises(penstock.ConfigError, match="optional"):
        penstock.Pipeline.load(source)
