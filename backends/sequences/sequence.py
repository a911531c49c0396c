"""`Sequence`: what a backend sees of the sequence that an item is a step of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Sequence:
    """A sequence at one node: `item["sequence"]` of each of its steps.

    `id`: as clients name it. `start`: no step has succeeded here yet, so there is no state. `end`:
    this is the last step. `state`: whatever the backend keeps here until the sequence ends, None at
    first; a step that fails leaves what was here before it. `slot`: with `strategy = "direct"`, the
    row of the batch that the sequence has to itself, else None.

    `on_end`: set it to a function, which is called once when the sequence has ended, on the thread
    of the backend, with the reason: "end" (a step said so, or it was started again), "idle" (no
    step came for `idle_timeout`), "departure" (a client left before the answer to its step),
    "unload" (the pipeline was closed, or its instance was lost).
    """

    __slots__ = ("end", "id", "on_end", "slot", "start", "state")

    def __init__(self, id: int | str, slot: int | None = None) -> None:  # noqa: A002
        self.id = id
        self.slot = slot
        self.start = True
        self.end = False
        self.state: Any = None
        self.on_end: Callable[[str], object] | None = None

    def __repr__(self) -> str:
        flags = "".join(f", {flag}" for flag in ("start", "end") if getattr(self, flag))
        return f"<Sequence {self.id!r}{flags}>"


class StepMessage(NamedTuple):
    """A step on its way to a backend. `item["sequence"]` has it until the backend runs.

    `serial` tells sequences with the same id apart. `first`: no step has succeeded at this node, as
    far as is known.
    """

    serial: int
    id: int | str
    end: bool
    first: bool
    slot: int | None


class EndedSequences(NamedTuple):
    """Sequences that have ended, by serial, and why. A message to the thread of a backend."""

    ends: tuple[tuple[int, str], ...]

    def tell(self, backend: Any) -> None:
        """Tell a backend that wraps that of a node with sequences."""
        backend.end_sequences(self.ends)
