"""Metadata, readiness and configuration of models, read by Triton's clients."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

import penstock
from penstock import create_app
from penstock.app.v2.models.description import config_of
from penstock.app.v2.models.model import Models
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository


def port(name: Any, datatype: Any, shape: Any) -> Any:
    return {"name": name, "datatype": datatype, "shape": shape}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        (
            "simple",
            [port("INPUT0", "INT32", [-1, 16]), port("INPUT1", "INT32", [-1, 16])],
            [port("OUTPUT0", "INT32", [-1, 16]), port("OUTPUT1", "INT32", [-1, 16])],
        ),
        (
            "matmul",
            [port("x", "FP32", [-1, 2])],
            [port("y", "FP32", [-1, 1]), port("z", "FP32", [-1, 2])],
        ),  # the engine's own
        ("text", [port("data", "BYTES", [1])], [port("result", "BYTES", [1])]),
        (
            "sum",
            [port("data", "FP32", [-1, -1])],
            [
                port("result", "FP32", [-1, -1]),
                port("total", "FP32", [-1]),
                port("rows", "INT64", [1]),
            ],
        ),
        (
            "any",
            [port("X", "BYTES", [-1])],
            [port("Y", "BYTES", [-1])],
        ),  # nothing is known of these
    ],
)
def test_metadata(client: Any, name: str, inputs: Any, outputs: Any) -> None:
    expected = {
        "name": name,
        "versions": ["1"],
        "platform": "penstock",
        "inputs": inputs,
        "outputs": outputs,
    }
    assert client.get_model_metadata(name) == client.get_model_metadata(name, "1") == expected


def test_an_image_pipeline_takes_one_image(client: Any) -> None:
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"] == [port("data", "BYTES", [1])]
    assert client.get_model_config("digits")["max_batch_size"] == 0


def test_configuration(client: Any) -> None:
    config = client.get_model_config("ranked", "1")
    assert config["max_batch_size"] == 2
    assert [
        (tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config["input"]
    ] == [("X", "TYPE_FP32", [-1])]
    assert [
        (tensor["name"], tensor["data_type"], tensor["dims"]) for tensor in config["output"]
    ] == [("Y", "TYPE_FP32", [-1])]
    assert config["dynamic_batching"]["priority_levels"] == 3
    assert [
        (group["name"], group["kind"], group["count"]) for group in config["instance_group"]
    ] == [("node", "KIND_CPU", 1)]
    assert client.get_model_config("text")["input"][0]["data_type"] == "TYPE_STRING"
    assert (
        client.get_model_config("scaled")["max_batch_size"] == 0
    )  # the first size is fixed: no batch dimension


@pytest.mark.parametrize(
    ("keys", "reported"),
    [
        ({"queue_timeout": 2.5, "queue_size": 7}, (2_500_000, 7)),
        ({"queue_timeout": 2**53, "queue_size": 2**40}, (0, 0)),
        ({}, (0, 0)),
    ],
)
async def test_policy_of_the_queue(keys: Any, reported: Any) -> None:
    """Priorities are reported without a batch, too."""
    pipeline = {"name": "policy", **keys}
    repository = Repository(
        [
            load(
                {
                    "pipeline": pipeline,
                    "node": {"backend": "Identity", "priority_levels": 4, "max": 1},
                }
            )
        ]
    )
    await repository.start()
    try:
        config = config_of(Models(repository).get("policy"))
    finally:
        await repository.close(0)
    policy = config["dynamic_batching"]["default_queue_policy"]
    assert (policy["default_timeout_microseconds"], policy["max_queue_size"]) == reported
    assert policy["timeout_action"] == "REJECT" and policy["allow_timeout_override"]
    assert (
        config["dynamic_batching"]["priority_levels"] == 4
        and config["dynamic_batching"]["preferred_batch_size"] == []
    )


def test_unknown_shapes_have_the_batch_dimension(described: Any) -> None:
    """The shape of a row is what follows the -1, in metadata and configuration."""
    assert described.metadata("unknown")["outputs"] == [
        port("Y", "FP32", [-1, -1]),
        port("row", "FP32", [-1]),
        port("all", "FP32", [2, 3]),
    ]
    config = described.config("unknown")
    assert config["max_batch_size"] == 6 and [output["dims"] for output in config["output"]] == [
        [-1],
        [],
        [2, 3],
    ]
    assert [output["dims"] for output in described.config("open")["output"]] == [
        [-1]
    ]  # without a batch dimension


def test_labels_are_reported_by_the_name_of_their_file(described: Any) -> None:
    assert [output["label_filename"] for output in described.config("open")["output"]] == [
        "labels.txt"
    ]


def test_where_instances_run(described: Any) -> None:
    """The devices that the backends took, not those that the file asks for: it may ask for none."""
    groups = described.config("placed")["instance_group"]
    assert [(group["name"], group["kind"], group["gpus"], group["count"]) for group in groups] == [
        ("gpu", "KIND_GPU", [0, 1], 1),
        ("cpu", "KIND_CPU", [], 1),
    ]


def test_fields_without_a_value_are_there(described: Any) -> None:
    config = described.config("open")
    assert config["optimization"] == {
        "priority": "PRIORITY_DEFAULT",
        "gather_kernel_buffer_threshold": 0,
        "eager_batching": False,
    }
    assert config.keys() >= {
        "platform",
        "runtime",
        "version_policy",
        "batch_input",
        "metric_tags",
        "parameters",
        "model_warmup",
    }
    # Without a batch dimension the policy of the queue is there all the same.
    assert config["max_batch_size"] == 0
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [],
        "max_queue_delay_microseconds": 0,
        "preserve_ordering": False,
        "priority_levels": 0,
        "default_priority_level": 0,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": 0,
            "allow_timeout_override": True,
            "max_queue_size": 0,
        },
        "priority_queue_policy": {},
    }


async def test_how_requests_queue() -> None:
    """Without `combine` there is no dynamic batching; each level has its policy."""
    policies: dict[str, Any] = {
        "default": {"max_queue_size": 3},
        "2": {"timeout": 0.5, "on_timeout": "delay"},
    }
    nodes: dict[str, dict[str, Any]] = {
        "alone": {"combine": False},
        "levels": {"priority_levels": 2, "queue_policies": policies},
        "late": {"queue_policies": {"default": policies["2"]}},
    }
    repository = Repository(
        [load({name: {"backend": "Identity", **keys}}, name=name) for name, keys in nodes.items()]
    )
    await repository.start()
    try:
        models = Models(repository)
        alone, levels, late = (config_of(models.get(name)) for name in nodes)
    finally:
        await repository.close()
    assert "dynamic_batching" not in alone
    bounded, delayed = levels["dynamic_batching"]["priority_queue_policy"].values()
    assert (bounded["timeout_action"], bounded["max_queue_size"]) == ("REJECT", 3)
    assert (delayed["timeout_action"], delayed["default_timeout_microseconds"]) == ("DELAY", 500000)
    assert late["dynamic_batching"]["default_queue_policy"] == delayed
    assert levels["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 0


def test_a_model_can_declare_that_it_has_no_batch_dimension(described: Any) -> None:
    """Shapes stay as declared, and a request of several rows is one item."""
    for name in ("whole", "whole.node"):
        assert described.metadata(name)["inputs"] == [port("X", "FP32", [-1, 2])]
        config = described.config(name)
        assert config["max_batch_size"] == 0
        assert [tensor["dims"] for tensor in config["input"]] == [[-1, 2]]
        data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        entry = {"name": "X", "shape": [3, 2], "datatype": "FP32", "data": data}
        answer = described.http.post(f"/v2/models/{name}/infer", json={"inputs": [entry]})
        (output,) = answer.raise_for_status().json()["outputs"]
        assert (output["shape"], output["data"]) == ([3, 2], data)  # above the node's `max`


@register_backend("OnGpus")
class OnGpus(Backend):
    """A backend that reports its instances on two GPUs, in turn."""

    def init(self, params: Any, context: Any) -> None:
        self.device = f"cuda:{context.instance % 2}"

    def forward(self, batch: Any) -> None:
        raise AssertionError


class Described:
    """The metadata and configurations that a server reports of its models."""

    def __init__(self, http: Any) -> None:
        self.http = http

    def metadata(self, name: Any) -> Any:
        return self.http.get(f"/v2/models/{name}").raise_for_status().json()

    def config(self, name: Any) -> Any:
        return self.http.get(f"/v2/models/{name}/config").raise_for_status().json()


@pytest.fixture(scope="module")
def described(running: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels = tmp_path_factory.mktemp("labels") / "labels.txt"
    labels.write_text("zero\none\n")
    tensor = {"kind": "tensor", "dtype": "FP32"}
    unknown = {
        "name": "unknown",
        "inputs": {"X": tensor | {"shape": [-1, 4]}},
        "outputs": {
            "Y": tensor,
            "row": tensor | {"shape": [-1]},
            "all": tensor | {"shape": [2, 3]},
        },
    }
    open_ = {
        "name": "open",
        "inputs": {"X": tensor},
        "outputs": {"Y": tensor | {"labels": str(labels)}},
    }
    ports = {
        "inputs": {"X": tensor | {"shape": [-1, 2]}},
        "outputs": {"Y": tensor | {"shape": [-1, 2]}},
        "batched": False,
    }
    whole = {"name": "whole", "expose": {"node": ports}, **ports}
    nodes = {
        "a": {"backend": "Identity", "max": 8, "next": "b"},
        "b": {"backend": "Identity", "max": 6},
    }
    placed = {
        "gpu": {"backend": "OnGpus", "instance_num": 2, "next": "cpu"},
        "cpu": {"backend": "Identity"},
    }
    sources = [
        {"pipeline": unknown, **nodes},
        {"pipeline": open_, **nodes},
        {"pipeline": {"name": "placed"}, **placed},
        {"pipeline": whole, "node": {"backend": "Identity", "max": 2}},
    ]
    with running(create_app(sources)) as http:
        yield Described(http)


async def test_a_model_that_loads_is_not_ready() -> None:
    app = create_app({"pipeline": {"name": "late"}, "node": {"backend": "Identity"}})
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        answer = await client.get("/v2/models/late/ready")
        assert (answer.status_code, answer.json()) == (400, {"error": "Model version not ready"})
        assert (await client.get("/v2/models/late")).status_code == 503
        assert (await client.get("/v2/models/none/ready")).json() == {
            "error": "Request for unknown model: 'none' is not found"
        }


def test_readiness(client: Any) -> None:
    assert client.is_model_ready("simple") and client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "2") and not client.is_model_ready("nope")


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config"])
def test_unknown_models(client: Any, call: str) -> None:
    with pytest.raises(
        InferenceServerException, match=r"\[400\] Request for unknown model: 'nope' is not found"
    ):
        getattr(client, call)("nope")
    with pytest.raises(
        InferenceServerException,
        match=r"\[400\] Request for unknown model: 'simple' version 7 is not found",
    ):
        getattr(client, call)("simple", "7")


def test_the_server(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "penstock" and metadata["version"] == penstock.__version__
    in_tritons_order = [
        "classification",
        "sequence",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "system_shared_memory",
        "cuda_shared_memory",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "trace",
        "logging",
    ]
    assert metadata["extensions"] == in_tritons_order


async def test_aio(served: Any) -> None:
    async with tritonclient.http.aio.InferenceServerClient(served.address) as client:
        assert (await client.get_server_metadata())["name"] == "penstock"
        assert (await client.get_model_metadata("simple"))["name"] == "simple"
        assert (await client.get_model_config("simple"))["max_batch_size"] == 8
        assert not await client.is_model_ready("nope")
