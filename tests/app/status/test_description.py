"""What /status says of a pipeline that does not change: enough for a form and a drawing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from penstock.app.status.description import MAX_LABELS, describe
from penstock.backends.base import Backend, Context, Signature, TensorPort
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline


class Line(BaseModel):
    text: str
    confidence: float = 1.0


@register_backend("StatusEngine")
class Engine(Backend):
    def init(self, params: Any, context: Context) -> None:
        self.max = 5
        self.signature = Signature(
            (TensorPort("ids", "int64", (-1, 8)),), (TensorPort("y", "bfloat16", (-1, 3)),), True
        )


@register_backend("StatusStream")
async def stream(item: Item, call: Any) -> AsyncIterator[int]:
    yield 1


def described(source: dict[str, Any]) -> dict[str, Any]:
    return describe(load({"pipeline": {"name": "it"}, **source}), None)


NODE = {"net": {"backend": "Identity"}}


def test_a_pipeline_that_declares_nothing_takes_an_image() -> None:
    it = described(NODE)
    (port,) = it["inputs"]
    assert (port["name"], port["kind"], port["optional"]) == ("data", "image", False)
    assert [output["name"] for output in it["outputs"]] == ["result"]


def test_declared_ports_are_complete() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
    inputs = {
        "photo": {"kind": "image", "media_types": ["image/png"], "description": "Of a page."},
        "area": {"kind": "tensor", "dtype": "float32", "shape": [-1, 4], "optional": True},
        "options": {"schema": schema},
        "words": {"kind": "list", "items": {"kind": "text"}},
        "model": {"schema": f"{__name__}:Line"},
    }
    outputs = {"lines": {"kind": "list", "items": {"schema": f"{__name__}:Line"}}}
    it = described(
        {"pipeline": {"name": "it", "inputs": inputs, "outputs": outputs, "timeout": 5}, **NODE}
    )
    photo, area, options, words, model = it["inputs"]
    assert photo["media_types"] == ("image/png",) and photo["description"] == "Of a page."
    assert area["kind"] == "tensor" and area["dtype"] == "float32" and area["shape"] == (-1, 4)
    assert area["optional"] and not photo["optional"]
    assert options["schema"] == schema and options["example"] == {"a": 1}
    assert words["kind"] == "list" and words["items"]["kind"] == "text"
    assert model["schema"]["properties"]["text"]["type"] == "string"
    result, lines = it["outputs"]
    assert result["name"] == "result"
    assert lines["items"]["schema"]["title"] == "Line"
    assert it["timeout_s"] == 5


def test_a_streamed_input_and_an_answer_in_parts() -> None:
    it = described(
        {
            "pipeline": {"name": "it", "inputs": {"audio": {"kind": "bytes", "stream": True}}},
            "logic": {"backend": "StatusStream"},
        }
    )
    assert it["stream_input"] == "audio" and it["inputs"][0]["stream"]
    assert it["streams"]


def test_the_graph() -> None:
    it = described(
        {
            "pipeline": {"name": "it", "expose": {"b": {}}},
            "a": {
                "backend": "S[Identity,StatusEngine]",
                "next": "b",
                "max": 4,
                "instance_num": 2,
                "batching_timeout": 3,
            },
            "b": {"backend": "Identity", "next": "c", "filter": "Run"},
            "c": {"backend": "Jump", "jump": "d"},
            "d": {"backend": "Identity"},
        }
    )
    nodes = {node["name"]: node for node in it["graph"]["nodes"]}
    a = nodes["a"]
    assert a["expression"] == "S[Identity,StatusEngine]" and a["backend"] == "StatusEngine"
    assert (a["max"], a["min"], a["instances"], a["batching_timeout_ms"]) == (4, 1, 2, 3)
    assert nodes["b"]["exposed"] and not a["exposed"]
    assert nodes["c"]["kind"] == "composite" and nodes["c"]["instances"] == 0
    edges = [
        (edge["from"], edge["to"], edge["kind"], edge["filter"]) for edge in it["graph"]["edges"]
    ]
    assert edges == [
        ("a", "b", "next", "Run"),
        ("b", "c", "next", None),
        ("c", "d", "calls", None),
    ]


async def test_engines_tell_what_a_file_leaves_out() -> None:
    inputs = {"tokens": {"kind": "tensor"}}
    source = {"pipeline": {"name": "it", "inputs": inputs}, "net": {"backend": "StatusEngine"}}
    async with Pipeline.load(source) as pipeline:
        it = describe(pipeline.config, pipeline)
    (tokens,) = it["inputs"]
    assert (tokens["dtype"], tokens["shape"]) == ("int64", (-1, 8))
    (result,) = it["outputs"]
    assert (result["name"], result["kind"]) == ("result", "tensor")
    assert (result["dtype"], result["shape"]) == ("bfloat16", (-1, 3))
    assert it["graph"]["nodes"][0]["max"] == 5  # of the loaded backend


async def test_labels_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("\n".join(map(str, range(5000))))
    outputs = {"scores": {"kind": "tensor", "labels": str(tmp_path / "many.txt")}}
    source = {"pipeline": {"name": "it", "outputs": outputs}, "net": {"backend": "Identity"}}
    async with Pipeline.load(source) as pipeline:
        labels = describe(pipeline.config, pipeline)["outputs"][1]["labels"]
    assert labels == [str(number) for number in range(MAX_LABELS)]


async def test_a_file_of_labels_that_is_gone(tmp_path: Path) -> None:
    """The labels are those that were read with the pipeline."""
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb")
    outputs = {"scores": {"kind": "tensor", "labels": str(labels)}}
    source = {"pipeline": {"name": "it", "outputs": outputs}, "net": {"backend": "Identity"}}
    async with Pipeline.load(source) as pipeline:
        labels.unlink()
        result, scores = describe(pipeline.config, pipeline)["outputs"]
    assert (result["name"], scores["name"], scores["labels"]) == ("result", "scores", ["a", "b"])
