"""The engine of OnnxTensor on GPUs, on the CPU: the same steps with ONNX Runtime's provider there.

gpu_onnx.py has what needs a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from penstock.backends.base import Context
from penstock.backends.engines.onnx_params import OnnxParams
from penstock.backends.errors import BackendError, ConfigError, InvalidInput

from . import models

if TYPE_CHECKING or find_spec("torch") is not None:
    import torch

    from penstock.backends.engines.onnx_gpu.binding import OnnxRunError
    from penstock.backends.engines.onnx_gpu.engine import OnnxGpuEngine, UnfitError
else:
    pytest.skip("torch is not installed", allow_module_level=True)

Build = Callable[[Path], Path]


def engine(path: Path, instance: int = 0, instances: int = 1, **keys: Any) -> Any:
    made = OnnxGpuEngine("cpu")
    made.init(
        OnnxParams.model_validate({"model": str(path), **keys}),
        Context(node="node", instance=instance, instances=instances),
    )
    return made


def outcome(backend: Any, batch: list[dict[str, Any]]) -> Any:
    """Run copies of items, one batch, and return what each gets: arrays as lists, or the error."""
    items = [dict(item) for item in batch]
    try:
        backend.forward(items)
    except InvalidInput as error:
        return str(error)
    return [_plain(item.get("result", item.get("error"))) for item in items]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, np.round(value.astype(np.float64), 4).tolist()
    return str(value) if isinstance(value, Exception) else value


ROW = np.array([[1, 2, 3]], np.float32)
TWO = np.array([[1, 2]], np.float32)
IMAGE = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(1, 3, 8, 8)

CASES: dict[str, tuple[Build, dict[str, Any], list[Any]]] = {
    "batch": (models.fixed, {}, [ROW, ROW + 1, ROW * 2]),
    "one": (models.fixed, {}, [ROW]),
    "float64": (models.fixed, {}, [ROW.astype(np.float64)]),
    "wrong dtype": (models.fixed, {}, [ROW.astype(np.int64), ROW]),
    "wrong shape": (models.fixed, {}, [ROW[:, :2], ROW]),
    "wrong rows": (models.fixed, {}, [np.zeros((2, 3), np.float32)]),
    "image": (models.net, {"max": "4x3x8x8"}, [IMAGE.astype(np.float32), IMAGE * 0.5]),
    "sizes": (models.net, {"max": 4}, [IMAGE * 1.0, np.ones((1, 3, 12, 9), np.float32)]),
    "normalised": (models.net, {"max": "4x3x8x8", "mean": "1,2,3", "std": "4"}, [IMAGE, IMAGE + 1]),
    "classes": (models.net, {"max": 4, "postprocessor": "SoftmaxArgMax"}, [IMAGE * 1.0]),
    "pair": (models.pair, {"max": 4}, [[TWO, TWO + 1], {"a": TWO, "b": TWO}, [TWO]]),
    "optional": (models.pair, {"max": 4}, [[TWO, TWO, np.array([2, 3], np.float32)], [TWO, TWO]]),
    "unknown": (models.pair, {"max": 4}, [{"a": TWO, "c": TWO}]),
    "reorder": (models.pair, {"input_reorder": "1,0", "output_reorder": "1,0"}, [[TWO, TWO * 3]]),
    "names": (models.pair, {"max": 4, "inputs": "b,a", "outputs": "difference"}, [[TWO, TWO * 3]]),
    "reshape": (
        models.pair,
        {
            "reshape": {"a": {"from": [1, 2], "to": [2]}, "sum": {"from": [2], "to": [2, 1]}},
            "max": 2,
        },
        [[TWO[None], TWO], [TWO[None], TWO]],
    ),
    "alone": (models.places, {"max": 4}, [np.ones((1, 1)), np.array([[0], [1]], np.float32)]),
    "axis": (
        models.steps,
        {"max": 4, "batch_axis": {"h": 1, "next": 1}},
        [[np.ones((1, 2, 3)), np.full((2, 1, 3), value)] for value in (1.0, 2.0)],
    ),
    "empty": (models.fixed, {"batched": False}, [np.zeros((0, 3), np.float32)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_items_get_the_same_as_on_the_cpu(tmp_path: Path, name: str) -> None:
    """Without the binding, OnnxTensor calls plain `run` on arrays."""
    build, keys, data = CASES[name]
    path = build(tmp_path)
    batch = [{"data": value} for value in data]
    plain, bound = models.make(path, **keys), engine(path, **keys)
    bound.warm_up()
    assert (bound.min, bound.max) == (plain.min, plain.max)
    assert bound.signature == plain.signature
    for _ in range(2):
        assert outcome(bound, batch) == outcome(plain, batch)
    bound.close()


def test_tensors_are_taken_too(tmp_path: Path) -> None:
    (result,) = models.run(engine(models.tag(tmp_path), max=4), torch.ones(1, 4))
    assert isinstance(result, np.ndarray) and result.tolist() == [[4, 4, 4, 4]]


def test_precision(tmp_path: Path) -> None:
    pytest.importorskip("onnxconverter_common")
    path = models.net(tmp_path)
    half = engine(path, precision="fp16", max="2x3x8x8")
    (exact,), (rounded,) = (models.run(each, IMAGE / 255) for each in (engine(path), half))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 1e-2 * np.abs(exact).max()
    with pytest.raises(ConfigError, match=r"precision.*needs QuantizeLinear"):
        engine(path, precision="int8")


def test_instances_share_the_weights_that_they_are_given(tmp_path: Path) -> None:
    """The sessions have no copies: what changes in a weight changes in both models."""
    weight = models.floats(4096)
    path = models.write(
        tmp_path / "scale.onnx",
        [("Mul", ["x", "w"], ["y"])],
        [("x", models.FLOAT, ["n", 4096])],
        [("y", models.FLOAT, ["n", 4096])],
        [("w", weight)],
    )
    first, second = engine(path, 0, 2, max=2), engine(path, 1, 2, max=2)
    assert engine(path)._weights is None
    row = np.ones((1, 4096), np.float32)
    for each in (first, second):
        assert np.array_equal(models.run(each, row)[0], weight[None])
    assert [*first._weights.values] == ["w"]
    first._weights.values["w"].update_inplace(weight * 2)
    first.close()
    assert np.array_equal(models.run(second, row)[0], weight[None] * 2)


def test_weights_in_a_changed_file_are_not_shared_with_older_ones(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"

    def export(value: float) -> None:
        """The .onnx file stays as it is, byte for byte and by its date."""
        model = models.write(
            path,
            [("Mul", ["x", "w"], ["y"])],
            [("x", models.FLOAT, ["n", 4096])],
            [("y", models.FLOAT, ["n", 4096])],
            [("w", np.full(4096, value, np.float32))],
        )
        onnx.save(onnx.load(model), path, save_as_external_data=True, location="weights.bin")
        os.utime(path, (1, 1))

    export(2)
    old, row = engine(path, 0, 2), np.ones((1, 4096), np.float32)
    (tmp_path / "weights.bin").unlink()
    export(3)
    new = engine(path, 0, 2)
    assert (models.run(old, row)[0] == 2).all() and (models.run(new, row)[0] == 3).all()
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BackendError, match=r"OnnxTensor: weights in .* can't be read: .*weights"):
        engine(path, 0, 2)


def test_a_load_without_enough_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_session(*_: Any, **__: Any) -> None:
        raise BackendError("can't be loaded: Failed to allocate memory for requested buffer")

    monkeypatch.setattr("penstock.backends.engines.onnx_gpu.engine.open_session", open_session)
    with pytest.raises(MemoryError, match=r"while loading the model: .* are free; ONNX Runtime"):
        engine(models.tag(tmp_path))


def test_models_that_no_gpu_takes(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match=r"input x .* tensor\(string\).*provider = \"cpu\""):
        engine(models.texts(tmp_path))
    scalar = models.write(
        tmp_path / "scalar.onnx",
        [("Add", ["x", "k"], ["y"])],
        [("x", models.FLOAT, ["n", 2]), ("k", models.FLOAT, [])],
        [("y", models.FLOAT, ["n", 2])],
    )
    with pytest.raises(UnfitError, match="without axes"):
        engine(scalar)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Failed to allocate memory for requested buffer of size 281474976710656", MemoryError),
        ("Available memory of 1024 is smaller than requested bytes of 4096", MemoryError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", "DeviceError"),
        ("Non-zero status code returned while running Reshape node", "OnnxRunError"),
    ],
)
def test_errors_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: Any
) -> None:
    """Errors of the device and of its memory are told from refusals of the model."""
    made = engine(models.tag(tmp_path), max=4)
    made.warm_up()

    class Binding:
        def bind_input(self, *_: Any) -> None:
            raise Exception(text)

    class Session:
        def io_binding(self) -> Binding:
            return Binding()

    monkeypatch.setattr(made.model, "session", Session())
    with pytest.raises(Exception, match=r"node 'node': OnnxTensor|ONNX Runtime") as caught:
        models.run(made, np.zeros((1, 4), np.float32))
    name = expected if isinstance(expected, str) else expected.__name__
    assert type(caught.value).__name__ == name
    if expected is MemoryError:
        assert "are free; ONNX Runtime says" in str(caught.value)
    if name == "OnnxRunError":
        assert isinstance(caught.value, OnnxRunError)
