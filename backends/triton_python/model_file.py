"""Find and import `model.py`, as Triton does.

A child process has one model: its module is `VERSION.model`, and the version's folder and the
model's are at the end of `sys.path`. On threads, models share the interpreter: each `model.py` is a
module of a package of its own, so relative imports work, and `import helper` at its top finds the
files beside this `model.py`, not those of another model. One inside a method may find the module
that another model has imported inside a method.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from ..errors import BackendError
from ..text import message_of
from ..user_code import UncachedLoader
from . import running, utils
from .running import RunningModel

CLASS = "TritonPythonModel"

_importing = threading.RLock()
_numbers = count(1)


def load(model: RunningModel, file: Path) -> Any:
    """Import a `model.py` and return its class TritonPythonModel. `unload` ends what it imports.

    Raises BackendError if it can't be imported or has no such class.
    """
    utils.install()
    if not model.beside:
        sys.dont_write_bytecode = True  # a repository may be read-only, or shared with Triton
        sys.argv = [""]  # as in Triton: what parses it must not find our own arguments
        sys.path += [str(file.parent), str(file.parent.parent)]
    package = model.package or file.parent.name
    try:
        with _imports_beside(model):
            module = _import(package, file)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a model must not end the program
        raise BackendError(
            f"importing {file} failed: {type(error).__name__}: {message_of(error)}"
        ) from error
    vars(module)[running.GLOBAL] = model
    try:
        return getattr(module, CLASS)
    except AttributeError:
        raise BackendError(f"{file} has no class {CLASS}") from None


def package_of_thread() -> str:
    """Return a new name for the package of a model that shares the interpreter with others."""
    return f"_penstock_triton_{next(_numbers)}"


def unload(model: RunningModel) -> None:
    """Let go of a model's modules. In a child process they end with it."""
    if not model.package:
        return
    for name in [name for name in [*sys.modules] if name.partition(".")[0] == model.package]:
        sys.modules.pop(name, None)


def check(file: Path) -> None:
    """Raise BackendError if a `model.py` can't be read or is not Python. Runs nothing of it."""
    try:
        compile(file.read_bytes(), file, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise BackendError(
            f"{file} can't be imported: {type(error).__name__}: {message_of(error)}"
        ) from error


def _import(package: str, file: Path) -> ModuleType:
    """Import a file as a module of a package, whose other modules are the files beside it."""
    parent = ModuleType(package)
    parent.__path__ = [str(file.parent)]
    name = f"{package}.{file.stem}"
    spec = spec_from_file_location(name, file, loader=UncachedLoader(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[package], sys.modules[name] = parent, module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _imports_beside(model: RunningModel) -> Iterator[None]:
    """Let a model find the files beside it, and let no other model find what it imported."""
    if not model.beside:
        yield
        return
    with _importing, model.entered():
        if _Beside not in sys.meta_path:
            sys.meta_path.append(_Beside)
        _forget_found()
        try:
            yield
        finally:
            _forget_found()


def _forget_found() -> None:
    for name in [name for name in [*sys.modules] if name.partition(".")[0] in _Beside.found]:
        sys.modules.pop(name, None)
    _Beside.found.clear()


class _Beside:
    """Finds modules beside the model whose code runs on this thread, after all other finders."""

    found: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        model = running.on_this_thread()
        if model is None or path is not None:
            return None
        spec = PathFinder.find_spec(name, model.beside, target)
        if spec is not None:
            cls.found.add(name)
        return spec
