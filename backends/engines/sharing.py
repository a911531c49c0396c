"""Models that instances of this process share.

Each is loaded once, and kept while any instance holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

_lock = threading.Lock()
_loading: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
"""A lock for each key that is being loaded, so that models of different keys load side by side."""
_models: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
"""The models; weak, so that a model is freed with the last instance that holds it."""


def shared(key: Hashable, load: Callable[[], Any]) -> Any:
    """Return the model of `key` (file, its date and size, device, options).

    The first caller loads it, and callers meanwhile wait.
    """
    with _lock:
        lock = _loading.get(key)
        if lock is None:
            lock = _loading[key] = threading.Lock()
    with lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = load()
        return model


def version_of(path: Path) -> tuple[str, ...]:
    """Return a key of a file, which differs from that of other files and of itself before a
    change.
    """
    try:
        stat = path.stat()
    except OSError:  # its reader says so
        return (str(path),)
    numbers = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return (str(path.resolve()), *map(str, numbers))
