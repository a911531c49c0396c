"""The pipeline of a bare ONNX classifier, and the models and labels that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.backends.base import Context
from penstock.backends.errors import ConfigError
from penstock.backends.item import Item
from penstock.pipelines.config.load import from_model

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"


def save_model(
    path: Path,
    shape: list[Any],
    *,
    operator: str = "Softmax",
    inputs: int = 1,
    output: list[Any] | None = None,
) -> Path:
    from onnx import TensorProto, helper, save

    names = [f"x{number}" for number in range(inputs)]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x0"], ["flat"]),
            helper.make_node(operator, ["flat"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, ["N", "K"] if output is None else output
            )
        ],
    )
    save(helper.make_model(graph), str(path))
    return path


def refusal(path: Path, labels: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        from_model(path, labels)
    return str(caught.value)


def test_a_classifier_with_labels_answers() -> None:
    config = from_model(DIGITS / "digits.onnx", DIGITS / "labels.txt")
    assert (config.name, list(config.nodes), [port.name for port in config.outputs]) == (
        "digits",
        ["prepare", "model"],
        ["label", "class", "score"],
    )
    item: Item = {"data": (DIGITS / "digit.png").read_bytes()}
    for node in config.nodes.values():
        backend = node.instance_groups[0].spec.create(Context(directory=config.directory))
        backend.forward([item])
        item["data"] = item.pop("result")
        backend.close()
    assert item["label"] in (DIGITS / "labels.txt").read_text().split("\n")


def test_softmax_is_left_out_if_the_model_has_one(tmp_path: Path) -> None:
    for operator, softmax in (("Softmax", False), ("Relu", True)):
        config = from_model(save_model(tmp_path / "m.onnx", ["N", 3, 4, 5], operator=operator))
        assert config.nodes["model"].instance_groups[0].spec.children[1].params.softmax is softmax
    prepare = config.nodes["prepare"].instance_groups[0].spec
    assert (
        prepare.children[1].params.resize_h,
        prepare.children[1].params.resize_w,
        prepare.children[2].params.color,
    ) == (4, 5, "rgb")


def test_a_model_that_is_not_a_classifier_answers_its_tensor(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", ["N", 1, 4, 5], output=["N", "K", 1])
    assert from_model(path).nodes["model"].instance_groups[0].spec.name == "OnnxTensor"
    assert "the model is not a classifier" in refusal(path, DIGITS / "labels.txt")


@pytest.mark.parametrize(
    ("shape", "description"),
    [
        (["N", 3, "H", "W"], "float N×3×H×W"),
        (["N", 2, 4, 4], "float N×2×4×4"),
        (["N", 4], "float N×4"),
        ([1, 4, 4, 3], "float 1×4×4×3"),
    ],
)
def test_inputs_that_are_not_an_image(tmp_path: Path, shape: list[Any], description: str) -> None:
    assert f"the model's input 'x0' is {description}: expected one image" in refusal(
        save_model(tmp_path / "m.onnx", shape)
    )


def test_models_and_files_that_are_refused(tmp_path: Path) -> None:
    assert "the model has 2 inputs" in refusal(
        save_model(tmp_path / "m.onnx", ["N", 3, 4, 4], inputs=2)
    )
    assert "no such file: expected an ONNX model" in refusal(tmp_path / "none.onnx")
    assert "no such file: expected the labels" in refusal(
        DIGITS / "digits.onnx", tmp_path / "none.txt"
    )


def test_labels_that_do_not_fit_the_model(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("zero\none\ntwo\n")
    assert "labels.txt: found 3 labels, expected 10: the classes of" in refusal(
        DIGITS / "digits.onnx", labels
    )
    labels.write_text("zero\n")
    assert "found 1 label, expected 10" in refusal(DIGITS / "digits.onnx", labels)
    # The model does not say how many classes it has: any number of labels fits.
    from_model(save_model(tmp_path / "open.onnx", ["N", 3, 8, 8]), labels)
    labels.write_bytes(b"\xff")
    assert "the labels can't be read" in refusal(DIGITS / "digits.onnx", labels)
    (tmp_path / "text.onnx").write_text("hello")
    assert "this is not a valid ONNX model" in refusal(tmp_path / "text.onnx")
