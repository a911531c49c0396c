"""Tell decoders with `reduce` which backend resizes their image.

It is the next one in their expression, or the first of the one node after theirs. Backends that
keep an image's size may come between.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from penstock.backends.errors import Problem
from penstock.backends.expressions.spec import Spec
from penstock.backends.image.resizing import ReducingParams, ResizingParams
from penstock.backends.operators.compose import Sequential, SyncTensor

from .definition import NodeConfig


def with_resizing(
    nodes: Mapping[str, NodeConfig], exposed: Collection[str]
) -> tuple[dict[str, NodeConfig], list[Problem]]:
    """Return the nodes, which are in topological order, with what their decoders need to know; and
    a problem for each decoder whose image nothing resizes. Callers of `exposed` nodes get their
    results.
    """
    entering: dict[str, ResizingParams | None] = {}
    leaving: dict[str, list[ResizingParams | None]] = {}  # of the instances that nodes may share
    for name in reversed(list(nodes)):
        node = nodes[name]
        owner = node.shares or name
        (after,) = node.next if len(node.next) == 1 and name not in exposed else ("",)
        follows = nodes.get(after)
        default = follows is not None and not follows.map and follows.filter in (None, "swap")
        behind = entering.get(after) if default else None
        leaving.setdefault(owner, []).append(behind)
        groups = nodes[owner].instance_groups if owner in nodes else ()
        entering[name] = _only(_before(group.spec, behind)[1] for group in groups)
    changed: dict[str, NodeConfig] = {}
    problems: list[Problem] = []
    for name, node in nodes.items():
        behind = _only(leaving.get(name, []))
        specs = [_before(group.spec, behind)[0] for group in node.instance_groups]
        problems += [_problem(each, name) for spec in specs for each in _without_resizing(spec)]
        changed[name] = replace(
            node,
            instance_groups=tuple(
                replace(group, spec=spec)
                for group, spec in zip(node.instance_groups, specs, strict=True)
            ),
        )
    return changed, problems


def _before(spec: Spec, behind: ResizingParams | None) -> tuple[Spec, ResizingParams | None]:
    """Return the expression with its decoders told, and what resizes the image that comes to it.
    `behind` resizes the image that it gives.
    """
    params = spec.params
    if spec.cls is Sequential or (issubclass(spec.cls, SyncTensor) and spec.children):
        members = []
        for child in reversed(spec.children):
            member, behind = _before(child, behind)
            members.append(member)
            if child.filter is not None:  # the image may pass it by
                behind = None
        return replace(spec, children=tuple(reversed(members))), behind
    if spec.children:
        children = tuple(_before(child, None)[0] for child in spec.children)
        return replace(spec, children=children), None
    if isinstance(params, ReducingParams) and params.reduce and behind is not None:
        return replace(spec, params=params.in_front_of(behind)), None
    if isinstance(params, ResizingParams):
        return spec, params
    return spec, behind if spec.cls.keeps_size or issubclass(spec.cls, SyncTensor) else None


def _only(resizing: Iterable[ResizingParams | None]) -> ResizingParams | None:
    """Return the parameters that all have in common, None if they differ."""
    first, *others = list(resizing) or [None]
    alike = all(type(each) is type(first) and each == first for each in others)
    return first if alike else None


def _without_resizing(spec: Spec) -> Iterable[Spec]:
    """Yield the decoders that shall reduce images and don't know to which size."""
    params = spec.params
    if isinstance(params, ReducingParams) and params.reduce and params.resizing is None:
        yield spec
    for child in spec.children:
        yield from _without_resizing(child)


def _problem(decoder: Spec, node: str) -> Problem:
    example = "ResizeTensor" if decoder.name.endswith("Tensor") else "ResizeMat"
    message = (
        f"{decoder.name} finds no backend that resizes its image: expected one such as {example} "
        "next in the expression, or first in the only node after this one, without a map or filter "
        "between; a conversion of colours or numbers may come first. Without one: reduce = false"
    )
    return Problem(message, node=node, key="reduce")
