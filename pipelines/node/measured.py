"""Which nodes of built-in operators are so cheap that they run on the event loop: measured at load.

It concerns nodes whose `executor` is `auto`. Their backends are Penstock's own operators for keys,
control and post-processing, and nothing else: what a user's function costs is never guessed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from penstock.backends.base import Backend
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.backends.operators.control import KeyParams

from ..config.definition import NodeConfig, PipelineConfig
from .placement import context_of

logger = logging.getLogger("penstock.node")

CHEAP_SECONDS = 0.0001
"""A node is cheap if its largest batch takes no longer: about what a thread costs a batch."""

RUNS = 5
"""How often the batch runs at most. One run that is short is enough: a run takes longer than it
needs only because of other work.
"""


async def resolved(
    config: PipelineConfig, clock: Callable[[], float] = time.perf_counter
) -> PipelineConfig:
    """Return the configuration with `thread` in place of `auto` where a node is not cheap.

    The log says where each measured node runs. Other work of the loop comes between two nodes.
    """
    nodes = dict(config.nodes)
    for name, node in config.nodes.items():
        if node.executor == "auto" and node.shares is None:
            cheap = is_cheap(node, config, clock)
            if not cheap:
                nodes[name] = replace(node, executor="thread")
            logger.info(
                'node %s: runs on %s, as measured (executor = "auto")',
                name,
                "the event loop" if cheap else "a thread",
                extra={"pipeline": config.name, "node": name},
            )
            await asyncio.sleep(0)
    return replace(config, nodes=nodes)


def is_cheap(node: NodeConfig, config: PipelineConfig, clock: Callable[[], float]) -> bool:
    """Return whether the largest batch of a node takes at most `CHEAP_SECONDS`.

    False if it can't be measured: whatever is wrong is reported when the node loads.
    """
    group = node.instance_groups[0]
    try:
        backend = group.spec.create(context_of(node, config, 0, 0))
        try:
            data, keys = _sample_of(backend), dict.fromkeys(_keys(group.spec))
            size = group.bound(backend.max)
            return all(
                _is_cheap(backend, {"data": data, **given}, size, clock) for given in ({}, keys)
            )
        finally:
            backend.close()
    except Exception:
        return False


def _is_cheap(backend: Backend, sample: Item, size: int, clock: Callable[[], float]) -> bool:
    for _ in range(RUNS):
        batch: list[Item] = [_Sample(sample) for _ in range(size)]
        began = clock()
        backend.forward(batch)
        if clock() - began <= CHEAP_SECONDS:
            return not any("error" in item for item in batch)
    return False


class _Sample(dict[Any, Any]):
    """An item that has every key that an operator reads or removes."""

    def __missing__(self, key: Any) -> Any:
        return self["data"]

    def __delitem__(self, key: Any) -> None:
        self.pop(key, None)


def _sample_of(backend: Backend) -> Any:
    """Return the sample of the first member that has one of its own."""
    samples = (sample for child in backend.children if (sample := _sample_of(child)) is not None)
    return next(samples, None) if backend.sample is None else backend.sample


def _keys(spec: Spec) -> Iterator[str]:
    """Yield the keys that decide which way an item goes (`HasKey`)."""
    if isinstance(spec.params, KeyParams):
        yield spec.params.key
    for child in spec.children:
        yield from _keys(child)
