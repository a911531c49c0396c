"""`penstock init`, and models that are served without a file: what is written works as it is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nudenet
import numpy as np
import orjson
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line
from penstock.pipelines.config.load import load

Run = Callable[..., Result]
DETECTOR = Path(nudenet.__file__).parent / "320n.onnx"


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: Any) -> Result:
        return CliRunner().invoke(command_line, [str(argument) for argument in arguments])

    return invoke


def save_means(path: Path, height: Any = "H", width: Any = "W", channels: int = 3) -> Path:
    """Write a model whose scores are the means of the channels."""
    shape = ["N", channels, height, width]
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["means"]),
            helper.make_node("Flatten", ["means"], ["scores"]),
        ],
        "means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", channels])],
    )
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))
    return path


def save_sum(path: Path) -> Path:
    """Write a model of two tensors that adds them."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("a", "b", "c")
    ]
    nodes = [helper.make_node("Add", ["a", "b"], ["c"])]
    graph = helper.make_graph(nodes, "sum", tensors[:2], tensors[2:])
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(path))
    return path


def test_a_classifier(run: Run, digits: Path, tmp_path: Path) -> None:
    folder = digits.parent
    arguments = ("--mean", 77, "--std", 95, "--labels", folder / "labels.txt")
    target = tmp_path / "written.toml"
    answer = run("init", folder / "digits.onnx", *arguments, "-o", target)
    assert answer.exit_code == 0 and not answer.stderr, answer.stderr
    assert f"penstock serve {target}" in answer.stdout
    assert run("check", target).stderr == ""
    written = run("call", target, folder / "digit.png")
    bare = run("call", folder / "digits.onnx", folder / "digit.png", *arguments)
    assert written.stdout == bare.stdout and '"label":"three"' in bare.stdout
    text = target.read_text()
    assert "# Takes image (float batch×1×8×8); gives logits (float batch×10)." in text
    again = run("init", folder / "digits.onnx", "-o", target)
    assert again.exit_code == 1 and "--force" in again.stderr and target.read_text() == text
    forced = run("init", folder / "digits.onnx", "-o", target, "--force")
    assert forced.exit_code == 0 and "looks trained on normalised" in forced.stderr
    assert "# mean = [" in target.read_text()


