"""The types in which the layers of a network compute."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from penstock.backends.engines.precision import convert, converter_name
from penstock.backends.engines.tensorrt.build import build
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.engines.tensorrt.progress import Progress
from penstock.backends.errors import ConfigError

FLOAT = TensorProto.FLOAT


def types_of(layers: Any, definition: Any, kinds: Any = ("CONVOLUTION", "MATRIX_MULTIPLY")) -> Any:
    return {
        name: layer.get_output(0).dtype.name
        for name, layer in layers(definition).items()
        if layer.type.name in kinds
    }


def test_the_models_own_types_are_kept(prepared: Any, resnet18: Path, layers: Any) -> None:
    for precision in (None, "fp32"):
        assert set(
            types_of(layers, prepared(resnet18, precision=precision).network.definition).values()
        ) == {"FLOAT"}


@pytest.mark.parametrize("precision", ["fp16", "best"])
def test_fp16_converts_layers_and_leaves_inputs_and_outputs(
    prepared: Any, resnet18: Path, layers: Any, precision: Any
) -> None:
    definition = prepared(resnet18, precision=precision, mean="1", std="2").network.definition
    types = types_of(layers, definition)
    assert len(types) >= 20 and set(types.values()) == {"HALF"}
    assert (
        definition.get_input(0).dtype.name == "FLOAT"
        and definition.get_output(0).dtype.name == "FLOAT"
    )
    # 16 bits would lose digits of mean and std.
    assert layers(definition)["penstock_Mul"].get_output(0).dtype.name == "FLOAT"


def test_layers_by_name_stay_in_fp32(prepared: Any, resnet18: Path, layers: Any) -> None:
    dtypes = types_of(
        layers,
        prepared(
            resnet18, precision="fp16", **{"precision::fp32": "/fc/,layer4"}
        ).network.definition,
    )
    kept = {name for name, dtype in dtypes.items() if dtype == "FLOAT"}
    assert kept == {name for name in dtypes if "/fc/" in name or "layer4" in name} and len(kept) > 2


def run(model: Any, **inputs: Any) -> Any:
    """Run the model on the CPU, with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    ).run(None, inputs)


@pytest.mark.parametrize("kept", ["conv1", "fc", "conv1,/fc/", "layer1/layer1.0", "/"])
def test_models_with_some_layers_in_fp32_run_and_give_the_same_scores(
    resnet18: Path, library: Library, recipe: Any, kept: Any
) -> None:
    image = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    model = onnx.load(resnet18)
    converted = convert(onnx.load(resnet18), "fp16", kept.split(","))
    assert [output.type.tensor_type.elem_type for output in converted.graph.output] == [FLOAT]
    onnx.checker.check_model(converted)
    ((exact,), (converted_scores,)) = run(model, image=image), run(converted, image=image)
    assert (
        converted_scores.dtype == np.float32
        and np.abs(converted_scores - exact).max() < 0.02 * np.abs(exact).max()
    )
    assert (kept == "/") == np.array_equal(converted_scores, exact)
    assert build(
        recipe(resnet18, (1,), precision="fp16", **{"precision::fp32": kept}), library, Progress()
    )


def test_outputs_of_layers_in_fp32_are_not_rounded(
    prepared: Any, resnet18: Path, layers: Any
) -> None:
    """Check outputs of the network, and scores that the softmax reads."""
    for postprocessor in (None, "SoftmaxArgMax"):
        params = {"precision": "fp16", "precision::fp32": "fc", "postprocessor": postprocessor}
        definition = prepared(resnet18, **params).network.definition
        assert definition.get_output(0).dtype.name == "FLOAT"
        by_name = layers(definition)
        (last,) = [layer for name, layer in by_name.items() if layer.type.name == "MATRIX_MULTIPLY"]
        assert last.get_output(0).dtype.name == "FLOAT"
        if postprocessor is not None:
            assert by_name["penstock_softmax"].get_input(0).dtype.name == "FLOAT"
        names = list(by_name)
        rest = [by_name[name] for name in names[names.index(last.name) :]]
        assert not [layer.name for layer in rest if layer.get_output(0).dtype.name == "HALF"]


