"""Models that the instances of a process share: loaded once, for as long as somebody uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakValueDictionary

_lock = threading.Lock()
_loading: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
_models: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()


def shared(key: Hashable, load: Callable[[], Any]) -> Any:
    """The model of `key` (file, its date and size, device, options), loaded by whoever asks first; the others wait."""
    with _lock:
        lock = _loading.get(key)
        if lock is None:
            lock = _loading[key] = threading.Lock()
    with lock:
        model = _models.get(key)
        if model is None:
            model = _models[key] = load()
        return model