def test_a_real_detector_needs_a_preset_and_a_size_alone(
    run: Run, digits: Path, tmp_path: Path
) -> None:
    image = digits.parents[1] / "detector" / "astronaut.jpg"
    answer = run("call", DETECTOR, image)
    assert answer.exit_code == 1 and "such as" not in answer.stderr
    assert "give it, height and width, as in --size 224x224" in answer.stderr
    target = tmp_path / "faces.toml"
    assert run("init", DETECTOR, "--preset", "yolo", "--size", 320, "-o", target).exit_code == 0
    for source in ((target,), (DETECTOR, "--preset", "yolo", "--size", "320x320")):
        answer = run("call", source[0], image, *source[1:])
        assert answer.exit_code == 0, answer.stderr
        (box,) = orjson.loads(answer.stdout)["result"]
        assert box["label"].startswith("FACE_") and box["score"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--preset", "imagenet"), {"mean": (123.675, 116.28, 103.53), "size": (224, 224)}),
        (("--preset", "imagenet", "--color", "bgr"), {"mean": (103.53, 116.28, 123.675)}),
        (("--preset", "unit", "--size", "32x64"), {"std": (255,), "mean": None, "size": (32, 64)}),
        (("--mean", "1,2,3", "--std", "4", "--size", 8), {"mean": (1, 2, 3), "std": (4,)}),
        (("--preset", "imagenet", "--std", "2", "--size", "8,9"), {"std": (2,), "size": (8, 9)}),
    ],
)
def test_options_of_images(
    run: Run, tmp_path: Path, arguments: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    save_means(tmp_path / "means.onnx")
    answer = run("init", tmp_path / "means.onnx", *arguments)
    assert answer.exit_code == 0, answer.stderr
    config = load(tmp_path / "means.toml")
    resize = config.nodes["prepare"].instance_groups[0].spec.children[1].params
    engine = config.nodes["model"].instance_groups[0].spec.children[0].params
    found = {"size": (resize.resize_h, resize.resize_w), "mean": engine.mean, "std": engine.std}
    assert {key: found[key] for key in expected} == expected
    assert run("check", tmp_path / "means.toml").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--preset", "imagnet"), "did you mean 'imagenet'?"),
        (("--size", "big"), "found 'big': expected height and width, as in 320x320"),
        (("--size", "9x8"), "found the size 9x8: leave it out"),
        (("--color", "pink"), "expected one of gray, rgb, bgr"),
        (("--color", "gray"), "the model takes 3 channels: expected rgb or bgr"),
        (("--mean", "1,2"), "found 2 values: expected 1 or 3"),
        (("--mean", "0.5", "--std", "0.5"), "expected mean 127.5 std 127.5"),
    ],
)
def test_options_that_do_not_fit(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    model = save_means(tmp_path / "means.onnx", 8, 8)
    for command in ("init", "serve", "check"):
        answer = run(command, model, *arguments)
        assert answer.exit_code and expected in answer.stderr
    assert not (tmp_path / "means.toml").exists()


def test_what_is_no_model(run: Run, tmp_path: Path) -> None:
    for path in (Path(), Path("/"), tmp_path):
        answer = run("init", path)
        assert answer.exit_code == 1, answer.exception
        assert answer.stderr.startswith(f"{path}: expected an ONNX model (.onnx)")


def test_a_size_keeps_what_the_model_fixes(run: Run, tmp_path: Path) -> None:
    model = save_means(tmp_path / "means.onnx", 48)
    refused = run("init", model, "--size", "64")
    assert refused.exit_code == 1 and "found the size 64x64: expected 48xANY" in refused.stderr
    assert run("init", model, "--size", "48x320").exit_code == 0


def test_options_of_images_are_for_bare_models(run: Run, digits: Path) -> None:
    answer = run("check", digits, "--preset", "imagenet")
    assert answer.exit_code == 1 and "--preset: this goes with a bare .onnx model" in answer.stderr


def test_a_warning_for_raw_pixels(run: Run, tmp_path: Path) -> None:
    weights = np.ones((2, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"])],
        "strong",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 6, 6])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = tmp_path / "strong.onnx"
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, opset_imports=[opset], ir_version=9), str(model))
    warned = run("check", model)
    assert warned.exit_code == 0 and "looks trained on normalised ones" in warned.stderr
    for arguments in (("--preset", "imagenet"), ("--preset", "raw"), ("--std", 255)):
        assert run("check", model, *arguments).stderr == ""


def test_a_bare_model_is_served(spawn: Any, digits: Path, digit: bytes) -> None:
    model = digits.parent / "digits.onnx"
    server = spawn("serve", model, "--size", "8", "--color", "gray", "--port", 0)
    with server.listening() as client:
        server.wait_for("WARNING penstock.serve .* looks trained on normalised ones: give --preset")
        server.wait_for("ready after .* s: digits")
        assert "class" in client.put("/predict/digits", content=digit).json()


def test_a_model_of_tensors(run: Run, tmp_path: Path) -> None:
    model = save_sum(tmp_path / "sum.onnx")
    assert run("init", model).exit_code == 0
    tables = tomllib.loads((tmp_path / "sum.toml").read_text())
    port = {"kind": "tensor", "dtype": "float32", "shape": [-1, 4]}
    assert tables["pipeline"]["inputs"] == {"a": port, "b": port}
    assert tables["pipeline"]["outputs"] == {"c": port}
    answer = run("check", tmp_path / "sum.toml")
    assert answer.exit_code == 0 and "a: FP32[-1,4], b: FP32[-1,4]" in answer.stdout
    refused = run("init", tmp_path / "sum.pt")
    assert refused.exit_code == 1 and "expected an ONNX model" in refused.stderr


def test_a_project_works_as_written(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "bright"
    answer = run("init", "--project", folder)
    assert answer.exit_code == 0, answer.stderr
    names = {file.name for file in folder.iterdir()}
    assert names == {"pipeline.toml", "backend.py", "test_pipeline.py", "Dockerfile"}
    assert run("check", folder / "pipeline.toml").stderr == ""
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert tests.returncode == 0 and "3 passed" in tests.stdout, tests.stdout
    dockerfile = (folder / "Dockerfile").read_text()
    copied = dockerfile.partition("COPY ")[2].partition(" /pipeline")[0].split()
    assert set(copied) <= names and 'CMD ["pipeline.toml"]' in dockerfile
    again = run("init", "--project", folder)
    assert again.exit_code == 1 and "--force" in again.stderr
