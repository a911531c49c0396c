"""HTTP and the command line.

`create_app`, `create_router` and `lifespan` are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .factory import create_app, create_router, lifespan

__all__ = ["create_app", "create_router", "lifespan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'penstock.app' has no attribute {name!r}")
    from . import factory

    return getattr(factory, name)
