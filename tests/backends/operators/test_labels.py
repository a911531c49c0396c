"""Labels from files, and from the metadata of ONNX models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock import Pipeline
from penstock.backends.errors import BackendError
from penstock.backends.model_metadata import read_metadata
from penstock.backends.operators.labels import names_of, read_labels
from penstock.pipelines.config.load import from_model


def save(path: Path, metadata: dict[str, str], shape: Any = ("N", 3, 1, 1)) -> Path:
    """Save a model that answers its three channels as scores."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


SCORES = np.array([[[[1]], [[3]], [[2]]]], np.float32)
ANIMALS = "{0: 'cat', 1: 'dog', 2: 'Äffin'}"


@pytest.mark.parametrize(
    "text",
    [
        ANIMALS,
        "{2: 'Äffin', 0: 'cat', 1: 'dog'}",
        '["cat", "dog", "Äffin"]',
        "['cat', 'dog', 'Äffin']",
        '{"0": "cat", "1": "dog", "2": "Äffin"}',
    ],
)
async def test_a_classifier_without_labels_takes_those_of_its_model(
    text: str, tmp_path: Path
) -> None:
    model = save(tmp_path / "model.onnx", {"task": "classify", "names": text, "empty": ""})
    node = {"backend": "S[OnnxTensor,SoftmaxArgMaxTensor]", "model": str(model), "top_k": 3}
    async with Pipeline.load(node) as pipeline:
        answer = await pipeline({"data": SCORES})
    assert answer["label"] == "dog"
    assert [entry["label"] for entry in answer["top"]] == ["dog", "Äffin", "cat"]


async def test_labels_that_the_file_names_come_first(tmp_path: Path) -> None:
    model = save(tmp_path / "model.onnx", {"names": ANIMALS})
    other = save(tmp_path / "other.onnx", {"names": "['a', 'b', 'c']"})
    (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
    node = {"backend": "S[OnnxTensor,SoftmaxArgMaxTensor]", "model": str(model)}
    for labels, expected in ((tmp_path / "labels.txt", "two"), (other, "b")):
        async with Pipeline.load({**node, "labels": str(labels)}) as pipeline:
            assert (await pipeline({"data": SCORES}))["label"] == expected


async def test_names_that_do_not_fit_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = save(tmp_path / "model.onnx", {"names": "['a', 'b']"})
    node = {"backend": "S[OnnxTensor,SoftmaxArgMaxTensor]", "model": str(model)}
    with caplog.at_level(logging.WARNING, "penstock.labels"):
        async with Pipeline.load(node) as pipeline:
            for _ in range(2):
                assert "label" not in await pipeline({"data": SCORES})
    (record,) = [record for record in caplog.records if record.name == "penstock.labels"]
    assert "model.onnx has 2 labels, but the model gives 3 scores" in record.getMessage()
    async with Pipeline.load({**node, "labels": str(model)}) as pipeline:
        with pytest.raises(BackendError, match=r"has 2 labels, but the model gives 3 scores"):
            await pipeline({"data": SCORES})


@pytest.mark.parametrize("metadata", [{}, {"names": "cat, dog"}, {"names": "{1: 'a', 2: 'b'}"}])
async def test_a_model_without_names_has_no_labels(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    model = save(tmp_path / "model.onnx", metadata)
    node = {"backend": "S[OnnxTensor,SoftmaxArgMaxTensor]", "model": str(model)}
    async with Pipeline.load(node) as pipeline:
        assert "label" not in await pipeline({"data": SCORES})
    with pytest.raises(BackendError, match=r"the labels .*model\.onnx can't be read: its metadata"):
        async with Pipeline.load({**node, "labels": str(model)}):
            pass


def test_a_bare_classifier_answers_the_names_of_its_model(tmp_path: Path) -> None:
    model = save(tmp_path / "model.onnx", {"names": ANIMALS})
    assert [port.name for port in from_model(model).outputs] == ["label", "class", "score"]
    assert read_labels(model) == ("cat", "dog", "Äffin")
    save(model, {"names": "['a', 'b']"})
    assert [port.name for port in from_model(model).outputs] == ["class", "score"]


@pytest.mark.parametrize("text", ["", "{", "7", "[]", "{}", "{'a': 'b'}", "[['a']]", "(" * 5000])
def test_texts_that_are_no_names(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list of texts, or a dict of them by class"):
        names_of(text)


def test_metadata_is_that_of_onnx(tmp_path: Path) -> None:
    metadata = {"names": ANIMALS, "": "", "long": "x" * 100_000}
    path = save(tmp_path / "model.onnx", metadata)
    assert read_metadata(path) == metadata
    whole = path.read_bytes()
    for cut in (whole[:-1], whole[: len(whole) // 2], b"hello", b"\xff" * 40, b"\x0b\x0c"):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=r"ONNX file|codec"):
            read_metadata(path)


@pytest.mark.parametrize(
    "nodes",
    [
        {"one": {"backend": "S[OnnxTensor(MODEL),SoftmaxArgMaxTensor]"}},
        {"one": {"backend": "S[OnnxTensor,SoftmaxArgMaxTensor]", "OnnxTensor::model": "MODEL"}},
        {
            "one": {
                "backend": "S[OnnxTensor,S[Identity,SoftmaxArgMaxTensor(top_k=2)]]",
                "OnnxTensor::model": "MODEL",
            }
        },
        {
            "one": {"backend": "SyncTensor[OnnxTensor]", "model": "MODEL", "next": "two"},
            "two": {"backend": "Identity", "next": "three"},
            "three": {"backend": "SoftmaxArgMaxTensor"},
        },
        {
            "one": {"backend": "OnnxTensor", "model": "MODEL", "next": "a,b"},
            "a": {"backend": "Identity", "next": "three"},
            "b": {"backend": "Identity", "next": "three"},
            "three": {"backend": "SoftmaxArgMaxTensor", "map": "a[result:data],b[result:other]"},
        },
    ],
)
async def test_the_model_is_the_engine_before_the_classifier(nodes: Any, tmp_path: Path) -> None:
    model = str(save(tmp_path / "model.onnx", {"names": ANIMALS}))
    config = {
        name: {key: value.replace("MODEL", model) for key, value in node.items()}
        for name, node in nodes.items()
    }
    async with Pipeline.load(config) as pipeline:
        assert (await pipeline({"data": SCORES}))["label"] == "dog"


async def test_two_models_before_a_classifier_give_it_no_labels(tmp_path: Path) -> None:
    model = str(save(tmp_path / "model.onnx", {"names": ANIMALS}))
    other = str(save(tmp_path / "other.onnx", {"names": ANIMALS}))
    nodes = {
        "a": {"backend": "OnnxTensor", "model": model, "next": "three"},
        "b": {"backend": "OnnxTensor", "model": other, "next": "three"},
        "root": {"backend": "Identity", "next": "a,b"},
        "three": {"backend": "SoftmaxArgMaxTensor", "map": "a[result:data],b[result:other]"},
    }
    async with Pipeline.load(nodes) as pipeline:
        assert "label" not in await pipeline({"data": SCORES})


def test_the_model_is_no_positional_argument(tmp_path: Path, make: Any) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\nthree\n")
    item = {"data": np.array([1.0, 3, 2])}
    make(f"SoftmaxArgMaxTensor({tmp_path / 'labels.txt'},2,false)").forward([item])
    assert [entry["score"] for entry in item["top"]] == [3.0, 2.0]
