"""Loads a handler from the folder of an unpacked archive."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BackendError
from .context import Context
from .modules import BUILT_IN, built_in
from .util import list_classes_from_module

_importing = threading.RLock()
"""Held while an archive's modules are imported: they have plain names, such as `model`."""

Handle = Callable[[Any, Context], Any]


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """Let modules be imported from the folder, by names that other archives may have too.

    They are forgotten at the end, so that the next archive gets its own. The folder stays on
    `sys.path` for what the handler imports later.
    """
    with _importing:
        sys.path[:] = [str(folder), *(place for place in sys.path if place != str(folder))]
        names = {path.stem for path in folder.glob("*.py")}
        names |= {path.parent.name for path in folder.glob("*/__init__.py")}
        hidden = {
            name: sys.modules.pop(name)
            for name in list(sys.modules)
            if name.partition(".")[0] in names
        }
        importlib.invalidate_caches()
        try:
            yield
        finally:
            for name in [name for name in list(sys.modules) if name.partition(".")[0] in names]:
                del sys.modules[name]
            sys.modules.update(hidden)


def find_handler(name: str, folder: Path) -> tuple[str, str]:
    """Return the module of a handler and its function, "" if none is named.

    `name`: `file.py`, `file.py:function` or the name of one of TorchServe's. Nothing is imported.
    Raises BackendError if there is none.
    """
    place, _, function = name.partition(":")
    stem = Path(place).name.removesuffix(".py")
    if stem not in BUILT_IN and not (folder / f"{stem}.py").is_file():
        raise BackendError(
            f"found handler {name!r}, and no file {stem}.py beside it: expected such a file, or "
            f"one of {', '.join(BUILT_IN)}"
        )
    return stem, function


def load_handler(name: str, folder: Path, context: Context) -> Handle:
    """Import and initialise a handler, named as for `find_handler`.

    Raises BackendError if there is none; other exceptions are the handler's own.
    """
    stem, function = find_handler(name, folder)
    if (folder / f"{stem}.py").is_file():
        module = importlib.import_module(stem)
        function = function or "handle"
        if hasattr(module, function):
            handle: Handle = getattr(module, function)
            handle(None, context)  # TorchServe initialises a function so
            return handle
        classes = list_classes_from_module(module)
        if len(classes) != 1 or not hasattr(classes[0], "handle"):
            raise BackendError(
                f"{folder / stem}.py: expected a function {function!r}, or one class with a method "
                f"handle; found the classes {', '.join(cls.__name__ for cls in classes) or 'none'}"
            )
        handler = classes[0]()
    else:
        handler = built_in(stem)()
    handler.initialize(context)
    return handler.handle  # type: ignore[no-any-return]
