"""A user's own code, named as `module:name` or `file.py:name`: find it and import it."""

from __future__ import annotations

import sys
import threading
from hashlib import sha256
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import CodeType, ModuleType
from typing import Any

from .base import Context
from .errors import ConfigError, Problem
from .suggestions import did_you_mean
from .text import message_of

_running: dict[str, threading.RLock] = {}
"""By name of the module: held while a user's file runs, so that no other thread finds a half-run
module. An import that never ends holds up no other file, nor the same file once it is mended.
"""


def load(target: str, directory: Path) -> Any:
    """Import what `module:name` or `file.py:name` names: a class or a function.

    A file is looked for in `directory`, then in the working directory. It is imported under a
    private name and `sys.path` stays as it is, so two pipelines can each have their own `ops.py`.

    Raises ConfigError if it can't be found or its import fails.
    """
    place, _, attribute = target.rpartition(":")
    if not place or not attribute:
        raise ConfigError([Problem(f"expected module:Class or file.py:Class, found {target!r}")])
    try:
        if place.endswith(".py"):
            module = _load_file(Context(directory=directory).resolve(place))
        else:
            module = import_module(place)
    except FileNotFoundError as error:
        message = f"there is no file {error.filename or place!r} for Python[{target}]"
        raise ConfigError([Problem(message)]) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a file to import must not end the program
        reason = f"{type(error).__name__}: {message_of(error)}{_line_of(error)}"
        message = f"importing {place!r} for Python[{target}] failed: {reason}"
        raise ConfigError([Problem(message)]) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        hint = did_you_mean(attribute, vars(module))
        raise ConfigError([Problem(f"{place!r} has no {attribute!r}{hint}")]) from None


def _line_of(error: BaseException) -> str:
    """Return ` (FILE:LINE)` for the line that raised during an import.

    Empty if no code ran: the module was not found, or the file is not valid Python, which the
    error itself locates.
    """
    frames = [
        frame
        for frame in extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    stat = path.stat()
    version = f"{path}|{stat.st_mtime_ns}|{stat.st_size}"
    name = f"_penstock_{path.stem}_{sha256(version.encode()).hexdigest()[:12]}"
    with _running.setdefault(name, threading.RLock()):
        return sys.modules[name] if name in sys.modules else _run_file(name, path)


class UncachedLoader(SourceFileLoader):
    """Compiles the source each time. Python takes bytecode that it has kept for the same file if
    size and time, in seconds, are the same: not what was saved again a moment later.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _run_file(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path, loader=UncachedLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    # Before it runs: dataclasses and pydantic look their module up in sys.modules.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
