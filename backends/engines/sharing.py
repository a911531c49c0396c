"""Models that instances of this process share.

Each is loaded once, and kept while any instance holds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
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
