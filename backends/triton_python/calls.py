"""Calls of other models by a model."""

from __future__ import annotations

from typing import Any

from .error import TritonModelException


def run(request: Any, decoupled: bool) -> Any:
    """Send a request to another model."""
    raise TritonModelException("this server does not serve calls of other models yet")


def run_async(request: Any, decoupled: bool) -> Any:
    """Send a request to another model, from an event loop."""
    return run(request, decoupled)


def load_model(model_name: str, config: str = "", files: dict[str, bytes] | None = None) -> None:
    """Load a model."""
    raise TritonModelException("this server does not serve load_model yet")


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unload a model."""
    raise TritonModelException("this server does not serve unload_model yet")


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Return whether a model is ready."""
    raise TritonModelException("this server does not serve is_model_ready yet")
