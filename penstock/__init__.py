"""Penstock: an asyncio-native HTTP server for deep-learning pipelines.

Everything that users need is imported from here. The names are loaded on first use, so that
`import penstock` costs nothing. The packages below (`penstock.app`, `penstock.pipelines`,
`penstock.backends`) are private and may move; `penstock.testing` has tools for tests.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.app.factory import create_app, create_router, lifespan
    from penstock.app.http.errors import exception_handler
    from penstock.app.settings import Settings
    from penstock.backends.base import Backend, Context, Params
    from penstock.backends.errors import (
        BackendError,
        ConfigError,
        DeadlineExceeded,
        DeviceError,
        InvalidInput,
        InvalidRequest,
        MemoryFull,
        MissingData,
        NotFound,
        NotReady,
        Overloaded,
        PenstockError,
        Problem,
        QueueFull,
        TooLarge,
        UnknownRestart,
        UnsupportedMedia,
    )
    from penstock.backends.expressions.filters import Status, register_filter
    from penstock.backends.expressions.registry import register_backend
    from penstock.backends.item import Item
    from penstock.backends.sequences.sequence import Sequence
    from penstock.pipelines.blocking.calls import Event
    from penstock.pipelines.blocking.pipe import pipe
    from penstock.pipelines.pipeline import Pipeline
    from penstock.pipelines.repository import Repository

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "BackendError",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "DeviceError",
    "Event",
    "InvalidInput",
    "InvalidRequest",
    "Item",
    "MemoryFull",
    "MissingData",
    "NotFound",
    "NotReady",
    "Overloaded",
    "Params",
    "PenstockError",
    "Pipeline",
    "Problem",
    "QueueFull",
    "Repository",
    "Sequence",
    "Settings",
    "Status",
    "TooLarge",
    "UnknownRestart",
    "UnsupportedMedia",
    "create_app",
    "create_router",
    "exception_handler",
    "lifespan",
    "pipe",
    "register_backend",
    "register_filter",
]

_ERRORS = "penstock.backends.errors"
_HOMES = {
    "Backend": "penstock.backends.base",
    "Context": "penstock.backends.base",
    "Event": "penstock.pipelines.blocking.calls",
    "Item": "penstock.backends.item",
    "Params": "penstock.backends.base",
    "Pipeline": "penstock.pipelines.pipeline",
    "Repository": "penstock.pipelines.repository",
    "Sequence": "penstock.backends.sequences.sequence",
    "Settings": "penstock.app.settings",
    "Status": "penstock.backends.expressions.filters",
    "create_app": "penstock.app.factory",
    "create_router": "penstock.app.factory",
    "exception_handler": "penstock.app.http.errors",
    "lifespan": "penstock.app.factory",
    "pipe": "penstock.pipelines.blocking.pipe",
    "register_backend": "penstock.backends.expressions.registry",
    "register_filter": "penstock.backends.expressions.filters",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, _ERRORS)), name)
    globals()[name] = value  # the next look-up is an ordinary one
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