def test_sizes_made_floats_by_a_cast(write: Callable[..., Path], tmp_path: Path) -> None:
    """Exporters write the scale of attention like this. 4097 has no place in float16."""
    path = write(
        tmp_path / "scale.onnx",
        [
            ("Shape", ["x"], ["shape"], {}),
            ("Gather", ["shape", "last"], ["width"], {}),
            ("Cast", ["width"], ["size"], {"to": FLOAT}),
            ("Sqrt", ["size"], ["root"], {}),
            ("Div", ["x", "root"], ["y"], {}),
            ("Cast", ["y"], ["same"], {"to": FLOAT}),
            ("Add", ["same", "same"], ["twice"], {}),
        ],
        [("x", FLOAT, ["n", 4097])],
        [("twice", FLOAT, ["n", 4097]), ("size", FLOAT, [])],
        [("last", np.int64(1))],
    )
    x = np.random.default_rng(0).random((2, 4097), np.float32)
    converted = convert(onnx.load(path), "fp16")
    onnx.checker.check_model(converted)
    twice, size = run(converted, x=x)
    assert size == 4097 and np.allclose(twice, 2 * x / 4097**0.5, atol=1e-4)


def test_casts_in_subgraphs(write: Callable[..., Path], tmp_path: Path) -> None:
    def branch(name: str) -> Any:
        nodes = [
            helper.make_node("Shape", ["x"], [f"{name}_shape"]),
            helper.make_node("Cast", [f"{name}_shape"], [f"{name}_sizes"], to=FLOAT),
            helper.make_node("ReduceSum", [f"{name}_sizes"], [f"{name}_sum"], keepdims=0),
            helper.make_node("Mul", ["x", f"{name}_sum"], [f"{name}_y"]),
        ]
        output = helper.make_tensor_value_info(f"{name}_y", FLOAT, None)
        return helper.make_graph(nodes, name, [], [output])

    path = write(
        tmp_path / "branches.onnx",
        [
            ("ReduceSum", ["x"], ["total"], {"keepdims": 0}),
            ("Greater", ["total", "zero"], ["positive"], {}),
            ("If", ["positive"], ["y"], {"then_branch": branch("a"), "else_branch": branch("b")}),
        ],
        [("x", FLOAT, ["n", 3])],
        [("y", FLOAT, ["n", 3])],
        [("zero", np.float32(0))],
    )
    x = np.ones((2, 3), np.float32)
    (y,) = run(convert(onnx.load(path), "fp16"), x=x)
    assert y.tolist() == (5 * x).tolist()


def test_an_output_that_other_layers_read_is_exact_and_they_read_it_rounded(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    nodes = [
        ("MatMul", ["x", "w"], ["kept"], {"name": "first"}),
        ("MatMul", ["kept", "w"], ["then"], {"name": "second"}),
        ("MatMul", ["kept", "w"], ["also"], {"name": "first_again"}),
    ]
    shape = ["n", 4]
    ports = [(name, FLOAT, shape) for name in ("then", "kept", "also")]
    path = write(
        tmp_path / "chain.onnx",
        nodes,
        [("x", FLOAT, shape)],
        ports,
        [("w", np.full((4, 4), 1 / 3, np.float32))],
    )
    converted = convert(onnx.load(path), "fp16", ["first"])
    onnx.checker.check_model(converted)
    assert [output.name for output in converted.graph.output] == ["then", "kept", "also"]
    x = np.random.default_rng(0).random((1, 4), np.float32)
    exact, rounded = run(onnx.load(path), x=x), run(converted, x=x)
    assert np.array_equal(rounded[1], exact[1]) and np.array_equal(rounded[2], exact[2])
    assert (
        rounded[0].dtype == np.float32
        and not np.array_equal(rounded[0], exact[0])
        and np.allclose(rounded[0], exact[0], rtol=2e-3)
    )


def test_outputs_of_operators_that_the_converter_blocks_stay_float32(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    nodes = [("MatMul", ["x", "w"], ["scores"]), ("TopK", ["scores", "k"], ["best", "places"])]
    outputs = [("best", FLOAT, ["n", 2]), ("places", TensorProto.INT64, ["n", 2])]
    weights = [("w", np.eye(4, dtype=np.float32)), ("k", np.array([2]))]
    path = write(tmp_path / "top.onnx", nodes, [("x", FLOAT, ["n", 4])], outputs, weights)
    best, places = run(convert(onnx.load(path), "fp16"), x=np.array([[1, 4, 3, 2]], np.float32))
    assert best.dtype == np.float32 and best.tolist() == [[4, 3]] and places.tolist() == [[1, 2]]


def test_a_name_that_fits_no_layer_is_an_error(prepared: Any, resnet18: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"precision::fp32: .*has '/fc/Gem9', but no node's name contains it, did you mean "
        r"'/fc/Gemm'",
    ):
        prepared(resnet18, precision="fp16", **{"precision::fp32": "layer4,/fc/Gem9"})


def test_fp16_of_fp16_is_the_same(
    prepared: Any, write: Callable[..., Path], tmp_path: Path, layers: Any
) -> None:
    half = TensorProto.FLOAT16
    weights = [("w", np.eye(4, dtype=np.float16))]
    path = write(
        tmp_path / "half.onnx",
        [("MatMul", ["x", "w"], ["y"], {"name": "multiply"})],
        [("x", half, ["n", 4])],
        [("y", half, ["n", 4])],
        weights,
    )
    assert types_of(layers, prepared(path, precision="fp16").network.definition) == {
        "multiply": "HALF"
    }


def test_weights_beyond_float16_are_clipped_and_nodes_need_no_name(
    prepared: Any, write: Callable[..., Path], tmp_path: Path, layers: Any
) -> None:
    weights = [("w", np.full((4, 4), 3e5, np.float32)), ("v", np.full((4, 4), 5e4, np.float32))]
    nodes = [("MatMul", ["x", "w"], ["y"]), ("MatMul", ["x", "v"], ["z"])]
    path = write(
        tmp_path / "large.onnx",
        nodes,
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4]), ("z", FLOAT, ["n", 4])],
        weights,
    )
    assert set(types_of(layers, prepared(path, precision="fp16").network.definition).values()) == {
        "HALF"
    }
    converted = convert(onnx.load(path), "fp16")
    weights_after = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in converted.graph.initializer
    }
    assert weights_after["w"].dtype == np.float16 and weights_after["w"].max() == 65504
    assert weights_after["v"].max() == np.float16(5e4)


