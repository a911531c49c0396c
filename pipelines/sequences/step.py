"""One step of a sequence, as a caller asks for it."""

from __future__ import annotations

from operator import index
from typing import Any, Protocol

from penstock.backends.errors import InvalidRequest
from penstock.backends.text import repr_of

MAX_ID_CHARACTERS = 128
"""Triton's bound of an id that is text."""
MAX_ID = 2**64 - 1


class Departing(Protocol):
    """A sequence, as those see it who may end it."""

    def depart(self) -> None:
        """End it with "departure", if it has not ended. Another one of its id goes on."""
        ...


class Step:
    """A step of the sequence `id`: a whole number from 1 to 2^64 - 1, or a text of 1 to 128
    characters. 1 and "1" are two sequences.

    `start`: begin a new sequence, and end the live one of this id if there is one. `end`: this is
    the last step. `strict`: a sequence that is not live must begin with `start`, as in Triton;
    otherwise any step begins it. Raises InvalidRequest for an id that is none.

    Once it is submitted, `sequence` has its sequence. `waited`: the seconds that it waited for its
    turn; None until it has it.
    """

    __slots__ = ("end", "id", "sequence", "start", "strict", "waited")

    def __init__(
        self,
        id: Any,  # noqa: A002
        start: bool = False,
        end: bool = False,
        strict: bool = False,
    ) -> None:
        self.id = checked_id(id)
        self.start = start
        self.end = end
        self.strict = strict
        self.waited: float | None = None
        self.sequence: Departing | None = None

    def __repr__(self) -> str:
        flags = "".join(f", {flag}" for flag in ("start", "end") if getattr(self, flag))
        return f"<Step of {self.id!r}{flags}>"


def checked_id(given: Any) -> int | str:
    """Return the id of a sequence. Raises InvalidRequest if it is none."""
    if isinstance(given, str):
        if 0 < len(given) <= MAX_ID_CHARACTERS:
            return str(given)
        raise InvalidRequest(
            f"the id of a sequence that is text has 1 to {MAX_ID_CHARACTERS} characters, found "
            f"{len(given)}"
        )
    try:
        number = -1 if isinstance(given, bool) else index(given)
    except TypeError:
        number = -1
    if not 0 < number <= MAX_ID:
        raise InvalidRequest(
            "the id of a sequence is a whole number from 1 to 2^64 - 1, or a text of 1 to "
            f"{MAX_ID_CHARACTERS} characters, found {repr_of(given)}"
        )
    return number


def steps_of(
    count: int, sequence: int | str | None, start: bool, end: bool
) -> list[Step] | list[None]:
    """Make the steps of a call with `count` items: the first starts, the last ends. None for each
    if it has no `sequence`.

    Raises InvalidRequest for an id that is none.
    """
    if sequence is None:
        if start or end:
            raise without_sequence()
        return [None] * count
    return [
        Step(sequence, start and position == 0, end and position == count - 1)
        for position in range(count)
    ]


def without_sequence() -> InvalidRequest:
    """Return the error of a call that starts or ends no sequence."""
    return InvalidRequest(
        "sequence_start and sequence_end belong to a sequence: expected its id as `sequence`"
    )
