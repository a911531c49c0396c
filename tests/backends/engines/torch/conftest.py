"""Fixtures that save modules of torch in every format that the engines read, and run them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.expressions.registry import find_backend
from penstock.backends.item import Item
from penstock.backends.user_code import load

HAS_TORCH = find_spec("torch") is not None
"""Without torch, the tests that need it are skipped."""

if TYPE_CHECKING or HAS_TORCH:
    import torch

    from penstock.backends.engines.torch import options

RESNET = Path(__file__).parents[4] / "examples" / "resnet" / "export.py"


@pytest.fixture(autouse=True)
def _own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the process-wide options that earlier tests have set."""
    if HAS_TORCH:
        monkeypatch.setattr(options, "_set", {})


@pytest.fixture(autouse=True)
def _own_threads() -> Any:
    """Restore torch's number of threads, which engines set on the test's own thread."""
    before = torch.get_num_threads() if HAS_TORCH else 0
    yield
    if HAS_TORCH:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def resnet() -> Any:
    """Make ResNet-18 with weights of a fixed seed."""
    return load(f"{RESNET}:build", Path())("resnet18")


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[..., Path]:
    """Save a module as TorchScript: with `trace` if examples are given, else with `script`."""

    def scripted(module: Any, *examples: Any, name: str = "model.pt") -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            jit: Any = torch.jit  # its functions are untyped
            made = jit.trace(module, examples) if examples else jit.script(module)
            torch.jit.save(made, tmp_path / name)
        return tmp_path / name

    return scripted


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """Save a module with torch.export, for any batch size or (`fixed`) that of the examples."""

    def exported(
        module: Any,
        *examples: Any,
        fixed: bool = False,
        shapes: Any = None,
        name: str = "model.pt2",
    ) -> Path:
        batch = torch.export.Dim("batch")
        dynamic = None if fixed else shapes or tuple({0: batch} for _ in examples)
        torch.export.save(
            torch.export.export(module.eval(), examples, dynamic_shapes=dynamic), tmp_path / name
        )
        return tmp_path / name

    return exported


@pytest.fixture
def make() -> Any:
    """Make a backend by its name, and close it after the test."""
    made: list[Backend] = []

    def make(name: str, model: Any, context: Context | None = None, **keys: Any) -> Backend:
        cls = find_backend(name)
        assert cls.parameters is not None
        backend = cls()
        made.append(backend)
        backend.init(
            cls.parameters.model_validate({"model": str(model), **keys}),
            context or Context(node="node", pipeline="pipe"),
        )
        return backend

    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def run() -> Callable[..., list[Any]]:
    """Run a batch of these data. Return each item's result, or its error."""

    def run(backend: Backend, *data: Any, **keys: Any) -> list[Any]:
        batch: list[Item] = [{"data": value, **keys} for value in data]
        backend.forward(batch)
        return [item.get("result", item.get("error")) for item in batch]

    return run


@pytest.fixture
def images() -> Callable[..., Any]:
    def images(count: int, size: int = 64) -> Any:
        return np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)

    return images