def quantized(write: Callable[..., Path], path: Path, kind: Any, scale: Any = 0.1) -> Any:
    """Save a model of relu(x), with x rounded to `kind` and back."""
    zero = onnx.helper.make_tensor("zero", kind, [], [0])
    nodes = [
        ("QuantizeLinear", ["x", "scale", "zero"], ["q"], {"name": "quantize"}),
        ("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        ("Relu", ["d"], ["y"]),
    ]
    write(
        path,
        nodes,
        [("x", FLOAT, ["n", 16])],
        [("y", FLOAT, ["n", 16])],
        [("scale", np.float32(scale))],
        opset=19,
    )
    model = onnx.load(path)
    model.graph.initializer.append(zero)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN), ("best", TensorProto.INT8)],
)
def test_quantized_models_are_left_as_they_are(
    prepared: Any,
    write: Callable[..., Path],
    tmp_path: Path,
    layers: Any,
    precision: str,
    kind: Any,
) -> None:
    definition = prepared(
        quantized(write, tmp_path / "q.onnx", kind), precision=precision
    ).network.definition
    dtypes = types_of(layers, definition, ("QUANTIZE", "DEQUANTIZE", "ACTIVATION"))
    assert list(dtypes.values()) == [{TensorProto.INT8: "INT8"}.get(kind, "FP8"), "FLOAT", "FLOAT"]


@pytest.mark.parametrize(("precision", "nodes"), [("int8", "none"), ("fp8", "none")])
def test_int8_and_fp8_need_a_quantized_model(
    prepared: Any, resnet18: Path, precision: str, nodes: Any
) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"precision: .*{precision} needs QuantizeLinear .*found {nodes}: quantize it first",
    ):
        prepared(resnet18, precision=precision)


def test_a_model_quantized_to_another_type_is_refused(
    prepared: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"fp8 needs .* FLOAT8E4M3FN .*found QuantizeLinear nodes to INT8"
    ):
        prepared(quantized(write, tmp_path / "q.onnx", TensorProto.INT8), precision="fp8")


def test_bf16_needs_modelopt(prepared: Any, resnet18: Path) -> None:
    with pytest.raises(ConfigError, match="precision bf16 needs NVIDIA ModelOpt: pip install"):
        prepared(resnet18, precision="bf16")


def test_modelopt_converts_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, resnet18: Any
) -> None:
    """Replace ModelOpt, which is not installed, by a function of its documented signature."""
    calls = []

    def convert_to_mixed_precision(
        onnx_path: Any,
        low_precision_type: Any = "fp16",
        nodes_to_exclude: Any = None,
        keep_io_types: Any = False,
    ) -> Any:
        calls.append((onnx_path, low_precision_type, nodes_to_exclude, keep_io_types))
        return "converted"

    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.autocast"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    module.__dict__["convert_to_mixed_precision"] = convert_to_mixed_precision
    assert converter_name("bf16") == "modelopt" and converter_name("fp32") == ""
    assert convert(onnx.load(resnet18), "bf16", ["/fc/"], resnet18) == "converted"
    assert calls == [(str(resnet18), "bf16", ["^/fc/Gemm$"], True)]
