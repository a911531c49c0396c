"""Warm-up of the torch engines, with models that refuse zeros."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, ConfigError, DeviceError

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

CODE = """
import torch

class Divided(torch.nn.Module):
    def forward(self, x):
        return torch.full_like(x, 12).long() // x.long()
"""


class Divided(torch.nn.Module):
    """12 divided by whole numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 12).long() // x.long()


@pytest.fixture
def divided(scripted: Any, exported: Any, make: Any, tmp_path: Path) -> Any:
    """Make the engine of a form of Divided, for batches of N×2."""

    def divided(form: str, **keys: Any) -> Any:
        (tmp_path / "net.py").write_text(CODE)
        models: dict[str, Any] = {
            "script": ("TorchScriptTensor", lambda: scripted(Divided())),
            "export": ("TorchExportTensor", lambda: exported(Divided(), torch.ones(3, 2))),
            "python": ("PythonTensor", lambda: "net.py:Divided"),
        }
        name, model = models[form]
        context = Context(node="node", pipeline="pipe", directory=tmp_path)
        return make(name, model(), context, **{"max": "4x2", **keys})

    return divided


FORMS = ["script", "export", "python"]


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_refuses_zeros_is_loaded_with_one_warning(
    divided: Any, run: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = divided(form)
    backend.warm_up()
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "is not warmed up, because the model refuses zeros: " in record.message
    assert "ZeroDivisionError" in record.message
    ones, fours = run(backend, torch.ones(1, 2), torch.full((1, 2), 4.0))
    assert (ones.tolist(), fours.tolist()) == ([[12, 12]], [[3, 3]])


@pytest.mark.parametrize("form", FORMS)
def test_warm_up_can_be_left_out(divided: Any, form: str, caplog: pytest.LogCaptureFixture) -> None:
    divided(form, warm_up=False).warm_up()
    assert "warmed" not in caplog.text


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("most", ["4x2", 4])
@pytest.mark.parametrize("form", FORMS)
def test_values_for_the_warm_up(
    divided: Any,
    tmp_path: Path,
    form: str,
    most: Any,
    batched: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[3, 4], [1, 1]][: 1 if batched else 2], np.float32))
    backend = divided(form, warm_up="x.npz", max=most, batched=batched)
    engine = backend.children[0]
    ran, run = [], engine._run

    def spy(inputs: Any, names: Any = ()) -> Any:
        ran.append(inputs[0].tolist())
        return run(inputs, names)

    monkeypatch.setattr(engine, "_run", spy)
    backend.warm_up()
    assert "warm" not in caplog.text
    if batched:
        assert [len(rows) for rows in ran[:: engine.warm_up_runs]] == [4, 2, 1]
        assert all(row == [3, 4] for rows in ran for row in rows)
    else:
        assert ran == [[[3, 4], [1, 1]]] * engine.warm_up_runs


def test_values_that_do_not_fit_are_an_error_of_the_file(divided: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", y=np.ones((1, 2), np.float32))
    with pytest.raises(ConfigError, match=r"\[node\] warm_up: .*input 'y' is unknown"):
        divided("script", warm_up="y.npz").warm_up()
    with pytest.raises(ConfigError, match=r"\[node\] warm_up: .*FileNotFoundError"):
        divided("script", warm_up="none.npz").warm_up()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("postprocessor", "Softmax", "Softmax needs a model with one output"),
        ("output_reorder", "0,1", "'0,1' names 2 outputs, but the model has 3"),
    ],
)
def test_keys_that_do_not_fit_the_model_fail_the_load(
    scripted: Any, make: Any, key: str, value: str, message: str
) -> None:
    class Three(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return x, x, x

    keys = {"max": "4x2", "batched": True, key: value}
    with pytest.raises((BackendError, ConfigError), match=message):
        make("TorchScriptTensor", scripted(Three()), **keys).warm_up()


def test_outputs_that_can_not_be_given_fail_the_load(scripted: Any, make: Any) -> None:
    class Number(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> int:
            return x.ndim

    with pytest.raises(BackendError, match="the model returned a int: expected a tensor"):
        make("TorchScriptTensor", scripted(Number()), max="4x2", batched=True).warm_up()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", MemoryError),
        ("CUDA error: device-side assert triggered", DeviceError),
    ],
)
def test_errors_of_the_device_fail_the_load(
    divided: Any, text: str, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = divided("script", batched=True)

    def fail(*_: Any) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr(backend.children[0], "_run", fail)
    with pytest.raises(error):
        backend.warm_up()
