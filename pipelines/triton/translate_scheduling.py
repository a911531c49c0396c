"""`dynamic_batching` as keys of the node and of the pipeline."""

from __future__ import annotations

from typing import Any

from ..config.source import Tables
from .model import TritonModel


def translate_scheduling(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Set how the node gathers batches, its priorities, and what waits for it."""
    if not model.config.HasField("dynamic_batching"):
        return
    batching = model.config.dynamic_batching
    if batching.max_queue_delay_microseconds:
        node["batching_timeout"] = batching.max_queue_delay_microseconds / 1000
    if batching.priority_levels:
        node["priority_levels"] = batching.priority_levels
        node["default_priority"] = batching.default_priority_level
    policy = batching.default_queue_policy
    if policy.max_queue_size:
        tables.pipeline["queue_size"] = policy.max_queue_size
    if policy.default_timeout_microseconds:
        tables.pipeline["queue_timeout"] = policy.default_timeout_microseconds / 1e6
