"""A backend expression bound to classes and validated parameters, ready for an executor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ..base import Backend, BatchRange, Context, Params
from ..errors import ConfigError, Problem
from ..item import Item


@dataclass(frozen=True, slots=True)
class Spec:
    """One backend of an expression.

    `params` is an instance of `cls.parameters` (or a dict if that is None).
    """

    name: str
    cls: type[Backend]
    params: Any
    children: tuple[Spec, ...] = ()
    filter: str | None = None
    """The filter before it. Only members of a Sequential have one."""

    @property
    def declared_range(self) -> BatchRange:
        """The batch range as far as it is known before `init`.

        Raises ConfigError if no range is possible.
        """
        own = self.cls.declared_range(
            self.params, tuple(child.declared_range for child in self.children)
        )
        return self.forced_range or own

    @property
    def forced_range(self) -> BatchRange | None:
        """The range that `force_range` gives, or None.

        Raises ConfigError for an invalid range in the keys of a backend that takes any key.
        """
        if not isinstance(self.params, dict):
            forced = getattr(self.params, "force_range", None)
        else:
            try:
                forced = Params(force_range=self.params.get("force_range")).force_range
            except ValidationError:
                message = (
                    f"{self.name}'s force_range: found {self.params['force_range']!r}: expected "
                    'min,max with 1 <= min <= max, as in "1,8"'
                )
                raise ConfigError([Problem(message, key="force_range")]) from None
        return None if forced is None else BatchRange(*forced)

    @property
    def sets_range(self) -> bool:
        """True if the expression sets its own range (`force_range`, Range).

        The node's `min` and `max` are then for its engines alone.
        """
        return (
            self.cls.sets_range
            or self.forced_range is not None
            or any(child.sets_range for child in self.children)
        )

    @property
    def takes_request_id(self) -> bool:
        """True if a backend of the expression reads the item's `request_id`."""
        return self.cls.takes_request_id or any(child.takes_request_id for child in self.children)

    @property
    def takes_traceparent(self) -> bool:
        """True if a backend of the expression reads the item's `traceparent`."""
        return self.cls.takes_traceparent or any(child.takes_traceparent for child in self.children)

    @property
    def takes_request_facts(self) -> bool:
        """True if a backend of the expression reads the item's `request_facts`."""
        return self.cls.takes_request_facts or any(
            child.takes_request_facts for child in self.children
        )

    @property
    def takes_headers(self) -> bool:
        """True if a backend of the expression reads the item's `headers`."""
        return self.cls.takes_headers or any(child.takes_headers for child in self.children)

    @property
    def takes_server(self) -> bool:
        """True if a backend of the expression may call other models."""
        return self.cls.takes_server or any(child.takes_server for child in self.children)

    @property
    def in_front(self) -> bool:
        """True if all backends of the expression may run in every front process."""
        return self.cls.in_front and all(child.in_front for child in self.children)

    def blocking(self) -> Iterator[tuple[str, str]]:
        """Yield the backends of the expression that would hold the event loop, and why."""
        if self.cls.blocks:
            yield self.name, self.cls.blocks
        for child in self.children:
            yield from child.blocking()

    @property
    def shape_key(self) -> Callable[[Item], Hashable] | None:
        """The function whose value all items of a batch share; None: any items may share a batch.

        A Sequential has that of its first member.
        """
        if self.cls.shape_of_first_child and self.children:
            return self.children[0].shape_key
        return self.cls.shape_key

    def create(self, context: Context) -> Backend:
        """Create and `init` the whole expression on this thread: children first, last to first.

        If an `init` raises, everything initialised before it is closed and the exception is
        re-raised.
        """
        backend = self.cls()
        children: list[Backend] = []
        try:
            for child in reversed(self.children):
                # One by one, not in a comprehension: if a child raises, the list has the others.
                children.append(child.create(context))  # noqa: PERF401
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
