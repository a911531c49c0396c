"""What the nodes of a pipeline do, as a snapshot shows it."""

from __future__ import annotations

import time
from typing import Any

from penstock.pipelines.composites.composite import CompositeNode
from penstock.pipelines.node.executor import Executor
from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline

from .totals import NodeTotals


def node_activity(
    node: Node | CompositeNode,
    pipeline: Pipeline,
    now: NodeTotals,
    before: NodeTotals,
    seconds: float,
) -> dict[str, Any]:
    """Return what a node does, and what it did in the last `seconds` (0: unknown)."""
    items, batches = now.items - before.items, now.batches - before.batches
    return {
        "name": node.name,
        "queued": now.queued,
        "items": now.items,
        "batches": now.batches,
        "items_per_s": rate(items, seconds),
        "batches_per_s": rate(batches, seconds),
        "batch_size": _mean(now.rows - before.rows, batches),
        "queue_ms": _mean(
            1000 * (now.queue_seconds - before.queue_seconds), now.waits - before.waits
        ),
        "run_ms": _mean(1000 * (now.run_seconds - before.run_seconds), batches),
        "executors": [
            *(executors_of(node, pipeline) if isinstance(node, Node) else ()),
            *now.instances,
        ],
    }


def executors_of(node: Node, pipeline: Pipeline) -> list[dict[str, Any]]:
    """Describe each instance of a node, in order, also one whose thread has ended."""
    now = time.monotonic()
    absent = "loading" if pipeline.state == "loading" else "restarting"
    threads: dict[str, Executor] = {}
    for executor in node.executors:  # a thread that ends may have its successor already
        if executor.loaded or executor.name not in threads:
            threads[executor.name] = executor
    shown = []
    for number in range(sum(group.instances for group in node.config.instance_groups)):
        name = f"{pipeline.name}/{node.name}#{number}"
        thread = threads.get(name)
        state, ms, device = absent, None, ""
        if thread is not None and thread.loaded:
            device = next(
                (key for key, group in node.devices.items() if group is thread.device_group), ""
            )
            batch = node.scheduler.running.get(thread)
            if batch is not None:
                state = "stuck" if batch.stuck or batch.hung else "running"
                ms = round(1000 * max(0.0, now - batch.started), 3)
            if not thread.ready:
                state, ms = "restarting", None
            elif batch is None:
                state = "idle"
        shown.append({"name": name, "state": state, "ms": ms, "device": device})
    return shown


def rate(count: float, seconds: float) -> float | None:
    """Return how many there were in a second; None if the time is unknown (0)."""
    return round(count / seconds, 2) if seconds > 0 else None


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 3) if count else None
