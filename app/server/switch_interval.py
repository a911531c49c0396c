"""How long a thread of the server may keep the GIL while others wait for it.

Python's 5 ms suit small requests: the event loop parses what has arrived before an executor gets
its turn, and short turns cost them a quarter of their rate at 256 connections. But an executor
that comes back from native code, several times an image, waits as long as that each time, and so
does the loop for an executor that computes in Python. So the turns are short while such a node is
loaded. docs/explanation/performance.md has the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline

SHORT_SECONDS = 0.0005

LONG_BATCH_SECONDS = 0.001
"""A thread whose batches take less than this can't keep the others waiting for long."""


class SwitchInterval:
    """Chooses the switch interval of this process by the pipelines that it has loaded."""

    def __init__(self) -> None:
        self._usual = sys.getswitchinterval()

    def choose(self, pipelines: Iterable[Pipeline]) -> None:
        """Set the interval for these pipelines: short turns if one of their nodes needs them."""
        needed = any(needs_short_turns(node) for pipeline in pipelines for node in pipeline.nodes)
        wanted = SHORT_SECONDS if needed else self._usual
        if sys.getswitchinterval() != wanted:
            sys.setswitchinterval(wanted)


def needs_short_turns(node: Node) -> bool:
    """Return whether the threads of a node wait for the GIL often, or keep it for long.

    That is known of built-in backends that run a model or look at pixels. Others are judged by
    their last batches.
    """
    if node.config.executor in ("loop", "process"):
        return False
    if any(True for group in node.config.instance_groups for _ in group.spec.blocking()):
        return True
    return node.estimate.recent >= LONG_BATCH_SECONDS
