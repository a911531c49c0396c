"""What models say of themselves, read by Triton's clients: metadata, readiness, configuration."""

from __future__ import annotations

import pytest
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

import penstock


def port(name, datatype, shape):
    return {"name": name, "datatype": datatype, "shape": shape}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        (
            "simple",
            [port("INPUT0", "INT32", [-1, 16]), port("INPUT1", "INT32", [-1, 16])],
            [port("OUTPUT0", "INT32", [-1, 16]), port("OUTPUT1", "INT32", [-1, 16])],
        ),
        ("matmul", [port("x", "FP32", [-1, 2])], [port("y", "FP32", [-1, 1]), port("z", "FP32", [-1, 2])]),  # the engine's own
        ("text", [port("data", "BYTES", [1])], [port("result", "BYTES", [1])]),
        (
            "sum",
            [port("data", "FP32", [-1, -1])],
            [port("result", "FP32", [-1, -1]), port("total", "FP32", [-1]), port("rows", "INT64", [1])],
        ),
        ("any", [port("X", "BYTES", [-1])], [port("Y", "BYTES", [-1])]),  # nothing is known of them
    ],
)
def test_metadata(client, name, inputs, outputs):
    expected = {"name": name, "versions": ["1"], "platform": "penstock", "inputs": inputs, "outputs": outputs}
    assert client.get_model_metadata(name) == client.get_model_metadata(name, "1") == expected


def test_an_image_pipeline_takes_one_image(client):
    found = client.get_model_metadata("digits")
    assert found["inputs"] == [port("data", "BYTES", [1])]
    assert client.get_model_config("digits")["max_batch_size"] == 0


def test_configuration(client):
    found = client.get_model_config("ranked", "1")
    assert found["max_batch_size"] == 2
    assert [(each["name"], each["data_type"], each["dims"]) for each in found["input"]] == [("X", "TYPE_FP32", [-1])]
    assert [(each["name"], each["data_type"], each["dims"]) for each in found["output"]] == [("Y", "TYPE_FP32", [-1])]
    assert found["dynamic_batching"]["priority_levels"] == 3
    assert [(each["name"], each["kind"], each["count"]) for each in found["instance_group"]] == [("node", "KIND_CPU", 1)]
    assert client.get_model_config("text")["input"][0]["data_type"] == "TYPE_STRING"
    assert client.get_model_config("scaled")["max_batch_size"] == 0  # its first size is fixed: no batch


def test_readiness(client):
    assert client.is_model_ready("simple") and client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "2") and not client.is_model_ready("nope")


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config"])
def test_unknown_models(client, call):
    with pytest.raises(InferenceServerException, match=r"\[400\] Request for unknown model: 'nope' is not found"):
        getattr(client, call)("nope")
    with pytest.raises(InferenceServerException, match=r"\[400\] Request for unknown model: 'simple' version 7 is not found"):
        getattr(client, call)("simple", "7")


def test_the_server(client):
    assert client.is_server_live() and client.is_server_ready()
    found = client.get_server_metadata()
    assert found["name"] == "penstock" and found["version"] == penstock.__version__
    assert {"binary_tensor_data", "classification", "schedule_policy", "model_configuration", "parameters"} <= set(found["extensions"])
    assert not {"sequence", "trace", "logging", "cuda_shared_memory"} & set(found["extensions"])


async def test_aio(served):
    async with tritonclient.http.aio.InferenceServerClient(served.address) as client:
        assert (await client.get_server_metadata())["name"] == "penstock"
        assert (await client.get_model_metadata("simple"))["name"] == "simple"
        assert (await client.get_model_config("simple"))["max_batch_size"] == 8
        assert not await client.is_model_ready("nope")
