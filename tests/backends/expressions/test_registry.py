"""Registering, finding and describing backends."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from penstock.backends.base import Backend, Context, Params
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import (
    backend_names,
    describe,
    find_backend,
    register_backend,
)
from penstock.backends.expressions.user import adapt
from penstock.backends.item import Item
from penstock.backends.operators.compose import Identity, Sequential


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_built_ins_by_name_and_alias() -> None:
    assert find_backend("Identity") is Identity
    assert find_backend("S") is find_backend("Sequential") is Sequential


def test_importing_the_registry_imports_no_engine() -> None:
    code = (
        "import sys, penstock.pipelines.config.load, penstock.backends.expressions.registry as r;"
        "r.describe('TensorrtTensor');"
        "print([m for m in ('cv2', 'onnx', 'onnxruntime', 'torch', 'numpy') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="there is no backend 'ResizeMatt', did you mean 'ResizeMat'"
    ):
        find_backend("ResizeMatt")
    with pytest.raises(ConfigError, match="did you mean 'Identity'"):
        find_backend("identity")
    with pytest.raises(ConfigError) as caught:
        find_backend("Qqqqqq")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["EventLoop", "Ring"])
def test_names_of_torchpipes_loops_are_explained(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name} is not a backend of Penstock: write \[pipeline\] loop = true"
    ):
        find_backend(name)
    with pytest.raises(ValueError, match="is one of Penstock's own backends"):
        register_backend(name, lambda data: data)


def test_a_function_is_called_per_item() -> None:
    register_backend("double", lambda data: data * 2)
    backend = find_backend("double")()
    backend.init(Params(), Context())
    items: list[Item] = [{"data": 1}, {"data": 2}]
    backend.forward(items)
    assert [item["result"] for item in items] == [2, 4]


def test_invalid_input_of_a_function_is_that_items_soft_failure() -> None:
    @register_backend("picky")
    def picky(data: int) -> int:
        if data < 0:
            raise InvalidInput("negative")
        return data

    items: list[Item] = [{"data": -1}, {"data": 1}]
    find_backend("picky")().forward(items)
    assert isinstance(items[0]["error"], InvalidInput)
    assert "result" not in items[0]
    assert items[1]["result"] == 1


def test_register_as_a_decorator_returns_the_class() -> None:
    class MyParams(Params):
        factor: int = 2

    @register_backend("Mine")
    class Mine(Backend):
        parameters = MyParams

    assert find_backend("Mine") is Mine
    assert "Mine" in backend_names()


def test_registering_ones_own_name_again_replaces_it() -> None:
    register_backend("f", lambda data: 1)
    register_backend("f", lambda data: 2)
    item: Item = {"data": 0}
    find_backend("f")().forward([item])
    assert item["result"] == 2


@pytest.mark.parametrize("name", ["Identity", "S", "TensorrtTensor", "Python", "MapReduce", "Ring"])
def test_a_name_of_penstocks_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Penstock's own"):
        register_backend(name, lambda data: data)


def test_an_invalid_name_or_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="not a valid name"):
        register_backend("a[b]", lambda data: data)
    with pytest.raises(TypeError, match="expected a class or a function"):
        register_backend("x", 3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no method forward"):
        register_backend("x", dict)

    async def later(data: Any) -> Any:
        return data

    with pytest.raises(TypeError, match="async"):
        register_backend("x", later)


def test_a_class_without_declared_parameters_takes_any_key() -> None:
    class Mine(Backend):
        pass

    class Derived(Identity):
        pass

    assert adapt("x", Mine).parameters is None
    assert issubclass(adapt("x", Mine), Mine)
    assert adapt("x", Derived).parameters is Params


def test_any_class_with_forward_is_a_backend() -> None:
    calls: list[Any] = []

    class Plain:
        """Adds."""

        def init(self, params: dict[str, Any]) -> None:
            self.add = params["add"]

        def max(self) -> int:
            return 4

        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                item["result"] = item["data"] + self.add

        def close(self) -> None:
            calls.append("closed")

    register_backend("Plain", Plain)
    cls = find_backend("Plain")
    assert cls.__doc__ == "Adds."
    backend = cls()
    backend.init({"add": 5}, Context())
    item: Item = {"data": 1}
    backend.forward([item])
    backend.close()
    backend.close()
    assert (item["result"], backend.min, backend.max, calls) == (6, 1, 4, ["closed"])


def test_a_plain_class_can_set_its_range_and_take_the_context() -> None:
    class Plain:
        max = 3

        def init(self, params: Any, context: Context) -> None:
            self.node = context.node

        def forward(self, batch: list[Item]) -> None:
            batch[0]["result"] = self.node

    cls = adapt("Plain", Plain)
    assert cls.max == 3
    backend = cls()
    backend.init({}, Context(node="n"))
    item: Item = {"data": 0}
    backend.forward([item])
    assert item["result"] == "n"


def test_entry_points_are_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "theirs": EntryPoint(
            "theirs", "penstock.backends.operators.compose:Identity", registry.BACKEND_ENTRY_POINTS
        ),
        "broken": EntryPoint(
            "broken", "penstock.backends.nothing:There", registry.BACKEND_ENTRY_POINTS
        ),
    }
    monkeypatch.setattr(registry, "installed_plugins", lambda group: installed)
    assert find_backend("theirs") is Identity
    with pytest.raises(ConfigError, match=r"broken of .* can't be loaded: ModuleNotFoundError"):
        find_backend("broken")


def test_an_engine_whose_extra_is_missing_is_known_and_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "penstock.backends.engines.tensorrt.engine", raising=False)
    cls = find_backend("TensorrtTensor")
    assert cls.parameters is not None
    keys = {
        "model": "x.onnx",
        "max": 4,
        "mean": "1, 2.5",
        "model::cache": "x.trt",
        "precision::fp32": "a,b",
    }
    params = cls.parameters.model_validate(keys)
    assert params.mean == (1.0, 2.5)  # type: ignore[attr-defined]
    assert params.max == "4"  # type: ignore[attr-defined]
    assert cls.declared_range(params, ()) == (1, 4)
    with pytest.raises(BackendError, match="TensorrtTensor needs extra tensorrt"):
        cls().init(params, Context())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ("1", "4", (1, 4)),
        ("1x3x224x224", "4x3x224x224", (1, 4)),
        ("1x3,1x10;2x3,2x10", "2x3,2x10;8x3,8x10", (1, 8)),
    ],
)
def test_engine_shapes_give_the_batch_range(low: str, high: str, expected: tuple[int, int]) -> None:
    cls = find_backend("ModelTensor")
    assert cls.parameters is not None
    assert (
        cls.declared_range(
            cls.parameters.model_validate({"model": "x", "min": low, "max": high}), ()
        )
        == expected
    )


@pytest.mark.parametrize("name", registry.BUILTINS)
def test_every_backend_can_be_described(name: str) -> None:
    pytest.importorskip(registry.BUILTINS[name].partition(":")[0], exc_type=ImportError)
    description = describe(name)
    assert description.doc
    assert description.parameters is not None


def test_descriptions_name_parameters_as_files_write_them() -> None:
    description = describe("TensorrtTensor")
    parameters = {parameter.name: parameter for parameter in description.parameters or ()}
    assert parameters["model"].required
    assert parameters["model::cache"].type == "str | None"
    assert description.extra == "tensorrt"
