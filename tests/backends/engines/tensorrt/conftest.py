"""Fixtures: TensorRT-RTX, which builds engines without a GPU, and models to build them from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.backends.base import Context
from penstock.backends.engines import sharing
from penstock.backends.engines.tensorrt import ahead
from penstock.backends.engines.tensorrt.backend import TensorrtTensor
from penstock.backends.engines.tensorrt.build import prepare
from penstock.backends.engines.tensorrt.library import Library, find_library
from penstock.backends.engines.tensorrt.params import TensorrtParams
from penstock.backends.engines.tensorrt.progress import Progress
from penstock.backends.engines.tensorrt.recipe import Recipe

from .stand_in import FakeEngine, FakeLibrary, FakeRuntime, ranges

FLOAT = TensorProto.FLOAT
EXPORT = Path(__file__).parents[4] / "examples" / "resnet" / "export.py"


@pytest.fixture(scope="session")
def library() -> Library:
    """Find TensorRT-RTX. Tests fail without it and are not skipped: builds are tested for real."""
    return find_library("tensorrt_rtx")


@pytest.fixture(scope="session")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export ResNet-18 as the example does: N×3×64×64 in, N×1000 out."""
    import warnings

    spec = importlib.util.spec_from_file_location("resnet_export", EXPORT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("resnet18") / "resnet18.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        module.export(module.build("resnet18"), path, size=64)
    return path


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    def write(
        path: Path, nodes: Any, inputs: Any, outputs: Any, initializers: Any = (), opset: int = 17
    ) -> Path:
        """Save a model of `nodes`. Inputs and outputs are (name, element type, shape)."""
        graph = helper.make_graph(
            [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
            "graph",
            [helper.make_tensor_value_info(*port) for port in inputs],
            [helper.make_tensor_value_info(*port) for port in outputs],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers],
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("nowhere", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
        return path

    return write


@pytest.fixture
def two(write: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of sum = a + b and dif = a - b, N×3."""
    shape = ["n", 3]
    return write(
        tmp_path / "two.onnx",
        [
            ("Add", ["a", "b"], ["sum"], {"name": "add"}),
            ("Sub", ["a", "b"], ["dif"], {"name": "sub"}),
        ],
        [("a", FLOAT, shape), ("b", FLOAT, shape)],
        [("sum", FLOAT, shape), ("dif", FLOAT, shape)],
    )


@pytest.fixture
def image(write: Callable[..., Path], tmp_path: Path) -> Path:
    """A convolution that leaves height and width open, N×3×H×W."""
    kernel = np.full((4, 3, 1, 1), 0.5, np.float32)
    return write(
        tmp_path / "image.onnx",
        [
            ("Conv", ["image", "kernel"], ["mixed"], {"name": "conv"}),
            ("Relu", ["mixed"], ["features"], {"name": "relu"}),
        ],
        [("image", FLOAT, ["n", 3, "h", "w"])],
        [("features", FLOAT, ["n", 4, "h", "w"])],
        [("kernel", kernel)],
    )


@pytest.fixture
def scores(write: Callable[..., Path], tmp_path: Path) -> Path:
    """A model of scores = relu(x), N×5, for post-processing."""
    return write(
        tmp_path / "scores.onnx",
        [("Relu", ["x"], ["scores"], {"name": "relu"})],
        [("x", FLOAT, ["n", 5])],
        [("scores", FLOAT, ["n", 5])],
    )


@pytest.fixture
def recipe(library: Library) -> Any:
    def recipe(path: Path, sizes: Any = (1, 2, 4), **params: Any) -> Any:
        context = Context(node="net", directory=path.parent)
        return Recipe.of(TensorrtParams(model=str(path), **params), context, sizes, library, None)

    return recipe


@pytest.fixture
def prepared(library: Library, recipe: Any) -> Any:
    """Make a network and its configuration, without building."""

    def prepared(path: Path, sizes: Any = (1, 2, 4), **params: Any) -> Any:
        with library.listening() as reported:
            return prepare(recipe(path, sizes, **params), library, Progress(), reported)

    return prepared


@pytest.fixture
def layers() -> Any:
    """Return a network's layers by name, in order."""

    def layers(definition: Any) -> Any:
        in_order = [definition.get_layer(index) for index in range(definition.num_layers)]
        return {layer.name: layer for layer in in_order}

    return layers


@pytest.fixture(autouse=True)
def _nothing_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share no engines with earlier tests, whose failures may keep engines alive."""
    monkeypatch.setattr(sharing, "_models", WeakValueDictionary())


@pytest.fixture
def fake(library: Library, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a FakeRuntime with such an engine in the place of TensorRT's."""

    def fake(ins: Any, outs: Any, profiles: Any, compute: Any, shapes: Any = None) -> Any:
        fake_library = FakeLibrary(library.name, library.version, library.trt, library.logger)
        runtime = FakeRuntime(
            FakeEngine(library.trt, library.logger, ins, outs, profiles, compute, shapes)
        )
        monkeypatch.setattr(FakeLibrary, "fakes", [runtime])
        monkeypatch.setattr(ahead, "find_library", lambda name: fake_library)
        return runtime

    return fake


@pytest.fixture
def fake_two(fake: Any) -> Any:
    tensor = ("FLOAT", (-1, 3))
    return fake(
        {"a": tensor, "b": tensor},
        {"sum": tensor, "dif": tensor},
        ranges(1, 2, 4),
        lambda a, b: (a + b, a - b),
    )


@pytest.fixture
def make(tmp_path: Path) -> Any:
    made = []

    def make(path: Path, context: Any = None, **params: Any) -> Any:
        backend = TensorrtTensor()
        made.append(backend)
        params = {"model::cache": str(tmp_path / "kept"), **params}
        backend.init(
            TensorrtParams.model_validate({"model": str(path), **params}),
            Context(node="net", device="cpu", **(context or {})),
        )
        return backend

    yield make
    for backend in made:
        backend.close()
