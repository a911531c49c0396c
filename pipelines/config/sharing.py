"""Nodes that have no instances of their own: logical nodes (`rec.2` shares those of `rec`) and `borrow_from`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penstock.backends.errors import Problem
from penstock.backends.suggestions import did_you_mean

from .binding import Binding, check_roughly
from .definition import NodeConfig
from .graph import find_cycles
from .tables import NODE_KEYS, STRUCTURE_KEYS

logger = logging.getLogger("penstock.config")


def owners(nodes: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], list[Problem]]:
    """For each node that shares, the node that has the instances, and what is wrong. Who borrows from a borrower has them of the first.

    A logical node whose base is missing is `check_name`'s to report.
    """
    lenders: dict[str, str] = {}
    problems: list[Problem] = []
    for node, keys in nodes.items():
        base, dot, _ = node.partition(".")
        lender = keys.get("borrow_from")
        if dot:
            lenders[node] = base
            if lender is not None:
                problems.append(
                    Problem(
                        f"a logical node shares the instances of {base!r} already",
                        node=node,
                        key="borrow_from",
                    )
                )
        elif isinstance(lender, str) and lender in nodes:
            lenders[node] = lender
        elif lender is not None:
            hint = (
                did_you_mean(lender, (name for name in nodes if name != node))
                if isinstance(lender, str)
                else ""
            )
            problems.append(
                Problem(f"there is no node {lender!r}{hint}", node=node, key="borrow_from")
            )
            lenders[node] = ""
    rings = find_cycles(
        {node: (lenders[node],) if lenders.get(node) in nodes else () for node in nodes}
    )
    problems += [
        Problem(
            f"the nodes borrow in a ring: {' -> '.join(ring)}: one must have a backend",
            node=ring[0],
            key="borrow_from",
        )
        for ring in rings
    ]
    in_rings = {node for ring in rings for node in ring}
    found: dict[str, str] = {}
    for start in lenders:
        path = []
        node = start
        while node in lenders and node not in found and node not in in_rings:
            path.append(node)
            node = lenders[node]
        found |= dict.fromkeys(path, found.get(node, node))
    return found | dict.fromkeys(in_rings, ""), problems


def check_shared(node: str, owner: str, keys: Mapping[str, Any], file: str) -> list[Problem]:
    """What is wrong with the keys of a node that shares. Those for which it would need instances mean nothing: that is logged."""
    idle = [key for key in keys if key not in STRUCTURE_KEYS or key == "backend"]
    binding = Binding()
    if "backend" not in keys and not NODE_KEYS.issuperset(
        idle
    ):  # a backend of a user's own may have any key
        check_roughly({key: keys[key] for key in idle}, {}, binding)
    if idle and not binding.problems:
        place = " ".join(filter(None, (file, f"[{node}]")))
        logger.warning(
            "%s: no effect of %s here: the node shares the instances of %r",
            place,
            ", ".join(idle),
            owner,
        )
    return binding.problems


def share(node: str, owner: NodeConfig, following: tuple[str, ...]) -> NodeConfig:
    """The node as it is run: in its owner's queue, under its owner's rules."""
    return replace(owner, name=node, groups=(), next=following, shares=owner.name)
