"""Triton's pytorch backend."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .model import TritonModel


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the model."""
    message = "models of backend 'pytorch' are not served yet"
    tables.problems.append(model.problem("backend", message))
