"""A backend expression bound to its classes and validated parameters: what an executor thread instantiates."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from .base import Backend, BatchRange, Context
from .item import Item


@dataclass(frozen=True, slots=True)
class Spec:
    """One backend of an expression. `params` is an instance of `cls.parameters` (or a dict where that is None)."""

    name: str
    cls: type[Backend]
    params: Any
    children: tuple[Spec, ...] = ()
    filter: str | None = None

    @property
    def declared_range(self) -> BatchRange:
        """The batch range as far as it is known before `init`."""
        return self.cls.declared_range(self.params, tuple(child.declared_range for child in self.children))

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
            backend.init(self.params, context)
        except BaseException:
            backend.children = tuple(children)
            backend.close()
            raise
        return backend
