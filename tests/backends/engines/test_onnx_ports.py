"""Types of inputs and outputs of ONNX models: those that OnnxTensor takes, and the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock import create_app
from penstock.backends.base import UNBOUNDED, Context
from penstock.backends.engines.model import ModelParams, ModelTensor
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError, ConfigError

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
tensor_type: Any = helper.make_tensor_type_proto
sequence_type: Any = helper.make_sequence_type_proto
map_type: Any = helper.make_map_type_proto
value: Any = helper.make_value_info


def write(path: Path, nodes: Any, inputs: Any, outputs: Any) -> Path:
    """Save a model. Inputs and outputs are (name, type)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value(name, kind) for name, kind in inputs],
        [value(name, kind) for name, kind in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture(params=["int64s", "strings"])
def classifier(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Save what scikit-learn's converter makes of a classifier. Return its path and classes."""
    texts = request.param == "strings"
    classes: Any = ["no", "yes"] if texts else [3, 7]
    linear = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "chances"],
        domain="ai.onnx.ml",
        coefficients=[1.0, 0.0, 0.0, 1.0],
        intercepts=[0.0, 0.0],
        post_transform="SOFTMAX",
        **{"classlabels_strings" if texts else "classlabels_ints": classes},
    )
    zipped = helper.make_node(
        "ZipMap",
        ["chances"],
        ["probabilities"],
        domain="ai.onnx.ml",
        **{f"classlabels_{request.param}": classes},
    )
    key = STRING if texts else INT64
    path = write(
        tmp_path / "classifier.onnx",
        [linear, zipped],
        [("x", tensor_type(FLOAT, ["n", 2]))],
        [
            ("label", tensor_type(key, ["n"])),
            ("probabilities", sequence_type(map_type(key, tensor_type(FLOAT, None)))),
        ],
    )
    return path, classes


def make(path: Path, **params: Any) -> Any:
    backend = OnnxTensor()
    backend.init(OnnxParams.model_validate({"model": str(path), **params}), Context(node="node"))
    return backend


def test_the_maps_of_a_classifier_are_dicts(
    classifier: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, (no, yes) = classifier
    backend = make(path)
    assert backend.max == UNBOUNDED and caplog.text == ""  # items share runs
    backend.warm_up()
    rows = np.array([[1, 1], [0, 800], [800, 0]], np.float32)
    batch: Any = [{"data": rows[:2], "request_size": 2}, {"data": rows[2:]}]
    backend.forward(batch)
    (labels, chances), (last, only) = (item["result"] for item in batch)
    assert labels.tolist()[1:] == [yes] and last.tolist() == [no]
    assert chances == [{no: 0.5, yes: 0.5}, {no: 0, yes: 1}] and only == [{no: 1, yes: 0}]
    batch = [{"data": rows[2:]}]
    backend.forward(batch)
    assert batch[0]["result"][1] == only


def test_maps_may_be_the_only_output(tmp_path: Path) -> None:
    path = write(
        tmp_path / "maps.onnx",
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[3, 7])],
        [("x", tensor_type(FLOAT, ["n", 2]))],
        [("y", sequence_type(map_type(INT64, tensor_type(FLOAT, None))))],
    )
    backend = make(path)
    assert backend.max == UNBOUNDED  # items share runs
    batch: Any = [{"data": np.array([[row, 0.5]], np.float32)} for row in range(3)]
    backend.forward(batch)
    assert [item["result"] for item in batch] == [[{3: row, 7: 0.5}] for row in range(3)]


def test_model_tensor_gives_the_same_dicts(classifier: Any) -> None:
    path, (no, yes) = classifier
    backend = ModelTensor()
    params = ModelParams.model_validate({"model": str(path)})
    backend.init(params, Context(node="node", device="cpu"))
    item: Any = {"data": np.array([[0, 800]], np.float32)}
    backend.forward([item])
    assert item["result"][1] == [{no: 0, yes: 1}]


async def test_maps_below_v2_are_json_texts(classifier: Any) -> None:
    path, (no, yes) = classifier
    app = create_app(
        [{"pipeline": {"name": "m"}, "m": {"backend": "OnnxTensor", "model": str(path)}}]
    )
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://penstock") as client,
    ):
        described = (await client.get("/v2/models/m")).json()["outputs"]
        x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 800]}
        answer = await client.post("/v2/models/m/infer", json={"inputs": [x]})
    kind = "BYTES" if yes == "yes" else "INT64"
    assert [(output["name"], output["datatype"]) for output in described] == [
        ("label", kind),
        ("probabilities", "BYTES"),
    ]
    label, chances = answer.json()["outputs"]
    assert (label["data"], label["datatype"]) == ([yes], kind)
    assert chances["data"] == [f'{{"{no}":0.0,"{yes}":1.0}}']


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
async def test_each_row_has_a_json_text_below_v2(classifier: Any, rows: int, binary: bool) -> None:
    path, classes = classifier
    node = {"backend": "OnnxTensor", "model": str(path), "max": 4}
    app = create_app([{"pipeline": {"name": "m"}, "m": node}])
    transport = httpx.ASGITransport(app)
    data = np.array([[1, 1], [0, 800]], np.float32)[:rows]
    x = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data.reshape(-1).tolist()}
    body = {"inputs": [x], "parameters": {"binary_data_output": binary}}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://penstock") as client,
    ):
        config = (await client.get("/v2/models/m/config")).json()
        answer = (await client.post("/v2/models/m/infer", json=body)).raise_for_status()
    assert config["max_batch_size"] == 4
    size = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    labels, maps = json.loads(answer.content[:size])["outputs"]
    assert (labels["shape"], maps["shape"], maps["datatype"]) == ([rows], [rows], "BYTES")
    if binary:
        content, texts = answer.content[-maps["parameters"]["binary_data_size"] :], []
        while content:
            end = 4 + int.from_bytes(content[:4], "little")
            texts.append(content[4:end])
            content = content[end:]
    else:
        texts = maps["data"]
    keys = [str(key) for key in classes]
    chances = [[0.5, 0.5], [0.0, 1.0]][:rows]
    assert [json.loads(text) for text in texts] == [
        dict(zip(keys, row, strict=True)) for row in chances
    ]


