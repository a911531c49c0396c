"""What travels from backend to backend in an expression: operators in an order that can't work."""

from __future__ import annotations

from collections.abc import Iterator

from ..base import DataKind
from ..errors import Problem
from ..params import EngineParams
from .spec import Spec

FITS: dict[DataKind, frozenset[DataKind]] = {
    "file": frozenset({"file"}),
    "image": frozenset({"image", "array", "tensor"}),
    "tensor": frozenset({"tensor", "array"}),
    "array": frozenset({"image", "tensor", "array", "scores"}),
    "value": frozenset(),
}
"""For each kind of a result, what a backend may expect that gets it. An engine's output, an
`array`, may have any shape.
"""

NAMES: dict[DataKind, str] = {
    "file": "the bytes of a file",
    "image": "an image, H×W×C",
    "tensor": "a tensor of pixels, 1×C×H×W",
    "array": "an array",
    "scores": "an array of K scores",
    "value": "a plain value",
}
WRAPPERS = frozenset({"SyncTensor", "Torch", "Max", "Parallel", "Range"})
"""Backends that give what their one child gives."""


def fits(given: DataKind, expected: DataKind) -> bool:
    """Return whether a value of a kind may do; True if either is not known."""
    return not given or not expected or expected in FITS[given]


def chain_of(spec: Spec) -> Iterator[Spec]:
    """Yield the members that run one after the other, those of nested Sequentials too."""
    is_chain = spec.name in {"Sequential", "S"} or (
        spec.name in WRAPPERS and len(spec.children) == 1
    )
    if is_chain and spec.filter is None:
        for child in spec.children:
            yield from chain_of(child)
    else:
        yield spec


def gives(spec: Spec, given: DataKind) -> DataKind:
    """Return what a member of a chain gives that gets `given`; "" if that is not known."""
    if spec.cls.passes_data:
        return given
    if isinstance(spec.params, EngineParams) and spec.cls.keys_set(spec.params):
        return "value"  # its post-processor finds the class
    return spec.cls.gives


def misfits(spec: Spec, given: DataKind = "") -> Iterator[Problem]:
    """Yield a problem for each member of an expression that can't take what it gets.

    `given`: what the expression gets.
    """
    before = ""
    for member in chain_of(spec):
        if member.filter is not None:
            given = ""  # it depends on the item what comes here
        if not fits(given, member.cls.takes):
            source = f"{before} gives" if before else "it gets"
            message = (
                f"{member.name} takes {NAMES[member.cls.takes]}, but {source} {NAMES[given]}: "
                "expected another order of the backends, or one in between that converts it"
            )
            yield Problem(message, key="backend")
        given = "" if member.filter is not None else gives(member, given)
        before = member.name


def result_of(spec: Spec, given: DataKind = "") -> DataKind:
    """Return what an expression gives that gets `given`; "" if that is not known."""
    for member in chain_of(spec):
        given = "" if member.filter is not None else gives(member, given)
    return given
