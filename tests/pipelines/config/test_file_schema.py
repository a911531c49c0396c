"""The JSON Schema of pipeline files: right files are valid, common mistakes are not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from penstock.app.cli.main import command_line
from penstock.pipelines.config.load import load

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*/*.toml"))

EVERY_KEY = """
batching_timeout = "2"
model = "a.onnx"
[global]
instance_num = 2
[pipeline]
version = 2
version_policy = { latest = 1 }
max_wait = "none"
timeout = "10"
entry = "a"
loop = true
[pipeline.inputs]
data = { kind = "tensor", dtype = "FP32", shape = [-1, 3], optional = true }
[pipeline.outputs.result]
kind = "json"
[pipeline.expose.b]
batched = false
[a]
backend = "OnnxTensor"
max = "1&8x3x4"
instance_num = "1&2"
mean = "1, 2, 3"
std = 255
batch_axis = { h = 1 }
warm_up = false
device = 0
next = ["b"]
[b]
backend = "S[OnnxTensor,Python[ops.py:Mine]]"
"OnnxTensor::threads" = 1
precision = "fp16"
mine = { any = ["thing"] }
executor = "thread"
map = "a[result:data]"
[labels]
next = "a"
[a.2]
borrow_from = "b"
"""


@pytest.fixture(scope="module")
def validator() -> Any:
    answer = CliRunner().invoke(command_line, ["schema"])
    assert answer.exit_code == 0
    schema = json.loads(answer.stdout)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_valid(validator: Any, file: Path) -> None:
    load(file)
    validator.validate(tomllib.loads(file.read_text()))


def test_every_way_to_write_a_key_is_valid(validator: Any) -> None:
    validator.validate(tomllib.loads(EVERY_KEY))


@pytest.mark.parametrize(
    "text",
    [
        "[pipeline]\ntiemout = 3",
        '[pipeline]\ntimeout = "soon"',
        '[pipeline.inputs]\ndata = { kind = "picture" }',
        "[pipeline.inputs]\ndata = { optinal = true }",
        '[a]\nexecutor = "threads"',
        "[a]\nbackend = 3",
        "[a]\nmodel = []",
        "[a]\nresize_h = 0",
    ],
)
def test_mistakes_are_not_valid(validator: Any, text: str) -> None:
    assert not validator.is_valid(tomllib.loads(text))


def test_keys_are_described(validator: Any) -> None:
    node = validator.schema["$defs"]["Node"]["properties"]
    assert "height of the result in pixels" in node["resize_h"]["description"]
    assert node["executor"]["default"] == "auto" and node["max"]["description"]
    assert all(
        port.get("description")
        for port in validator.schema["properties"]["pipeline"]["properties"].values()
    )