def test_sequences_are_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path / "split.onnx",
        [helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1)],
        [("x", tensor_type(FLOAT, ["n", 2]))],
        [("parts", sequence_type(tensor_type(FLOAT, None)))],
    )
    backend = make(path)
    backend.warm_up()
    assert "parts is seq(tensor(float)), which has no rows" in caplog.text and backend.max == 1
    item: Any = {"data": np.array([[1, 2]], np.float32)}
    backend.forward([item])
    assert [part.tolist() for part in item["result"]] == [[[1]], [[2]]]
    with pytest.raises(ConfigError, match=r"batched: is true, and output parts is seq"):
        make(path, batched=True)


def test_an_optional_output(tmp_path: Path) -> None:
    optional: Any = helper.make_optional_type_proto(tensor_type(FLOAT, ["n", 2]))
    path = write(
        tmp_path / "optional.onnx",
        [helper.make_node("Optional", ["x"], ["y"])],
        [("x", tensor_type(FLOAT, ["n", 2]))],
        [("y", optional)],
    )
    item: Any = {"data": np.array([[1, 2]], np.float32)}
    make(path).forward([item])
    assert item["result"].tolist() == [[1, 2]]


UNTAKEN: dict[str, tuple[Any, str]] = {
    "bfloat16": (
        tensor_type(TensorProto.BFLOAT16, ["n"]),
        r"is tensor\(bfloat16\), and NumPy lacks bfloat16: export the model with a Cast there, so "
        "that the {} is float32",
    ),
    "float8": (
        tensor_type(TensorProto.FLOAT8E4M3FN, ["n"]),
        r"NumPy lacks float8e4m3fn: .* so that the {} is float32",
    ),
    "uint4": (tensor_type(TensorProto.UINT4, ["n"]), r"NumPy lacks uint4: .* the {} is uint8"),
    "int4": (tensor_type(TensorProto.INT4, ["n"]), r"NumPy lacks int4: .* the {} is int8"),
}


@pytest.mark.parametrize("kind", list(UNTAKEN))
def test_types_that_numpy_lacks_are_refused_at_load(tmp_path: Path, kind: str) -> None:
    port, message = UNTAKEN[kind]
    plain = tensor_type(FLOAT, ["n"])
    to = port.tensor_type.elem_type
    for direction, nodes, inputs, outputs in [
        ("input", [helper.make_node("Cast", ["a"], ["b"], to=FLOAT)], port, plain),
        ("output", [helper.make_node("Cast", ["a"], ["b"], to=to)], plain, port),
    ]:
        path = write(tmp_path / "m.onnx", nodes, [("a", inputs)], [("b", outputs)])
        name = "a" if direction == "input" else "b"
        found = rf"the model .*m\.onnx: {direction} {name} .*" + message.format(direction)
        with pytest.raises(BackendError, match=found):
            make(path)


def test_inputs_that_are_no_tensors_are_refused_at_load(tmp_path: Path) -> None:
    sequence = sequence_type(tensor_type(FLOAT, None))
    optional: Any = helper.make_optional_type_proto(sequence)
    for kind, text in ((sequence, r"seq\(tensor"), (optional, r"optional\(seq\(tensor")):
        path = write(
            tmp_path / "m.onnx",
            [helper.make_node("Identity", ["a"], ["b"])],
            [("a", kind)],
            [("b", kind)],
        )
        with pytest.raises(BackendError, match=rf"input a is {text}.*: OnnxTensor takes tensors"):
            make(path)


@pytest.mark.parametrize("rows", ["n", 4])
def test_a_lone_map_of_each_row_goes_to_its_item(
    tmp_path: Path, rows: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        tmp_path / "zip.onnx",
        [
            helper.make_node(
                "ZipMap", ["x"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[3, 7]
            )
        ],
        [("x", tensor_type(FLOAT, [rows, 2]))],
        [("chances", sequence_type(map_type(INT64, tensor_type(FLOAT, None))))],
    )
    backend = make(path)
    assert backend.max == (4 if rows == 4 else UNBOUNDED) and caplog.text == ""
    backend.warm_up()
    data = np.arange(6, dtype=np.float32).reshape(3, 2)
    batch: Any = [{"data": data[:2], "request_size": 2}, {"data": data[2:]}]
    backend.forward(batch)
    assert [item["result"] for item in batch] == [[{3: 0, 7: 1}, {3: 2, 7: 3}], [{3: 4, 7: 5}]]
    batch = [{"data": data[2:]}]
    backend.forward(batch)
    assert batch[0]["result"] == [{3: 4, 7: 5}]
