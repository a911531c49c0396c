"""Finding the plan of a recipe: when it is built, and when a cached one is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from penstock.backends.base import Context
from penstock.backends.engines.encryption import KEY_VARIABLE, encrypt
from penstock.backends.engines.tensorrt.cache import write
from penstock.backends.engines.tensorrt.library import Library
from penstock.backends.engines.tensorrt.plan import find_plan
from penstock.backends.engines.tensorrt.progress import Progress
from penstock.backends.engines.tensorrt.recipe import gpu_of
from penstock.backends.errors import BackendError


@pytest.fixture
def plan_of(library: Library, recipe: Any, tmp_path: Path) -> Any:
    def plan_of(path: Path, **params: Any) -> Any:
        params.setdefault("model::cache", str(tmp_path / "kept"))
        return find_plan(
            recipe(path, **params), library, Context(node="net", directory=tmp_path), Progress()
        )

    return plan_of


def test_an_engine_is_built_once(plan_of: Any, two: Path, tmp_path: Path) -> None:
    first, again = plan_of(two), plan_of(two)
    assert (first.built, again.built) == (True, False) and first.plan == again.plan
    assert len(list((tmp_path / "kept").glob("two-*.engine"))) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"mean": "1"},
        {"max": "2"},
        {"postprocessor": "cpu"},
        {"max_workspace_size": 64},
        {"hardware_compatibility": "sm86"},
    ],
)
def test_every_key_makes_another_engine(plan_of: Any, two: Path, change: Any) -> None:
    plan_of(two)
    assert plan_of(two, **change).built


def test_precisions_of_one_converter_make_different_engines(
    recipe: Any, two: Path, library: Any
) -> None:
    assert recipe(two, precision="fp16").key(library) != recipe(two, precision="bf16").key(library)


def test_a_changed_model_makes_another_engine(plan_of: Any, two: Path) -> None:
    plan_of(two)
    model = onnx.load(two)
    model.graph.node[0].op_type = "Mul"
    onnx.save(model, two)
    assert plan_of(two).built


def test_changed_weights_beside_the_model_make_another_engine(
    plan_of: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(
        tmp_path / "apart.onnx",
        [("MatMul", ["x", "w"], ["y"])],
        [("x", 1, ["n", 4])],
        [("y", 1, ["n", 4])],
        [("w", np.eye(4, dtype=np.float32))],
    )
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    plan_of(path)
    assert not plan_of(path).built
    (tmp_path / "weights.bin").write_bytes(np.ones((4, 4), np.float32).tobytes())
    assert plan_of(path).built


def test_weights_outside_of_the_models_folder_are_refused(
    plan_of: Any, write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = write(
        folder / "m.onnx",
        [("MatMul", ["x", "w"], ["y"])],
        [("x", 1, ["n", 4])],
        [("y", 1, ["n", 4])],
        [("w", np.eye(4, dtype=np.float32))],
    )
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(
        BackendError, match=r"keeps weights in \.\./weights\.bin, outside of its folder"
    ):
        plan_of(path)


def test_engine_files_are_used_as_they_are(plan_of: Any, two: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "m.plan"
    foreign.write_bytes(b"by trtexec")
    assert plan_of(foreign) == (b"by trtexec", False)


def test_engine_files_that_penstock_wrote_must_fit_this_library(
    plan_of: Any, two: Path, library: Library, recipe: Any, tmp_path: Path
) -> None:
    path = tmp_path / "m.trt"
    plan_of(two, **{"model::cache": str(path)})
    assert plan_of(path).plan == plan_of(two, **{"model::cache": str(path)}).plan
    key = recipe(two).key(library)
    write(path, {**key, "version": "0.9"}, b"plan")
    with pytest.raises(
        BackendError,
        match=f"node 'net': .*the engine {path} was built for version 0.9, but this machine has "
        f"{library.version}",
    ):
        plan_of(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BackendError, match=f"the engine {path} can't be used: it is damaged"):
        plan_of(path)


def test_engines_are_built_from_encrypted_models(
    plan_of: Any, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    path = tmp_path / "two.onnx.encrypted"
    path.write_bytes(encrypt(two.read_bytes(), bytes([0x11] * 32)))
    assert plan_of(path, precision="fp16").plan
    monkeypatch.setenv(KEY_VARIABLE, "22" * 32)
    with pytest.raises(BackendError, match=f"{path} can't be decrypted"):
        plan_of(path)


def test_other_files_are_refused(plan_of: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"")
    with pytest.raises(BackendError, match=f"node 'net': .*{path} is neither .onnx nor an engine"):
        plan_of(path)


def test_engines_of_tensorrt_rtx_are_for_no_particular_gpu(
    recipe: Any, two: Path, library: Any
) -> None:
    params = recipe(two).params
    assert gpu_of(params, library, "NVIDIA X 8.6") == "none"
    assert (
        gpu_of(
            params.model_copy(update={"hardware_compatibility": "current"}), library, "NVIDIA X 8.6"
        )
        == "NVIDIA X 8.6"
    )
