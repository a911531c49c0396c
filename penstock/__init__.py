"""Penstock: an asyncio-native HTTP server for deep-learning pipelines.

The rooms are `penstock.app` (HTTP), `penstock.pipelines` (queues, scheduling) and `penstock.backends` (operators, engines).
The names below are imported on first use, so that `import penstock` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.app.factory import create_app
    from penstock.backends.base import Backend
    from penstock.backends.expressions.filters import Status, register_filter
    from penstock.backends.expressions.registry import register_backend
    from penstock.pipelines.blocking.calls import Event
    from penstock.pipelines.blocking.pipe import pipe
    from penstock.pipelines.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "Event",
    "Pipeline",
    "Status",
    "create_app",
    "pipe",
    "register_backend",
    "register_filter",
]

_HOMES = {
    "Backend": "penstock.backends.base",
    "Event": "penstock.pipelines.blocking.calls",
    "Pipeline": "penstock.pipelines.pipeline",
    "Status": "penstock.backends.expressions.filters",
    "create_app": "penstock.app.factory",
    "pipe": "penstock.pipelines.blocking.pipe",
    "register_backend": "penstock.backends.expressions.registry",
    "register_filter": "penstock.backends.expressions.filters",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
