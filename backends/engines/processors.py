"""The processors of this machine, shared among the instances of a node."""

from __future__ import annotations

import os


def threads_per_instance(instances: int) -> int:
    """Return how many threads each instance may use.

    That is its share of the processors that this process may run on, and at least one.
    """
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(1, processors // instances)
