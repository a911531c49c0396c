"""The messages between a process executor and its child: an order, then batches and answers.

parent                      child
Order                   →   imports, init, warm_up
                        ←   LoadedMessage | Failure (and ends)
list[Item]              →   forward
                        ←   Wanted, as often as it needs memory
None | Failure          →
                        ←   list[Change], one per item | Failure
(the socket is closed)  →   close, ends
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from ..base import Backend, Context, Signature
from ..expressions.registry import find_backend
from ..expressions.spec import Spec
from ..expressions.user import adapt
from ..item import Item
from ..loaded_files import FileRecord
from ..sequences.definition import SequenceConfig
from ..user_code import load
from .failure import Failure


@dataclass(frozen=True, slots=True)
class SpecMessage:
    """A `Spec` without its class: one backend of an expression, by name.

    `params` are as a file would have them.
    """

    name: str
    params: dict[str, Any]
    children: tuple[SpecMessage, ...]
    filter: str | None = None

    @classmethod
    def of(cls, spec: Spec) -> SpecMessage:
        params = spec.params
        if isinstance(params, BaseModel):
            params = params.model_dump(by_alias=True, exclude_unset=True, round_trip=True)
        return cls(spec.name, params, tuple(cls.of(child) for child in spec.children), spec.filter)

    def bind(self, context: Context) -> Spec:
        """Find and import the classes and return the `Spec`.

        Raises ConfigError, and pydantic's error if the parameters don't survive the way.
        """
        name = self.name
        if name.rpartition(":")[0].endswith(".py"):  # a child imports the user's file anew
            context.resolve_input(name.rpartition(":")[0])
        cls: type[Backend] = (
            adapt(name, load(name, context.directory)) if ":" in name else find_backend(name)
        )
        params = (
            self.params if cls.parameters is None else cls.parameters.model_validate(self.params)
        )
        return Spec(
            name, cls, params, tuple(child.bind(context) for child in self.children), self.filter
        )


@dataclass(frozen=True, slots=True)
class Order:
    """The first message: what to run, and in which surroundings."""

    spec: SpecMessage
    context: Context
    log_name: str
    log_level: int
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables that had another value only for the child's start; None: not set."""
    sequence: SequenceConfig | None = None
    """How the node keeps states of sequences; None: it keeps none."""


class LoadedMessage(NamedTuple):
    """The batch range of the loaded backend, the arrays that it takes and gives, whether its first
    items decide if they share runs, and the files that it has read.
    """

    min: int
    max: int
    signature: Signature | None
    undecided: bool
    files: dict[Path, FileRecord]


class Wanted(NamedTuple):
    """A child's question, while it runs a batch, for memory of the server's budget. A negative size
    gives some back.

    The answer is None, or the failure that refuses it.
    """

    size: int
    what: str


class Change(NamedTuple):
    """The changes that a `forward` made to one item."""

    removed: list[str]
    set: dict[str, Any]

    @classmethod
    def between(cls, before: Item, after: Item) -> Change:
        """Compare an item before and after.

        Arrays and simple values that are still the same objects are not sent back. A list or dict
        is: it may have changed inside.
        """
        changed = {
            key: value
            for key, value in after.items()
            if not (
                key in before and value is before[key] and isinstance(value, _UNCHANGED_IF_SAME)
            )
        }
        error: Any = changed.get("error")
        if issubclass(type(error), BaseException):  # `isinstance` asks a user's `__class__`
            changed["error"] = Failure.of(error)
        return cls([key for key in before if key not in after], changed)

    def apply(self, item: Item, where: str) -> None:
        for key in self.removed:
            del item[key]
        item.update(self.set)
        if isinstance(error := self.set.get("error"), Failure):
            item["error"] = error.rebuild(where)


_UNCHANGED_IF_SAME = (np.ndarray, bytes, str, int, float, bool, type(None))
