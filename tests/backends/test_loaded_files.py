"""All instances of a load read the same bytes of a file."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from penstock.backends import loaded_files
from penstock.backends.base import Context
from penstock.backends.errors import BackendError
from penstock.backends.loaded_files import LoadedFiles


@pytest.fixture(params=[0, 10**18], ids=["settled", "just changed"])
def file(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose times are trusted, or too young for that."""
    monkeypatch.setattr(loaded_files, "SETTLED_NANOSECONDS", request.param)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"version 1")
    return path


def test_the_same_file_is_read_again(file: Path) -> None:
    files = LoadedFiles()
    files.check(file)
    files.check(file)
    files.verify()


def test_a_changed_file_is_refused(file: Path) -> None:
    files = LoadedFiles()
    files.check(file)
    file.write_bytes(b"version 2")
    with pytest.raises(BackendError, match=r"model.onnx has changed on disk since the pipeline"):
        files.check(file)
    with pytest.raises(BackendError, match="reload the pipeline"):
        files.verify()


def test_a_file_that_another_replaces_is_refused(file: Path, tmp_path: Path) -> None:
    """With the same size and modification time, as `rsync --times` and `cp -p` leave them."""
    files = LoadedFiles()
    files.check(file)
    other = tmp_path / "other"
    other.write_bytes(b"version 2")
    stat = file.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    with pytest.raises(BackendError, match="has changed"):
        files.check(file)


def test_a_copy_of_the_same_bytes_is_the_same_file(file: Path, tmp_path: Path) -> None:
    files = LoadedFiles()
    files.check(file)
    shutil.copy(file, tmp_path / "copy")
    (tmp_path / "copy").replace(file)
    files.check(file)
    files.verify()


def test_a_child_process_gets_and_gives_what_was_read(file: Path) -> None:
    files = LoadedFiles()
    in_child: LoadedFiles = pickle.loads(pickle.dumps(files))
    in_child.check(file)
    files.adopt(in_child.records)
    file.write_bytes(b"version 2")
    in_another = LoadedFiles()
    in_another.check(file)
    with pytest.raises(BackendError, match="has changed"):
        files.adopt(in_another.records)


def test_a_context_finds_and_checks_what_init_reads(file: Path) -> None:
    context = Context(directory=file.parent)
    assert context.resolve_input("model.onnx") == file
    file.write_bytes(b"version 2")
    with pytest.raises(BackendError, match="has changed"):
        context.resolve_input("model.onnx")
    assert context.resolve_input("missing.onnx") == file.parent / "missing.onnx"
