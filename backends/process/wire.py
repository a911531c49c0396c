"""What a process executor and its child say to each other: an order to load, then batch and answer in turn.

parent                      child
Order                   →   imports, init, warm_up
                        ←   Loaded | Failure (and ends)
list[Item]              →   forward
                        ←   list[Change], one an item | Failure
(the socket is closed)  →   close, ends
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from ..base import Backend, Context
from ..expressions.registry import find_backend
from ..expressions.spec import Spec
from ..expressions.user import adapt
from ..item import Item
from ..user_code import load
from .failure import Failure


@dataclass(frozen=True, slots=True)
class SpecMessage:
    """One backend of an expression, by name: `Spec` without its class. `params` as a file would write them."""

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
        """Finds and imports the classes. Raises ConfigError, and pydantic's error where parameters don't survive the way."""
        name = self.name
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
    """Variables that only the child's start needed other values of; None: not set."""


class Loaded(NamedTuple):
    min: int
    max: int


class Change(NamedTuple):
    """What a `forward` has done to one item."""

    removed: list[str]
    set: dict[str, Any]

    @classmethod
    def between(cls, before: Item, after: Item) -> Change:
        """Arrays and simple values that are still the same objects stay where they are; a list or dict may have changed inside."""
        found = {
            key: value
            for key, value in after.items()
            if not (key in before and value is before[key] and isinstance(value, _KEPT))
        }
        if isinstance(error := found.get("error"), BaseException):
            found["error"] = Failure.of(error)
        return cls([key for key in before if key not in after], found)

    def apply(self, item: Item, where: str) -> None:
        for key in self.removed:
            del item[key]
        item.update(self.set)
        if isinstance(error := self.set.get("error"), Failure):
            item["error"] = error.rebuild(where)


_KEPT = (np.ndarray, bytes, str, int, float, bool, type(None))
