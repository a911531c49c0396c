"""The pipelines of the examples, run by their backends alone, without HTTP or a scheduler."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.image.convert import CvtColorMat, Mat2Tensor
from penstock.backends.image.decode import DecodeMat
from penstock.backends.image.resize import ResizeMat
from penstock.backends.item import Item
from penstock.backends.operators.classify import SoftmaxArgMaxTensor

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSES = {
    cls.__name__: cls
    for cls in (DecodeMat, ResizeMat, CvtColorMat, Mat2Tensor, OnnxTensor, SoftmaxArgMaxTensor)
}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chain(file: Path, node: str, **changes: Any) -> list[Any]:
    """Return the members of a node's S[...], each with the keys that it declares."""
    table = tomllib.loads(file.read_text())[node] | changes
    members = []
    for name in table["backend"].removeprefix("S[").removesuffix("]").split(","):
        cls: Any = CLASSES[name]
        keys = {key: value for key, value in table.items() if key in cls.parameters.model_fields}
        member = cls()
        member.init(
            cls.parameters(**keys), Context(directory=file.parent, node=node, max=table.get("max"))
        )
        members.append(member)
    return members


def answer(members: list[Any], files: list[bytes]) -> list[Item]:
    items: list[Item] = [{"data": data} for data in files]
    for index, member in enumerate(members):
        if index:
            for item in items:
                item["data"] = item.pop("result")
        for start in range(0, len(items), member.max):
            member.forward(items[start : start + member.max])
    return items


@pytest.fixture(scope="module")
def digits() -> list[Any]:
    return chain(EXAMPLES / "digits" / "digits.toml", "digits")


@pytest.fixture(scope="module")
def heldout() -> list[Any]:
    return list(load(EXAMPLES / "digits" / "data.py").heldout())


@pytest.mark.parametrize(("kind", "column"), [("PNG", 0), ("JPEG", 1)])
def test_digits_reads_the_held_out_images(
    digits: list[Any], heldout: list[Any], kind: str, column: int
) -> None:
    files = [row[column] for row in heldout]
    items = answer(digits, files)
    accuracy = np.mean([item["class"] == row[2] for item, row in zip(items, heldout, strict=True)])
    assert len(heldout) == 450 and accuracy >= 0.97
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert all(item["label"] == words[item["class"]] for item in items)
    for file, item in list(zip(files, items, strict=True))[::5]:
        (single,) = answer(digits, [file])
        assert single["label"] == item["label"] and single["score"] == pytest.approx(
            item["score"], abs=1e-4
        )


def test_the_sample_digit(digits: list[Any]) -> None:
    (item,) = answer(digits, [(EXAMPLES / "digits" / "digit.png").read_bytes()])
    assert item["label"] == "three"


def test_digits_is_small() -> None:
    assert (EXAMPLES / "digits" / "digits.onnx").stat().st_size < 1_000_000


def test_the_held_out_digits_are_not_in_the_training_set() -> None:
    data = load(EXAMPLES / "digits" / "data.py")
    train, held_out, _, _ = data.split()
    assert (len(train), len(held_out)) == (1347, 450)
    assert np.array_equal(held_out, data.split()[1])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_export(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    export = load(EXAMPLES / "resnet" / "export.py")
    network = export.build(name)
    keys = set(network.state_dict())
    assert {
        "conv1.weight",
        "layer1.0.bn1.running_var",
        "layer2.0.downsample.1.weight",
        "layer4.1.conv2.weight",
        "fc.bias",
    } <= keys
    assert len(keys) == {"resnet18": 122, "resnet50": 320}[name]  # as many as torchvision's
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    again = export.build(name, tmp_path / "weights.pth", seed=1)
    if name == "resnet50":
        return
    with pytest.warns(DeprecationWarning):
        export.export(again, tmp_path / "model.onnx", size=64)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        np.testing.assert_allclose(
            np.asarray(session.run(None, {"image": images.numpy()})[0]),
            network(images).numpy(),
            rtol=1e-3,
            atol=1e-3,
        )
