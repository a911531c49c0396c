"""A backend expression bound to its classes and validated parameters: what an executor thread instantiates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import Backend, BatchRange, Context


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

    def create(self, context: Context) -> Backend:
        """Instantiate and `init` the whole expression on the calling thread, children first, last to first.

        Whatever `init` raises is raised; what had been initialised until then is closed.
        """
        backend = self.cls()
        children: list[Backend] = []
        try:
            for child in reversed(self.children):
                children.append(child.create(context))
            backend.children = tuple(reversed(children))
            backend.init(self.params, context)
        except BaseException:
            backend.children = tuple(children)
            backend.close()
            raise
        return backend
