"""The torch engines as files know them: what a machine without torch can do with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from penstock.backends.engines.shapes import shape_key
from penstock.backends.expressions.registry import describe

ENGINES = ("TorchScriptTensor", "TorchExportTensor", "PythonTensor")


@pytest.mark.parametrize("name", ENGINES)
def test_they_say_what_they_need(name: str) -> None:
    found = describe(name)
    assert found.extra == "torch"
    assert {"model", "max", "cuda_graphs", "INFERENCE_MODE"} <= {
        each.name for each in found.parameters or ()
    }


def test_without_torch_a_file_is_checked_and_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None
from penstock.backends.base import Context
from penstock.backends.errors import BackendError
from penstock.pipelines.config.load import load
for engine in ("TorchScriptTensor", "TorchExportTensor", "PythonTensor"):
    config = load({"net": {"backend": engine, "model": "net.py:Net", "max": "4x3", "inference_mode": False}})
    spec = config.nodes["net"].groups[0].spec
    print(spec.declared_range)
    try:
        spec.create(Context())
    except BackendError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    needs = "needs extra torch, which is not installed here: pip install 'penstock-serve[torch]'"
    assert done.stdout.splitlines() == [
        line for engine in ENGINES for line in ("[1, 4]", f"{engine} {needs}")
    ], done.stderr


def test_what_one_run_may_not_mix() -> None:
    class Array:
        shape, dtype = (2, 3, 4), "uint8"

    assert shape_key({"data": Array()}) == ((3, 4), "uint8")
    assert shape_key({"data": [Array(), "text"]}) == (((3, 4), "uint8"), None)
    assert (
        shape_key({"data": {"image": Array()}})
        is shape_key({"data": "text"})
        is shape_key({})
        is None
    )
