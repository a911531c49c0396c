"""`model_warmup` as what the node runs before it is ready."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .model import TritonModel


def translate_warm_up(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Set the samples that the node runs before it is ready."""
    if model.config.model_warmup:
        message = "samples for warming up are not translated yet"
        tables.problems.append(model.problem("model_warmup", message))
