"""The backends that files name, on a machine without torch: files are checked, and `init` says what
is missing.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from penstock.backends.expressions.registry import describe

ENGINES = ("TorchScriptTensor", "TorchExportTensor", "PythonTensor")


@pytest.mark.parametrize("name", ENGINES)
def test_descriptions_name_the_extra_and_the_parameters(name: str) -> None:
    description = describe(name)
    assert description.extra == "torch"
    assert {"model", "max", "cuda_graphs", "INFERENCE_MODE"} <= {
        parameter.name for parameter in description.parameters or ()
    }


def test_without_torch_a_file_is_checked_and_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None
from penstock.backends.base import Context
from penstock.backends.errors import BackendError
from penstock.pipelines.config.load import load
for engine in ("TorchScriptTensor", "TorchExportTensor", "PythonTensor"):
    keys = {"backend": engine, "model": "net.py:Net", "max": "4x3", "inference_mode": False}
    config = load({"net": keys})
    spec = config.nodes["net"].instance_groups[0].spec
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
