"""Nodes without instances of their own.

These are logical nodes (`rec.2` uses the instances of `rec`) and nodes with `borrow_from`.
"""

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
    """Return, for each node that shares, the node that has the instances; and what is wrong.

    A node that borrows from a borrower uses the instances that the borrower uses. `check_name`
    reports a logical node whose base is missing.
    """
    lenders: dict[str, str] = {}
    problems: list[Problem] = []

    def report(node: str, message: str) -> None:
        problems.append(Problem(message, node=node, key="borrow_from"))

    for node, keys in nodes.items():
        base, dot, _ = node.partition(".")
        lender = keys.get("borrow_from")
        if dot:
            lenders[node] = base
            if lender is not None:
                report(node, f"a logical node already shares the instances of {base!r}")
        elif isinstance(lender, str) and lender in nodes:
            lenders[node] = lender
        elif lender is not None:
            others = (name for name in nodes if name != node)
            hint = did_you_mean(lender, others) if isinstance(lender, str) else ""
            report(node, f"there is no node {lender!r}{hint}")
            lenders[node] = ""
    rings = find_cycles(
        {node: (lenders[node],) if lenders.get(node) in nodes else () for node in nodes}
    )
    for ring in rings:
        path = " -> ".join(ring)
        report(ring[0], f"the nodes borrow in a ring: {path}: one must have a backend")
    in_rings = {node for ring in rings for node in ring}
    owner_of: dict[str, str] = {}
    for start in lenders:
        borrowers = []
        node = start
        while node in lenders and node not in owner_of and node not in in_rings:
            borrowers.append(node)
            node = lenders[node]
        owner_of |= dict.fromkeys(borrowers, owner_of.get(node, node))
    return owner_of | dict.fromkeys(in_rings, ""), problems


def check_shared(node: str, owner: str, keys: Mapping[str, Any], file: str) -> list[Problem]:
    """Return what is wrong with the keys of a node that shares.

    Keys that only instances of its own could use have no effect, which is logged. `owner` is "" if
    there is no such node: that is another problem, and nothing is logged.
    """
    ineffective = [key for key in keys if key not in STRUCTURE_KEYS or key == "backend"]
    binding = Binding()
    if "backend" not in keys and not NODE_KEYS.issuperset(ineffective):
        # With a backend nothing is checked: one of a user's own may have any key.
        check_roughly({key: keys[key] for key in ineffective}, {}, binding)
    if ineffective and owner and not binding.problems:
        logger.warning(
            "%s: %s no effect: the node shares the instances of %r",
            " ".join(filter(None, (file, f"[{node}]"))),
            ", ".join(f"`{key}`" for key in ineffective)
            + (" has" if len(ineffective) == 1 else " have"),
            owner,
        )
    return binding.problems


def share(node: str, owner: NodeConfig, following: tuple[str, ...]) -> NodeConfig:
    """Return the node as it runs: in the queue of its owner, under the rules of its owner."""
    return replace(owner, name=node, instance_groups=(), next=following, shares=owner.name)
