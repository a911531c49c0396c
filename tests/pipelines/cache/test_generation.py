"""What tells the answers of one pipeline from those of another, in what several processes share."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.cache.generation import generation_of
from penstock.pipelines.config.load import load
from penstock.pipelines.node.files import config_files

CODE = "def shout(text):\n    return text.upper()\n"
FILE = '[pipeline]\ncache = true\ninputs.data = {{ kind = "text" }}\n[n]\nbackend = "{}"\n'


def made(folder: Path, code: str = CODE, backend: str = "Python[ops.py:shout]") -> bytes:
    folder.mkdir(exist_ok=True)
    (folder / "ops.py").write_text(code)
    (folder / "p.toml").write_text(FILE.format(backend))
    config = load(folder / "p.toml")
    return generation_of(config, [config_files(config)])


def test_the_same_files_elsewhere_are_the_same(tmp_path: Path) -> None:
    assert made(tmp_path / "a") == made(tmp_path / "b") == made(tmp_path / "a")


def test_another_file_or_configuration_is_another(tmp_path: Path) -> None:
    made_of: list[dict[str, Any]] = [
        {},
        {"code": CODE + "\n"},
        {"backend": "Identity"},
        {"backend": "S[Python[ops.py:shout]]"},
    ]
    generations = {made(tmp_path / str(n), **each) for n, each in enumerate(made_of)}
    assert len(generations) == len(made_of)


def test_labels_are_of_the_files(tmp_path: Path) -> None:
    """Those of declared outputs, and of what exposed nodes answer."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one\ntwo\n")
    (tmp_path / "p.toml").write_text(
        '[pipeline.outputs.x]\nlabels = "a.txt"\n'
        '[pipeline.expose.n.outputs.x]\nlabels = "b.txt"\n[n]\nbackend = "Identity"\n'
    )
    files = config_files(load(tmp_path / "p.toml"))
    assert files.changed() == []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one\nthree\n")
    assert files.changed() == [tmp_path / "a.txt", tmp_path / "b.txt"]


def test_code_of_a_module_is_known_by_its_file(own_registry: None) -> None:
    register_backend("Known", made)
    tables = {"n": {"backend": "Known"}}
    assert generation_of(load(tables), []) == generation_of(load(tables), [])


def test_code_in_no_file_is_that_of_one_load(
    own_registry: None, caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {}
    exec("def typed(data): return data", names)
    register_backend("Typed", names["typed"])
    caplog.set_level(logging.WARNING, "penstock.cache")
    tables = {"n": {"backend": "Typed"}}
    assert generation_of(load(tables), []) != generation_of(load(tables), [])
    assert "for this process alone" in caplog.text
