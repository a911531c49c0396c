"""Networks of ONNX models: preprocessing of the inputs, post-processing of the outputs, and the
types of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.engines.tensorrt.network import parse
from penstock.backends.engines.tensorrt.profiles import Input
from penstock.backends.errors import BackendError, ConfigError

FLOAT = TensorProto.FLOAT
MEAN, STD = "123.675,116.28,103.53", "58.395,57.12,57.375"


def ports(definition: Any) -> Any:
    ins = [definition.get_input(index) for index in range(definition.num_inputs)]
    outs = [definition.get_output(index) for index in range(definition.num_outputs)]
    return [
        [(port.name, port.dtype.name, tuple(port.shape)) for port in side] for side in (ins, outs)
    ]


def test_a_model_keeps_its_inputs_and_outputs(prepared: Any, two: Path) -> None:
    inputs, outputs = ports(prepared(two).network.definition)
    assert inputs == [("a", "FLOAT", (-1, 3)), ("b", "FLOAT", (-1, 3))]
    assert outputs == [("sum", "FLOAT", (-1, 3)), ("dif", "FLOAT", (-1, 3))]


def test_networks_are_strongly_typed(recipe: Any, two: Path, library: Library) -> None:
    """Check the flag, since TensorRT 10 makes weakly typed networks too."""
    asked = []

    class Asked:
        def create_network(self, flags: Any) -> Any:
            asked.append(flags)
            return library.trt.Builder(library.logger).create_network(flags)

    network = parse(recipe(two), library, Asked(), [])
    assert asked == [
        1 << int(library.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    ] and network.inputs == [
        Input("a", (-1, 3)),
        Input("b", (-1, 3)),
    ]


def test_mean_and_std_are_the_first_layers(prepared: Any, resnet18: Path, layers: Any) -> None:
    definition = prepared(resnet18, mean=MEAN, std=STD).network.definition
    assert ports(definition)[0] == [("image", "FLOAT", (-1, 3, 64, 64))]
    by_name = layers(definition)
    first = [
        name
        for name in by_name
        if not name.startswith(("ONNXTRT", "penstock_mean", "penstock_std"))
    ][:4]
    assert first == ["penstock_cast", "penstock_Sub", "penstock_Mul", "penstock_cast_1"]
    assert (
        by_name["penstock_Sub"].get_output(0).dtype.name
        == by_name["penstock_Mul"].get_output(0).dtype.name
        == "FLOAT"
    )


def test_nhwc_is_transposed_inside_the_network(
    prepared: Any, resnet18: Path, layers: Any, library: Any
) -> None:
    definition = prepared(resnet18, mean=MEAN, std=STD, data_format="nhwc").network.definition
    assert ports(definition)[0] == [("image", "FLOAT", (-1, 64, 64, 3))]
    turned = layers(definition)["image_nchw_transpose"]
    turned.__class__ = library.trt.IShuffleLayer
    assert tuple(turned.first_transpose)[:4] == (0, 3, 1, 2) and tuple(
        turned.get_output(0).shape
    ) == (-1, 3, 64, 64)


def test_nhwc_keeps_open_sizes(prepared: Any, image: Path) -> None:
    definition = prepared(image, data_format="nhwc", max="2x64x64x3").network.definition
    assert ports(definition)[0] == [("image", "FLOAT", (-1, -1, -1, 3))]


def test_softmax_after_the_model(
    prepared: Any, scores: Path, layers: Any, library: Library
) -> None:
    definition = prepared(scores, postprocessor="Softmax").network.definition
    assert ports(definition)[1] == [("scores", "FLOAT", (-1, 5))]
    softmax = layers(definition)["penstock_softmax"]
    softmax.__class__ = library.trt.ISoftMaxLayer
    assert softmax.axes == 1 << 1  # over the classes, not over the batch


@pytest.mark.parametrize(
    ("postprocessor", "softmax"), [("ArgMax", False), ("SoftmaxArgMax", True), ("SoftmaxMax", True)]
)
def test_the_network_finds_the_best_classes(
    prepared: Any, scores: Path, layers: Any, library: Library, postprocessor: str, softmax: Any
) -> None:
    definition = prepared(scores, postprocessor=postprocessor, top_k=3).network.definition
    assert ports(definition)[1] == [
        ("penstock_scores", "FLOAT", (-1, 3)),
        ("penstock_classes", "INT32", (-1, 3)),
    ]
    by_name = layers(definition)
    assert ("penstock_softmax" in by_name) is softmax
    best = by_name["penstock_topk"]
    best.__class__ = library.trt.ITopKLayer
    assert best.k == 3 and best.op == library.trt.TopKOperation.MAX


def test_softmax_is_computed_in_float32(
    prepared: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    half = TensorProto.FLOAT16
    path = write(
        tmp_path / "half.onnx",
        [("Relu", ["x"], ["y"])],
        [("x", half, ["n", 5])],
        [("y", half, ["n", 5])],
    )
    definition = prepared(path, postprocessor="SoftmaxArgMax").network.definition
    assert ports(definition) == [
        [("x", "HALF", (-1, 5))],
        [("penstock_scores", "FLOAT", (-1, 1)), ("penstock_classes", "INT32", (-1, 1))],
    ]


@pytest.mark.parametrize(
    ("model", "keys", "key", "message"),
    [
        (
            "two",
            {"postprocessor": "Softmax"},
            "postprocessor",
            "one output, N×K scores; .* has sum of 2 axes, dif of 2",
        ),
        (
            "image",
            {"postprocessor": "ArgMax", "max": "1x3x8x8"},
            "postprocessor",
            "features of 4 axes",
        ),
        (
            "scores",
            {"postprocessor": "ArgMax", "top_k": 6},
            "top_k",
            "top_k is 6, but output scores of .* has 5 scores",
        ),
        (
            "scores",
            {"data_format": "nhwc"},
            "data_format",
            "needs a first input of 4 axes, N×C×H×W, found 2",
        ),
        (
            "image",
            {"mean": "1,2"},
            "mean",
            "mean has 2 values, but neither the second nor the last axis of the first input "
            "Nx3xNxN has",
        ),
        ("image", {"std": "1,0,1"}, "std", "must not contain 0"),
        ("image", {"max": "4"}, "max", r"axis 2, 3 of input image \(Nx3xNxN\) is open too"),
    ],
)
def test_keys_that_do_not_fit_the_model(
    prepared: Any, request: Any, model: Any, keys: Any, key: Any, message: str
) -> None:
    path = request.getfixturevalue(model)
    with pytest.raises(ConfigError, match=message) as caught:
        prepared(path, **keys)
    (problem,) = caught.value.problems
    assert (problem.node, problem.key) == ("net", key) and str(path) in problem.message


def test_an_operator_that_tensorrt_lacks_is_named(
    prepared: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    nodes = [
        ("Relu", ["x"], ["y"]),
        ("Nope", ["y"], ["z"], {"name": "strange", "domain": "nowhere"}),
    ]
    path = write(tmp_path / "nope.onnx", nodes, [("x", FLOAT, ["n", 5])], [("z", FLOAT, ["n", 5])])
    with pytest.raises(
        BackendError,
        match=rf"node 'net': .* can't use the model {path}: node 1 \(Nope strange\): the operator "
        r"Nope is not",
    ):
        prepared(path)


def test_an_operator_that_tensorrt_refuses_without_a_reason_is_named(
    prepared: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(
        tmp_path / "unique.onnx",
        [("Unique", ["x"], ["y"], {"name": "few"})],
        [("x", FLOAT, ["n", 5])],
        [("y", FLOAT, ["m"])],
    )
    with pytest.raises(
        BackendError,
        match=rf"can't use the model {path}: node 0 \(Unique few\): the operator Unique is not "
        r"supported$",
    ):
        prepared(path)


def test_a_truncated_model_is_named(prepared: Any, resnet18: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(resnet18.read_bytes()[:100_000])
    with pytest.raises(
        BackendError, match=rf"node 'net': .*{path} is not an ONNX file, or is truncated"
    ):
        prepared(path)
    path.write_bytes(b"")
    with pytest.raises(BackendError, match=f"{path} is not an ONNX file: its graph has no output"):
        prepared(path)


def test_a_model_that_does_not_exist_is_named(prepared: Any, tmp_path: Path) -> None:
    with pytest.raises(
        BackendError,
        match=f"node 'net': TensorrtTensor: the model {tmp_path}/no.onnx does not exist",
    ):
        prepared(tmp_path / "no.onnx")


def test_an_input_that_is_a_shape_tensor_is_refused(
    prepared: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    nodes = [("Reshape", ["x", "shape"], ["y"])]
    inputs = [("x", FLOAT, ["n", 4]), ("shape", TensorProto.INT64, [2])]
    path = write(tmp_path / "shape.onnx", nodes, inputs, [("y", FLOAT, ["a", "b"])])
    with pytest.raises(
        BackendError, match=r"input shape of .* is a shape tensor: expected inputs that are data"
    ):
        prepared(path)


def test_weights_beside_the_model_are_found(
    prepared: Any, write: Callable[..., Path], tmp_path: Path, layers: Any
) -> None:
    path = write(
        tmp_path / "apart.onnx",
        [("MatMul", ["x", "w"], ["y"], {"name": "multiply"})],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        [("w", np.eye(64, dtype=np.float32))],
    )
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    for precision in ("fp32", "fp16"):
        assert "multiply" in layers(prepared(path, precision=precision).network.definition)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BackendError, match=r"apart\.onnx"):
        prepared(path)
