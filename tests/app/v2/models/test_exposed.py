"""Exposed nodes as models: a client of the protocol calls the middle of a graph alone."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.http import InferInput
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.settings import Settings

from ..conftest import matmul

OPS = """
def twice(data):
    return data * 2


def shout(text):
    return text.upper()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, running: Any) -> Any:
    folder = tmp_path_factory.mktemp("exposed")
    (folder / "ops.py").write_text(OPS)
    matmul(folder / "matmul.onnx")
    tensor = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}
    chain = {
        "pipeline": {
            "name": "chain",
            "version": "3",
            "inputs": {"X": tensor},
            "expose": {"net": {}},
        },
        "twice": {"backend": f"Python[{folder / 'ops.py'}:twice]", "next": "net", "max": 4},
        "net": {
            "backend": "OnnxTensor",
            "model": str(folder / "matmul.onnx"),
            "max": 4,
            "next": "end",
        },
        "end": {"backend": "Identity"},
    }
    text = {"kind": "text"}
    words = {
        "pipeline": {
            "name": "words",
            "expose": {
                "shout": {"inputs": {"data": text}, "outputs": {"result": text}},
                "again": {},
            },
        },
        "shout": {"backend": f"Python[{folder / 'ops.py'}:shout]", "next": "again"},
        "again": {"backend": "Identity"},
    }
    with running(create_app([chain, words], settings=Settings())) as http:
        yield http


@pytest.fixture
def client(server: Any) -> Any:
    with tritonclient.http.InferenceServerClient(
        str(server.base_url).removeprefix("http://").rstrip("/")
    ) as client:
        yield client


def test_a_node_has_the_inputs_and_outputs_of_its_engine(client: Any) -> None:
    assert client.is_model_ready("chain.net") and client.is_model_ready("chain.net", "3")
    assert not client.is_model_ready("chain.end") and not client.is_model_ready("chain.net", "1")
    assert client.get_model_metadata("chain.net") == {
        "name": "chain.net",
        "versions": ["3"],
        "platform": "penstock",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 1]},
            {"name": "z", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    config = client.get_model_config("chain.net")
    assert (
        config["name"],
        config["max_batch_size"],
        [group["name"] for group in config["instance_group"]],
    ) == ("chain.net", 4, ["net"])


def test_a_call_runs_only_that_node(client: Any) -> None:
    rows = np.array([[1, 2], [3, 4]], np.float32)
    tensor = InferInput("x", [2, 2], "FP32")
    tensor.set_data_from_numpy(rows)
    answer = client.infer("chain.net", [tensor])
    assert answer.get_response()["model_name"] == "chain.net"
    np.testing.assert_array_equal(answer.as_numpy("y"), [[5], [11]])
    np.testing.assert_array_equal(answer.as_numpy("z"), rows)
    with pytest.raises(InferenceServerException, match=r"batch-size must be <= 4 for 'chain.net'"):
        client.infer("chain.net", [_of(np.zeros((5, 2), np.float32))])


def _of(rows: Any) -> Any:
    tensor = InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


def test_inputs_and_outputs_declared_and_not(client: Any, server: Any) -> None:
    tensor = InferInput("data", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(["loud"], object))
    assert client.infer("words.shout", [tensor]).as_numpy("result").tolist() == [b"LOUD"]
    answer = server.post(
        "/v2/models/words.again/infer",
        json={"inputs": [{"name": "data", "shape": [3], "datatype": "INT16", "data": [1, 2, 3]}]},
    )
    assert answer.json()["outputs"] == [
        {"name": "result", "datatype": "INT16", "shape": [3], "data": [1, 2, 3]}
    ]


def test_the_predict_route_does_not_have_them(server: httpx.Client) -> None:
    assert server.post("/predict/chain.net", content=b"x").status_code == 404
    assert "chain.net" not in server.get("/openapi.json").text
