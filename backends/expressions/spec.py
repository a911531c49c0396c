"""A backend expression bound to its classes and validated parameters: what an executor thread instantiates."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..base import Backend, BatchRange, Context, Params
from ..errors import ConfigError, Problem
from ..item import Item


@dataclass(frozen=True, slots=True)
class Spec:
    """One backend of an expression. `params` is an instance of `cls.parameters` (or a dict where that is None)."""

    name: str
    cls: type[Backend]
    params: Any
    children: tuple[Spec, ...] = ()
    filter: str | None = None
    """The filter in front of it; of a Sequential's members only."""

    @property
    def declared_range(self) -> BatchRange:
        """The batch range as far as it is known before `init`. Raises ConfigError where there can be none."""
        own = self.cls.declared_range(
            self.params, tuple(child.declared_range for child in self.children)
        )
        return self.forced_range or own

    @property
    def forced_range(self) -> BatchRange | None:
        """What `force_range` says, if it is given. Raises ConfigError for no range, in the keys of a backend that takes any."""
        if not isinstance(self.params, dict):
            found = getattr(self.params, "force_range", None)
        else:
            try:
                found = Params(force_range=self.params.get("force_range")).force_range
            except ValidationError:
                message = f'{self.name}\'s force_range: found {self.params["force_range"]!r}: expected min,max with 1 <= min <= max, as in "1,8"'
                raise ConfigError([Problem(message, key="force_range")]) from None
        return None if found is None else BatchRange(*found)

    @property
    def sets_range(self) -> bool:
        """Whether the expression says its range itself (`force_range`, Range): the node's `min` and `max` are its engines' alone."""
        return (
            self.cls.sets_range
            or self.forced_range is not None
            or any(child.sets_range for child in self.children)
        )

    @property
    def shape_key(self) -> Callable[[Item], Hashable] | None:
        """What must be equal for items to share a batch (None: any may); a Sequential's is its first member's."""
        if self.cls.shape_of_first_child and self.children:
            return self.children[0].shape_key
        return self.cls.shape_key

    def create(self, context: Context) -> Backend:
        """Instantiate and `init` the whole expression on the calling thread, children first, last to first.

        Whatever `init` raises is raised; what had been initialised until then is closed.
        """
        backend = self.cls()
        children: list[Backend] = []
        try:
            for child in reversed(self.children):
                children.append(child.create(context))  # noqa: PERF401  what was made must be in the list when one raises
            backend.children = tuple(reversed(children))
            backend.child_filters = tuple(child.filter for child in self.children)
            backend.init(self.params, context)
            if (forced := self.forced_range) is not None:
                backend.min, backend.max = forced
        except BaseException:
            backend.children = tuple(children)
            backend.close()
            raise
        return backend
