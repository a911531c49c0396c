"""Lists (`kind = "list"`) below /v2: an element for each item, or the list's JSON."""

from __future__ import annotations

from typing import Any

import pytest

from penstock import create_app
from penstock.pipelines.config.load import load

PORTS: dict[str, dict[str, Any]] = {
    "texts": {"kind": "list", "items": {"kind": "text"}},
    "files": {"kind": "list", "items": {"kind": "bytes"}},
    "numbers": {"kind": "list", "items": {"kind": "number"}},
    "values": {"kind": "list"},
    "lists": {"kind": "list", "items": {"kind": "list", "items": {"kind": "integer"}}},
}


@pytest.fixture(scope="module", params=["httptools", "penstock"])
def client(running: Any, request: Any) -> Any:
    pipelines = [
        load(
            {
                "pipeline": {"name": name, "inputs": {"data": port}, "outputs": {"result": port}},
                "node": {"backend": "Python[copy:copy]"},
            }
        )
        for name, port in PORTS.items()
    ]
    with running(create_app(pipelines), http=request.param) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "datatype", "data"),
    [
        ("texts", "BYTES", ["a", "\xe4"]),
        ("texts", "BYTES", []),
        ("files", "BYTES", ["a"]),
        ("numbers", "FP64", [1.0, 2.5]),
        ("numbers", "FP64", []),
        ("values", "BYTES", ['{"a":[1]}', "1"]),
        ("lists", "BYTES", ["[[1,2],[]]"]),
        ("lists", "BYTES", ["[]"]),
    ],
)
def test_lists(client: Any, name: str, datatype: str, data: Any) -> None:
    tensor = {"name": "data", "datatype": datatype, "shape": [len(data)], "data": data}
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).json()
    (output,) = answer["outputs"]
    assert output == {**tensor, "name": "result"}
    (described,) = client.get(f"/v2/models/{name}").json()["inputs"]
    assert (described["datatype"], described["shape"]) == (datatype, [1 if name == "lists" else -1])


@pytest.mark.parametrize("shape", [[], [1, 1]])
@pytest.mark.parametrize(
    ("name", "datatype", "value"),
    [("texts", "BYTES", "a"), ("values", "BYTES", "1"), ("numbers", "FP64", 2.5)],
)
def test_one_item_of_any_shape(
    client: Any, name: str, datatype: str, value: Any, shape: list[int]
) -> None:
    tensor = {"name": "data", "datatype": datatype, "shape": shape, "data": [value]}
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [value]


@pytest.mark.parametrize(
    ("name", "tensor", "detail"),
    [
        ("texts", {"shape": [1, 2], "data": ["a", "b"]}, "unexpected shape for input 'data'"),
        ("numbers", {"data": [1.5], "datatype": "INT64", "shape": [1]}, "data-type is 'INT64'"),
        ("values", {"data": ["{"], "shape": [1]}, "input 'data' is not valid JSON"),
        (
            "lists",
            {"data": ["[[1.5]]"], "shape": [1]},
            "'data[0][0]' is a JSON number, expected a w",
        ),
        ("lists", {"data": ["1"], "shape": [1]}, "'data' is a JSON number, expected an array"),
    ],
)
def test_bad_lists(client: Any, name: str, tensor: Any, detail: str) -> None:
    tensor = {"name": "data", "datatype": "BYTES", **tensor}
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 400 and detail in answer.json()["error"]
