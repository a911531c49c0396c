"""The processors that the threads of an instance stay on.

On a machine of several memory nodes (NUMA), a thread reads the memory of its own node sooner. So
there an instance stays on one node, from which its memory then comes, as long as its threads fit.
With the key `pin_cores` it has processors of its own, on any machine.

The executor's thread is placed, before its engine starts other threads: they stay where it is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..base import Context
from .processors import allowed_processors, cpu_quota, stay_on

logger = logging.getLogger("penstock.cores")

Cores = frozenset[int]

_lock = threading.Lock()
_claims: Counter[int] = Counter()
"""The threads of instances on each processor, as counted."""
_thread = threading.local()
"""`place`: that of this thread. `free`: true while it opens engines that are not to be placed."""


class Place:
    """The processors of an instance, until it is released.

    `node`: the processors of its memory node; None if there is but one, or it stays on none.
    """

    __slots__ = ("_claimed", "_ident", "node")

    def __init__(self, node: Cores | None = None, claimed: Cores = frozenset()) -> None:
        self.node = node
        self._claimed = claimed
        self._ident = threading.get_ident()

    def release(self) -> None:
        """Leave the processors to others. The thread may run everywhere again."""
        with _lock:
            _claims.subtract(self._claimed)
        if self._claimed and self._ident == threading.get_ident():
            _thread.place = None
            stay_on(None)
        self._claimed = frozenset()


class Choice(NamedTuple):
    cores: Cores
    node: Cores | None
    """The memory node that has all of them; None if they are of several, or there is but one."""


def place(context: Context, threads: int, *, pins: bool, engine: str) -> Place:
    """Place this thread, which is that of an instance that computes with so many threads.

    `pins`: on processors of its own, if there are enough for all instances of the node. `engine` is
    the backend's name, for the log. A thread that is placed stays where it is.
    """
    if context.opens_only or getattr(_thread, "free", False):
        return Place()
    if (current := getattr(_thread, "place", None)) is not None:
        return Place(current.node)
    nodes = memory_nodes()
    pins = pins and may_pin(context, threads, engine)
    if len(nodes) < 2 and not pins:
        return Place()
    with _lock:
        claims = Counter(_claims)
        # A child process does not know where the other children of its node are: it counts them
        # where they are if all of them choose in their order.
        for _ in range(context.instance if context.alone else 0):
            claims.update(_claimed(choose(nodes, claims, threads, pins=pins), claims, threads))
        choice = choose(nodes, claims, threads, pins=pins)
        claimed = _claimed(choice, claims, threads)
        _claims.update(claimed)
    stay_on(choice.cores)
    logger.info(
        "%s: %s: instance %d stays on the processors %s",
        context.node,
        engine,
        context.instance,
        ", ".join(map(str, sorted(choice.cores))),
        extra={"pipeline": context.pipeline, "node": context.node},
    )
    _thread.place = placed = Place(choice.node, claimed)
    return placed


def choose(
    nodes: Sequence[Cores], claims: Mapping[int, int], threads: int, *, pins: bool
) -> Choice:
    """Choose the processors of so many threads: those of the memory node with the fewest claims, or
    with `pins` as many as there are threads. If no node has enough, they come from all.
    """
    large = [node for node in nodes if len(node) >= threads]
    candidates = large or [frozenset[int]().union(*nodes)]
    if pins:
        candidates = [_least_claimed(node, claims, threads) for node in candidates]
    best = min(range(len(candidates)), key=lambda index: _load(candidates[index], claims))
    return Choice(candidates[best], large[best] if large and len(nodes) > 1 else None)


def _load(cores: Cores, claims: Mapping[int, int]) -> float:
    return sum(claims.get(core, 0) for core in cores) / len(cores)


def _least_claimed(cores: Cores, claims: Mapping[int, int], count: int) -> Cores:
    return frozenset(sorted(cores, key=lambda core: (claims.get(core, 0), core))[:count])


def _claimed(choice: Choice, claims: Mapping[int, int], threads: int) -> Cores:
    return _least_claimed(choice.cores, claims, threads)


def may_pin(context: Context, threads: int, engine: str) -> bool:
    """Return whether each instance of a node can have processors of its own. Log why not."""
    quota = cpu_quota()
    allowed = len(allowed_processors())
    wanted = context.instances * threads
    if quota is not None:
        why = f"the process has a quota of {quota:g} processors, and none of its own"
    elif wanted > allowed:
        why = f"the instances have {wanted} threads, and the process may use {allowed} processors"
    elif not hasattr(os, "sched_setaffinity"):
        why = "this system can't do it"
    else:
        return True
    if context.instance == 0:
        extra = {"pipeline": context.pipeline, "node": context.node}
        logger.warning("%s: %s: pin_cores is left out: %s", context.node, engine, why, extra=extra)
    return False


@contextmanager
def anywhere() -> Iterator[None]:
    """Place no engine that this thread opens in the block."""
    _thread.free = True
    try:
        yield
    finally:
        _thread.free = False


def memory_nodes(root: Path = Path("/")) -> list[Cores]:
    """Return the processors of each memory node, of those that this process may run on.

    One node if the system names none, or does not say where each processor is. `root` has `sys`,
    for tests.
    """
    allowed = allowed_processors()
    nodes = []
    for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        try:
            cores = parse_list((folder / "cpulist").read_text()) & allowed
        except (OSError, ValueError):
            return [allowed]
        if cores:
            nodes.append(cores)
    return nodes if frozenset[int]().union(*nodes) == allowed else [allowed]


def parse_list(text: str) -> Cores:
    """Return the numbers of a list as the kernel writes it: `0-3,8`. Raises ValueError."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if part:
            cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)
