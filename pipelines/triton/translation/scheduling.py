"""`dynamic_batching` as keys of the node and of the pipeline."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ..model import TritonModel


def translate_scheduling(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Set how the node gathers batches, its priorities, and what may wait for it."""
    if not model.config.HasField("dynamic_batching"):
        if not model.config.HasField("sequence_batching") and model.backend != "ensemble":
            node["combine"] = False
        return
    batching = model.config.dynamic_batching
    if batching.max_queue_delay_microseconds:
        node["batching_timeout"] = batching.max_queue_delay_microseconds / 1000
    if batching.priority_levels:
        node["priority_levels"] = batching.priority_levels
        node["default_priority"] = batching.default_priority_level
    policy = batching.default_queue_policy
    if batching.priority_levels or policy.timeout_action == policy.DELAY:
        tables_of = {"default": policy}
        tables_of |= {str(level): own for level, own in batching.priority_queue_policy.items()}
        policies = {name: _policy(own) for name, own in tables_of.items()}
        if any(policies.values()):
            node["queue_policies"] = policies
        return
    # Without priorities there is one queue: that of the pipeline.
    if policy.max_queue_size:
        tables.pipeline["queue_size"] = policy.max_queue_size
    if policy.default_timeout_microseconds:
        tables.pipeline["queue_timeout"] = policy.default_timeout_microseconds / 1e6


def _policy(policy: Any) -> dict[str, Any]:
    """Return one table of `queue_policies`."""
    table: dict[str, Any] = {}
    if policy.max_queue_size:
        table["max_queue_size"] = policy.max_queue_size
    if policy.default_timeout_microseconds:
        table["timeout"] = policy.default_timeout_microseconds / 1e6
    if policy.timeout_action == policy.DELAY:
        table["on_timeout"] = "delay"
    return table
