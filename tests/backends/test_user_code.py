"""Importing what `module:name` and `file.py:name` name."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from penstock.backends.errors import ConfigError
from penstock.backends.operators.compose import Identity
from penstock.backends.user_code import load
from penstock.testing import Gate

OPS = """
from dataclasses import dataclass

@dataclass
class State:
    factor: int = 3

def triple(data):
    return data * State().factor
"""


def test_a_file_is_loaded_without_changing_sys_path(tmp_path: Path) -> None:
    (tmp_path / "ops.py").write_text(OPS)
    before = list(sys.path)
    assert load("ops.py:triple", tmp_path)(2) == 6
    assert sys.path == before
    assert "ops" not in sys.modules
    assert load("ops.py:triple", tmp_path) is load("ops.py:triple", tmp_path)


def test_a_file_saved_again_within_a_second_is_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would take the bytecode that it has kept for a file of the same size and second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "ops.py"
    for nanoseconds, answer in ((1_000_000_000_000, 1), (1_000_000_500_000, 2)):
        path.write_text(f"def answer():\n    return {answer}\n")
        os.utime(path, ns=(nanoseconds, nanoseconds))
        assert load("ops.py:answer", tmp_path)() == answer


def test_a_module_is_imported() -> None:
    assert load("penstock.backends.operators.compose:Identity", Path()) is Identity


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing.py:f", "there is no file .*nothing.py"),
        ("ops.py:tripel", "has no 'tripel', did you mean 'triple'"),
        ("penstock.nowhere:f", "importing 'penstock.nowhere' .* failed: ModuleNotFoundError"),
        ("broken.py:f", r"failed: ZeroDivisionError: division by zero \(/.*/broken\.py:1\)$"),
        ("unfinished.py:f", r"failed: SyntaxError: .* \(unfinished\.py, line 1\)$"),
        (":f", "expected module:Class or file.py:Class"),
    ],
)
def test_loading_fails(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "ops.py").write_text(OPS)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "unfinished.py").write_text("f(")
    with pytest.raises(ConfigError, match=message):
        load(target, tmp_path)


def test_an_import_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    """Nor the same file, once it is mended."""
    gate = Gate()
    module = ModuleType("user_code_gate")  # the file imports it
    vars(module)["wait"] = gate.wait
    sys.modules["user_code_gate"] = module
    try:
        (tmp_path / "hangs.py").write_text("import user_code_gate\nuser_code_gate.wait()\nf = 1\n")
        (tmp_path / "ops.py").write_text(OPS)
        thread = threading.Thread(target=load, args=("hangs.py:f", tmp_path), daemon=True)
        thread.start()
        gate.wait_entered()
        assert load("ops.py:triple", tmp_path)(2) == 6
        (tmp_path / "hangs.py").write_text("f = 'mended'\n")
        assert load("hangs.py:f", tmp_path) == "mended"
        gate.open()
        thread.join(20)
    finally:
        del sys.modules["user_code_gate"]
