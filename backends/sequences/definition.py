"""The configuration of a node that keeps state: `[NODE.sequence]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ControlKind = Literal["start", "end", "ready", "id"]

DEFAULT_MAX_SEQUENCES = 1024
"""As many as requests may be in flight by default: each of them may belong to another sequence."""

DEFAULT_IDLE_SECONDS = 60.0


LARGEST_IDS = {
    **{f"int{bits}": 2 ** (bits - 1) - 1 for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": 2**bits - 1 for bits in (8, 16, 32, 64)},
    "float16": 2**11,
    "float32": 2**24,
    "float64": 2**53,
}
"""The largest id that each dtype of an input holds exactly."""


def why_no_id(dtype: str, identity: int | str) -> str:
    """Say why an input of this dtype can't hold an id; "" if it can."""
    largest = LARGEST_IDS.get(dtype)
    if largest is None:  # text
        return ""
    if isinstance(identity, str):
        return f"the model takes ids that are whole numbers ({dtype}), found {identity!r}"
    if identity > largest:
        return f"the model takes ids up to {largest} ({dtype}), found {identity}"
    return ""


@dataclass(frozen=True, slots=True)
class Control:
    """An input of the model that says something about the step.

    `dtype`: NumPy's name; None: that of the model's input. `start`, `end` and `ready` have the
    value `true` or `false`; `id` has the id.
    """

    kind: ControlKind
    input: str
    dtype: str | None = None
    false: float = 0
    true: float = 1


@dataclass(frozen=True, slots=True)
class State:
    """An output of the model that is its input at the sequence's next step.

    `dtype`: NumPy's name; None: that of the model. `shape`: without the batch axis; None: that of
    the model. `initial`: "zeros", or the path of a file: that of `numpy.save`, or the raw bytes of
    the state.
    """

    input: str
    output: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    initial: str = "zeros"


@dataclass(frozen=True, slots=True)
class SequenceConfig:
    """How a node keeps the states of sequences.

    `strategy`: "oldest" or "direct" (each sequence has a row of the batch to itself).
    `max_sequences`: the most that are live, over all instances. None: `DEFAULT_MAX_SEQUENCES`, or
    as many as there are rows ("direct"). `max_waiting`: the most that wait until they may begin;
    None: as many as may be live. `idle_timeout`: seconds without a step after which one ends.
    """

    strategy: Literal["oldest", "direct"] = "oldest"
    max_sequences: int | None = None
    max_waiting: int | None = None
    idle_timeout: float = DEFAULT_IDLE_SECONDS
    controls: tuple[Control, ...] = ()
    state: tuple[State, ...] = ()

    def control(self, kind: ControlKind) -> Control | None:
        """Return the control of this kind, or None if the model does not take it."""
        return next((control for control in self.controls if control.kind == kind), None)
