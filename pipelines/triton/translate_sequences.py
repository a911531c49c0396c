"""`sequence_batching` as `[NODE.sequence]`."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .model import TritonModel


def translate_sequences(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node keep the states of sequences, if the model does."""
    if model.config.HasField("sequence_batching"):
        message = "sequences of Triton's models are not translated yet"
        tables.problems.append(model.problem("sequence_batching", message))
