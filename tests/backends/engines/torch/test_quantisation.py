"""PythonTensor's key `quantize`, with a stand-in for torchao, which is not among the tests'
packages.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.backends.base import Context
from penstock.backends.errors import BackendError

pytest.importorskip("torch")

NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        nn.init.constant_(self.fc.weight, 0.3)
        nn.init.zeros_(self.fc.bias)
    def forward(self, x):
        return self.fc(x)

class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)
"""


@pytest.fixture
def context(tmp_path: Any) -> Context:
    (tmp_path / "nets.py").write_text(NETS)
    return Context(node="net", directory=tmp_path)


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for torchao: halve the weights. Return the configurations that it was given."""
    given: list[Any] = []

    def quantize_(module: Any, configuration: Any) -> None:
        given.append(configuration)
        if configuration == "fp8-dynamic":
            raise AssertionError("needs CUDA compute capability 8.9")
        module.fc.weight.data.mul_(0.5)

    library = SimpleNamespace(
        quantize_=quantize_,
        Int8WeightOnlyConfig=lambda: "int8-weight-only",
        Float8DynamicActivationFloat8WeightConfig=lambda: "fp8-dynamic",
    )
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(quantization=library))
    monkeypatch.setitem(sys.modules, "torchao.quantization", library)
    return given


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ("4x3", "largest difference"),
        ("4", "not compared: their shapes are not known: max = 8x3x224x224 gives them"),
        ("4x5", "not compared: the model refuses random rows"),
    ],
)
def test_the_error_is_logged_once_for_all_instances(
    context: Context,
    torchao: list[Any],
    make: Any,
    caplog: pytest.LogCaptureFixture,
    batch: str,
    said: str,
) -> None:
    keys = {"quantize": "int8-weight-only", "max": batch, "batched": True}
    caplog.set_level(logging.INFO, "penstock.torch")
    # One of them loads the weights, whichever comes first.
    first = make("PythonTensor", "nets.py:Net", context, **keys)
    second = make("PythonTensor", "nets.py:Net", context, **keys)
    assert torchao == ["int8-weight-only"]
    (line,) = [text for text in caplog.messages if "against" in text]
    assert line.startswith(
        "node 'net': PythonTensor: quantize = int8-weight-only against fp32: " + said
    )
    for backend in (first, second):
        weight = backend.children[0].model.fc.weight
        assert weight.flatten()[0].item() == pytest.approx(0.15)


def test_the_error_is_logged_once_where_each_instance_has_its_own_weights(
    context: Context, torchao: list[Any], make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"quantize": "int8-weight-only", "max": "4x3", "ENABLE_WEIGHT_SHARING": False}
    caplog.set_level(logging.INFO, "penstock.torch")
    made = [
        make("PythonTensor", "nets.py:Net", replace(context, instance=instance), **keys)
        for instance in range(2)
    ]
    assert len(torchao) == len(made)
    assert sum("against fp32" in text for text in caplog.messages) == 1


def test_the_share_of_the_error_is_right(
    context: Context, torchao: list[Any], make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock.torch")
    made = make("PythonTensor", "nets.py:Net", context, quantize="int8-weight-only", max="4x3")
    assert made is not None  # it holds the weights
    assert "(5.0e-01 of the largest value)" in caplog.text


@pytest.mark.parametrize(
    ("net", "scheme", "said"),
    [
        ("Flat", "int8-weight-only", "for linear layers, and the model has none: remove the key"),
        ("Net", "fp8-dynamic", "can't quantize the model by fp8-dynamic: needs CUDA compute"),
    ],
)
def test_what_can_not_be_quantised(
    context: Context, torchao: list[Any], make: Any, net: str, scheme: str, said: str
) -> None:
    with pytest.raises(BackendError, match=said):
        make("PythonTensor", f"nets.py:{net}", context, quantize=scheme, max="4x3")


def test_a_missing_library_is_named(
    context: Context, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(BackendError, match=r"pip install 'penstock-serve\[torchao\]'"):
        make("PythonTensor", "nets.py:Net", context, quantize="int8-dynamic", max="4x3")
