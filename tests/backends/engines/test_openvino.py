"""OpenvinoTensor. What it shares with OnnxTensor is tested there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from penstock.backends.base import Context, TensorPort
from penstock.backends.engines import processors
from penstock.backends.engines.model import ModelParams, choose_engine
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.engines.openvino import compiled as compiled_module
from penstock.backends.engines.openvino.backend import OpenvinoTensor
from penstock.backends.engines.openvino.compiled import compiled_model, threads_of
from penstock.backends.engines.openvino.library import without_telemetry
from penstock.backends.engines.openvino.params import OpenvinoParams
from penstock.backends.errors import BackendError, ConfigError, InvalidInput

from .test_onnx import write

with without_telemetry():
    openvino = pytest.importorskip("openvino")

FLOAT = TensorProto.FLOAT


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """sum = a + b, Nx2; rows = the shape of a: two numbers, whatever the batch."""
    return write(
        tmp_path / "network.onnx",
        [("Add", ["a", "b"], ["sum"]), ("Shape", ["a"], ["rows"])],
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 2])],
        [("sum", FLOAT, ["n", 2]), ("rows", TensorProto.INT64, [2])],
    )


def make(path: Path, device: str = "", **params: Any) -> Any:
    backend = OpenvinoTensor()
    model: Any = OpenvinoParams.model_validate({"model": str(path), "threads": 1, **params})
    backend.init(model, Context(node="node", device=device))
    return backend


def run(backend: Any, *data: Any) -> list[Any]:
    batch = [{"data": value} for value in data]
    backend.forward(batch)
    return [item.get("result", item.get("error")) for item in batch]


def row(*values: float) -> Any:
    return np.array([values], np.float32)


def test_a_model_of_its_own_format(network: Path) -> None:
    path = network.with_suffix(".xml")
    openvino.save_model(openvino.convert_model(network), path)
    backend = make(path, max=4, inputs=["b", "a"], outputs=["sum"])
    backend.warm_up()
    results = run(backend, [row(1, 2), row(3, 4)], {"a": row(5, 6), "b": row(7, 8)}, [row(1, 2)])
    assert [result.tolist() for result in results[:2]] == [[[4, 6]], [[12, 14]]]
    assert isinstance(results[2], InvalidInput)
    assert "OpenvinoTensor: the model has 2 inputs (b, a), but data holds 1" in str(results[2])
    assert backend.signature.inputs == (
        TensorPort("b", "float32", (-1, 2)),
        TensorPort("a", "float32", (-1, 2)),
    )


def test_model_tensor_chooses_it_for_its_own_format() -> None:
    choice = choose_engine(
        ModelParams.model_validate({"model": "1/model.xml"}), Context(node="node")
    )
    assert choice.engine is OpenvinoTensor


def test_results_have_memory_of_their_own(network: Path) -> None:
    backend = make(network, batched=False)
    (first,) = run(backend, [row(1, 2), row(3, 4)])
    run(backend, [row(5, 6), row(7, 8)])
    assert [part.tolist() for part in first] == [[[4, 6]], [1, 2]]


def test_rows_that_share_an_output_do_not_share_runs(network: Path) -> None:
    assert not make(network, max=4).batched
    assert make(network, max=4, outputs=["sum"]).batched


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"precision": "fp8"}, "precision: found 'fp8', expected one of fp32, fp16, bf16, int8"),
        ({"precision": "int8"}, "precision: int8 needs a quantised model, .* set calibration"),
        ({"precision": "int8", "calibration": "none.npz"}, "calibration: .* can't be read"),
        ({"mean": "1,2,3"}, "mean: mean has 3 values, but neither the second nor the last axis"),
        ({"std": "0"}, r"std: std must not contain 0, found \(0.0,\)"),
        ({"data_format": "nhwc"}, "data_format: nhwc needs a first input of 4 axes, .* found 2"),
        ({"device": "cuda:0"}, "OpenvinoTensor runs only on the CPU"),
        ({"outputs": ["sun"]}, "outputs: names 'sun'"),
    ],
)
def test_keys_that_do_not_fit(network: Path, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(network, **keys)


def test_files_that_can_not_be_read(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"none\.xml does not exist"):
        make(network.with_name("none.xml"))
    wrong = network.with_name("wrong.xml")
    wrong.write_text("<net/>")
    with pytest.raises(BackendError, match=r"wrong\.xml can't be loaded"):
        make(wrong)
    hidden = network.with_name("net.xml.encrypted")
    hidden.write_bytes(b"")
    with pytest.raises(BackendError, match="reads only plain files"):
        make(hidden)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"pip install 'penstock-serve\[openvino\]'"):
        make(network)


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """y = x, N×3×2×2."""
    return write(
        tmp_path / "pixels.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", FLOAT, ["n", 3, 2, 2])],
        [("y", FLOAT, ["n", 3, 2, 2])],
    )


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_mean_std_and_layout_are_built_in(pixels: Path, suffix: str) -> None:
    if suffix == ".xml":
        openvino.save_model(openvino.convert_model(pixels), pixels.with_suffix(".xml"))
    path = pixels.with_suffix(suffix)
    keys = {"mean": "1,2,3", "std": "2,4,8"}
    images = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    expected = (images - np.reshape([1, 2, 3], (3, 1, 1))) / np.reshape([2, 4, 8], (3, 1, 1))
    plain = make(path, **keys)
    for result in run(plain, images, images.astype(np.float32)):
        assert result.tolist() == expected.tolist()
    (result,) = run(make(path, data_format="nhwc", **keys), images.transpose(0, 2, 3, 1))
    assert result.tolist() == expected.tolist()
    (result,) = run(make(path, mean="1"), images)
    assert result.tolist() == (images - 1.0).tolist()


def test_mean_needs_a_floating_input(tmp_path: Path) -> None:
    path = write(
        tmp_path / "whole.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", TensorProto.INT64, ["n", 3])],
        [("y", TensorProto.INT64, ["n", 3])],
    )
    with pytest.raises(ConfigError, match="mean: mean and std need a first input of a floating"):
        make(path, mean="1")


def test_results_of_a_batch_have_memory_of_their_own(pixels: Path) -> None:
    backend = make(pixels, max=4)
    rows = [np.full((1, 3, 2, 2), index, np.float32) for index in range(4)]
    for row in rows:
        row.setflags(write=False)  # as arrays of a request's body are
    kept = run(backend, rows[0]) + run(backend, *rows[1:3]) + run(backend, rows[3])
    run(backend, *rows)
    run(backend, rows[0] + 9)
    assert [float(result.mean()) for result in kept] == [0, 1, 2, 3]
    assert all(result.flags.writeable for result in kept)


def test_read_only_inputs(tmp_path: Path) -> None:
    """Their copies must live until the run ends: the third would take the memory of the first."""
    path = write(
        tmp_path / "three.onnx",
        [("Sub", ["a", "b"], ["ab"]), ("Sub", ["ab", "c"], ["y"])],
        [(name, FLOAT, ["n", 2]) for name in "abc"],
        [("y", FLOAT, ["n", 2])],
    )
    values = [np.full((1, 2), value, np.float32) for value in (9, 2, 1)]
    for value in values:
        value.setflags(write=False)
    (result,) = run(make(path), values)
    assert result.tolist() == [[6, 6]]


def test_an_input_that_is_passed_on(tmp_path: Path) -> None:
    path = write(
        tmp_path / "both.onnx",
        [("Dropout", ["x"], ["same"]), ("Relu", ["x"], ["y"])],
        [("x", FLOAT, ["n", 2])],
        [("same", FLOAT, ["n", 2]), ("y", FLOAT, ["n", 2])],
    )
    backend = make(path)
    results = run(backend, row(1, 2)) + run(backend, row(3, 4)) + run(backend, row(5, 6), row(7, 8))
    assert [[part.tolist() for part in result] for result in results] == [
        [[[first, first + 1]]] * 2 for first in (1, 3, 5, 7)
    ]


def test_whole_numbers_beyond_int32_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "whole.onnx",
        [("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.INT64, ["n", 2])],
        [("y", TensorProto.INT64, ["n", 2])],
    )
    backend = make(path, max=4)
    good, large, small = (np.array([[1, value]]) for value in (2, 2**40, -(2**31) - 1))
    results = run(backend, good, large, small)
    assert results[0].tolist() == [[2, 4]]
    for result, value in zip(results[1:], (2**40, -(2**31) - 1), strict=True):
        assert isinstance(result, InvalidInput)
        assert f"input x has {value}: OpenVINO computes whole numbers in int32" in str(result)


def test_an_array_without_elements_never_reaches_the_model(tmp_path: Path) -> None:
    path = write(
        tmp_path / "relu.onnx",
        [("Relu", ["x"], ["y"])],
        [("x", FLOAT, ["n", "width"])],
        [("y", FLOAT, ["n", "width"])],
    )
    backend = make(path, max=4)
    empty, good = np.zeros((1, 0), np.float32), row(1, 2)
    first, second, third = run(backend, good, empty, good)
    assert first.tolist() == third.tolist() == [[1, 2]]
    assert isinstance(second, InvalidInput)
    assert "input x has no elements (shape 1x0): expected at least one" in str(second)


def test_an_image_that_is_too_small_does_no_harm_to_others(tmp_path: Path) -> None:
    path = write(
        tmp_path / "convolutions.onnx",
        [("Conv", ["x", "w"], ["c"]), ("Relu", ["c"], ["r"]), ("Conv", ["r", "w"], ["y"])],
        [("x", FLOAT, ["n", 1, "h", "w"])],
        [("y", FLOAT, ["n", 1, "p", "q"])],
        [("w", np.ones((1, 1, 3, 3), np.float32))],
    )
    backend = make(path, max=4)
    good, small = np.ones((1, 1, 8, 8), np.float32), np.ones((1, 1, 8, 4), np.float32)
    for data in (good, small, good, good):
        result, _ = run(backend, data, data)
        if data is good:
            assert result.tolist() == np.full((1, 1, 4, 4), 81.0).tolist()
        else:
            assert isinstance(result, InvalidInput)
            assert "the model can't compute with data of shape 1x1x8x4: Kernel" in str(result)


def test_a_shape_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "layer.onnx",
        [("Reshape", ["x", "shape"], ["rows"]), ("MatMul", ["rows", "w"], ["y"])],
        [("x", FLOAT, ["n", 2, "width"])],
        [("y", FLOAT, ["n", 3])],
        [("shape", np.array([0, -1])), ("w", np.ones((4, 3), np.float32))],
    )
    backend = make(path, max=4)
    good, wide = np.ones((1, 2, 2), np.float32), np.ones((1, 2, 3), np.float32)
    first, refused = run(backend, good, wide)
    assert first.tolist() == [[4, 4, 4]]
    assert isinstance(refused, InvalidInput)


def test_only_the_first_process_compiles_a_model_to_compare_with(
    layer: Path, monkeypatch: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "penstock")
    monkeypatch.setattr(compiled_module, "capabilities", lambda: frozenset({"BF16"}))
    params: Any = OpenvinoParams.model_validate({"model": str(layer), "precision": "bf16"})
    for instance in (1, 0):
        measured: list[Any] = []
        model = compiled_model(params, Context(instance=instance, instances=2, alone=True))
        model.report(Context(), measured.append)
        assert len(measured) == (instance == 0)
        del model


def test_texts_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "texts.onnx",
        [("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["n"])],
        [("y", TensorProto.STRING, ["n"])],
    )
    with pytest.raises(BackendError, match="x holds texts, and OpenVINO computes with numbers"):
        make(path)


def test_instances_share_one_compiled_model(pixels: Path) -> None:
    def compiled(instance: int, node: str = "node", **keys: Any) -> Any:
        params: Any = OpenvinoParams.model_validate({"model": str(pixels), **keys})
        return compiled_model(params, Context(node=node, instance=instance, instances=2))

    first = compiled(0)
    assert compiled(1) is first
    assert compiled(0, node="other") is first
    assert compiled(0, mean="1") is not first
    # Pinned by default, two models of one thread each would both run on the first processor.
    assert first.compiled.get_property("ENABLE_CPU_PINNING") is False
    # By default, it quantises what layers with weights in int8 are given, in fp32 too.
    assert first.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0


@pytest.mark.parametrize("quota", [None, 0.5])
def test_pinned_cores(pixels: Path, quota: float | None, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr("penstock.backends.engines.cores.cpu_quota", lambda: quota)
    params: Any = OpenvinoParams.model_validate({"model": str(pixels), "pin_cores": True})
    model = compiled_model(params, Context(node="node")).compiled
    assert model.get_property("ENABLE_CPU_PINNING") is (quota is None)
    assert ("pin_cores is left out: the process has a quota of 0.5" in caplog.text) is bool(quota)


@pytest.mark.parametrize(
    ("threads", "instances", "alone", "quota", "expected"),
    [
        (None, 2, False, None, (2, 8)),
        (None, 2, True, None, (1, 4)),
        (None, 4, False, 0.5, (1, 1)),
        (3, 2, False, None, (2, 6)),
    ],
)
def test_streams_and_threads(
    threads: int | None,
    instances: int,
    alone: bool,
    quota: float | None,
    expected: Any,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    params: Any = OpenvinoParams.model_validate({"model": "m", "threads": threads})
    assert threads_of(params, Context(instances=instances, alone=alone)) == expected


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """y = x W, N×64."""
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return write(
        tmp_path / "layer.onnx",
        [("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        initializers=[("w", weights)],
    )


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_is_never_silent(
    layer: Path, precision: str, native: bool, monkeypatch: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "penstock")
    known = {"FP32", "INT8", precision.upper()} if native else {"FP32", "INT8"}
    monkeypatch.setattr(compiled_module, "capabilities", lambda: frozenset(known))
    make(layer, precision=precision)
    if native:
        assert f"node: OpenvinoTensor: {precision} against fp32: largest difference" in caplog.text
    else:
        assert f"this processor does not compute {precision} natively, so" in caplog.text
        assert "runs in fp32; it has no precision below fp32 but int8" in caplog.text


def test_fp32_is_not_compared(layer: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "penstock")
    make(layer)
    assert "against" not in caplog.text


class Nncf:
    """Stands for NNCF: rounds the weights of the layer to eight bits."""

    def __init__(self) -> None:
        self.feeds: list[Any] = []

    Dataset: Any = staticmethod(list)

    def quantize(self, model: Any, dataset: Any, subset_size: int) -> Any:
        self.feeds.append(dataset)
        assert subset_size == len(dataset)
        (constant,) = (
            node
            for node in model.get_ops()
            if node.get_type_name() == "Constant" and node.data.size > 64
        )
        rounded = openvino.opset13.constant(np.round(constant.data * 32) / 32)
        for target in constant.output(0).get_target_inputs():
            target.replace_source_output(rounded.output(0))
        return model


def test_nncf_quantises_with_calibration_values(
    layer: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    caplog.set_level("INFO", "penstock")
    nncf = Nncf()
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    (tmp_path / "values").mkdir()
    values = np.random.default_rng(1).standard_normal((5, 64))
    np.savez(tmp_path / "values" / "one.npz", x=values[:3])
    np.savez(tmp_path / "values" / "two.npz", x=values[3:])
    keys = {
        "precision": "int8",
        "calibration": str(tmp_path / "values"),
        "model::cache": str(tmp_path / "cache"),
    }
    backend = make(layer, **keys)
    (feeds,) = nncf.feeds
    assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), values.astype(np.float32))
    assert "quantised" in caplog.text and "int8 against fp32: largest difference" in caplog.text
    data = np.ones((1, 64), np.float32)
    first = run(backend, data)[0]
    backend.close()
    assert np.array_equal(run(make(layer, **keys), data)[0], first)
    assert len(nncf.feeds) == 1  # the second start has read what the first kept


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"z": np.ones((1, 64))}, "calibration: no array is named x, found z"),
        ({"x": np.ones((1, 63))}, "calibration: x: expected shape Nx64, found 1x63"),
        ({"x": np.full((1, 64), np.nan)}, r"calibration: .*values\.npz: x has values that are not"),
    ],
)
def test_calibration_values_that_do_not_fit(
    layer: Path, tmp_path: Path, values: Any, message: str
) -> None:
    np.savez(tmp_path / "values.npz", **values)
    with pytest.raises(ConfigError, match=message):
        make(layer, precision="int8", calibration=str(tmp_path / "values.npz"))


def test_a_check_reads_the_calibration_values(layer: Path, tmp_path: Path) -> None:
    context = Context(node="node", opens_only=True)
    keys: dict[str, Any] = {"model": str(layer), "precision": "int8"}
    with pytest.raises(ConfigError, match="precision: int8 needs a quantised model"):
        OpenvinoTensor().init(OpenvinoParams.model_validate(keys), context)
    np.savez(tmp_path / "values.npz", x=np.ones((2, 64)))
    keys["calibration"] = str(tmp_path / "values.npz")
    OpenvinoTensor().init(OpenvinoParams.model_validate(keys), context)


def layer_with_weights_beside(folder: Path) -> Path:
    return write(
        folder / "layer.onnx",
        [("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        initializers=[("w", np.eye(64, dtype=np.float32))],
        save_as_external_data=True,
        location="weights.data",
        size_threshold=0,
    )


@pytest.mark.parametrize("changed", ["values", "weights"])
def test_a_load_after_a_change_compiles_the_model_anew(
    tmp_path: Path, changed: str, monkeypatch: Any
) -> None:
    """Though an instance of the load before still holds the old one."""
    monkeypatch.setitem(sys.modules, "nncf", Nncf())
    path = layer_with_weights_beside(tmp_path)
    np.savez(tmp_path / "values.npz", x=np.ones((1, 64)))
    keys: dict[str, Any] = {"model": str(path)}
    if changed == "values":
        keys |= {"precision": "int8", "calibration": "values.npz"}
    params: Any = OpenvinoParams.model_validate(keys)
    first = compiled_model(params, Context(directory=tmp_path))
    assert compiled_model(params, Context(directory=tmp_path)) is first
    if changed == "values":
        np.savez(tmp_path / "values.npz", x=np.zeros((1, 64)))
    else:
        data = tmp_path / "weights.data"
        data.write_bytes(bytes(data.stat().st_size))
    assert compiled_model(params, Context(directory=tmp_path)) is not first


def test_weights_beside_a_model_are_those_of_the_load(tmp_path: Path) -> None:
    path = layer_with_weights_beside(tmp_path)
    params: Any = OpenvinoParams.model_validate({"model": str(path)})
    context = Context()
    compiled_model(params, context)
    with (tmp_path / "weights.data").open("r+b") as file:
        file.write(b"1234")
    with pytest.raises(BackendError, match=r"weights\.data has changed"):
        compiled_model(params, context)


def test_without_nncf(layer: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    np.savez(tmp_path / "values.npz", x=np.ones((2, 64)))
    with pytest.raises(BackendError, match="pip install nncf"):
        make(layer, precision="int8", calibration=str(tmp_path / "values.npz"))


@pytest.mark.parametrize(
    ("precision", "level"),
    [(None, "INFO"), ("int8", "INFO"), ("fp32", "WARNING"), ("bf16", "WARNING")],
)
def test_a_model_that_is_quantised_already(
    precision: str | None, level: str, tmp_path: Path, caplog: Any
) -> None:
    caplog.set_level("INFO", "penstock")
    path = write(
        tmp_path / "quantised.onnx",
        [("QuantizeLinear", ["x", "s", "z"], ["q"]), ("DequantizeLinear", ["q", "s", "z"], ["y"])],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4])],
        initializers=[("s", np.float32(0.5)), ("z", np.int8(0))],
    )
    (result,) = run(make(path, precision=precision), np.array([[0.4, 0.6, -3, 99]], np.float32))
    assert result.tolist() == [[0.5, 0.5, -3, 63.5]]
    assert [
        record.levelname for record in caplog.records if "is quantised already" in record.message
    ] == [level]


PHOTOGRAPH = Path(__file__).parents[3] / "examples" / "photograph" / "photograph.onnx"
"""Its weights are int8, with DequantizeLinear."""


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_small_weights_give_the_same_answers_in_two_instances(tmp_path: Path, suffix: str) -> None:
    path = PHOTOGRAPH
    if suffix == ".xml":  # its weights are fp16
        path = tmp_path / "photograph.xml"
        openvino.save_model(openvino.convert_model(PHOTOGRAPH), path)
    params: Any = OpenvinoParams.model_validate(
        {"model": str(path), "threads": 1, "max": 1, "warm_up": False}
    )
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    usual = OnnxTensor()
    usual.init(
        OnnxParams.model_validate({"model": str(PHOTOGRAPH)}), Context(node="node", device="cpu")
    )
    (expected,) = run(usual, image)
    for instance in range(2):
        backend = OpenvinoTensor()
        backend.init(params, Context(node="node", instance=instance, instances=2))
        for _ in range(2):
            (found,) = run(backend, image)
            tolerance = 1e-4 if suffix == ".onnx" else 1e-2
            assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_a_model_that_is_quantised_in_part_runs_in_one_stream(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "penstock")
    weights = np.ones((3, 3, 1, 1), np.int8)
    path = write(
        tmp_path / "part.onnx",
        [
            ("DequantizeLinear", ["w", "s", "z"], ["wide"]),
            ("Conv", ["x", "wide"], ["a"]),
            ("QuantizeLinear", ["a", "s", "z"], ["q"]),
            ("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        [("x", FLOAT, ["n", 3, 2, 2])],
        [("y", FLOAT, ["n", 3, 2, 2])],
        initializers=[("w", weights), ("s", np.float32(0.5)), ("z", np.int8(0))],
    )
    params: Any = OpenvinoParams.model_validate({"model": str(path), "precision": "int8"})
    backend = OpenvinoTensor()
    backend.init(params, Context(node="node", instances=2))
    (result,) = run(backend, np.ones((1, 3, 2, 2), np.float32))
    assert result.tolist() == np.full((1, 3, 2, 2), 1.5).tolist()
    assert (
        compiled_model(params, Context(node="node", instances=2)).compiled.get_property(
            "NUM_STREAMS"
        )
        == 1
    )
    assert "its instances run one at a time" in caplog.text


def test_the_folder_of_compiled_models(layer: Path, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "cache"
    make(layer, **{"model::cache": str(folder)})
    assert list(folder.glob("*.blob"))
    (tmp_path / "plain").touch()
    for name in ("engine.trt", "plain"):
        caplog.clear()
        make(layer, **{"model::cache": str(tmp_path / name)})
        assert "OpenVINO keeps compiled models in a folder" in caplog.text


FREED_ON_ANOTHER_THREAD = """
import signal, sys, threading
from penstock.backends.base import Context
from penstock.backends.engines.onnx import OnnxTensor
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.engines.openvino import compiled as compiled_module
from penstock.backends.engines.openvino.backend import OpenvinoTensor
from penstock.backends.engines.openvino.compiled import compiled_model, threads_of
from penstock.backends.engines.openvino.params import OpenvinoParams

backend = OpenvinoTensor()
backend.init(OpenvinoParams(model=sys.argv[1]), Context(node="node"))
thread = threading.Thread(target=backend.close)
thread.start()
thread.join()
signal.signal(signal.SIGALRM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGALRM)
"""


def test_signals_after_a_model_is_freed_on_another_thread(layer: Path) -> None:
    command = [sys.executable, "-c", FREED_ON_ANOTHER_THREAD, str(layer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_its_library_sends_no_statistics(tmp_path: Path) -> None:
    """`import openvino` alone sends an event to Google Analytics, and writes to the home folder."""
    code = (
        "import sys, threading\n"
        "from penstock.backends.engines.openvino.library import core\n"
        "core()\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')],"
        " threading.active_count())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "[] 1\n" and not list(tmp_path.iterdir())
