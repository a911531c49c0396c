"""The key `reshape`: tensors that have one shape in an item and another in the model."""

from __future__ import annotations

from collections.abc import Iterable

from ..base import Context
from ..errors import BackendError, ConfigError, InvalidInput, Problem
from ..params import EngineParams
from ..suggestions import did_you_mean
from .shapes import shape_text

Shape = tuple[int, ...]


class Reshaping:
    """The shapes that inputs and outputs get, by name. It says nothing of other tensors."""

    __slots__ = ("_context", "_has_batch", "_tables")

    def __init__(self, params: EngineParams, context: Context) -> None:
        self._tables = params.reshape
        self._has_batch = params.batched is not False
        self._context = context

    def __contains__(self, name: str) -> bool:
        return name in self._tables

    def check(self, names: Iterable[str]) -> None:
        """Raise ConfigError for a tensor that the model lacks."""
        known = list(names)
        for name in self._tables:
            if name not in known:
                message = (
                    f"names {name!r}, and the model has no such input or output"
                    f"{did_you_mean(name, known)}: expected {', '.join(known)}"
                )
                raise ConfigError([Problem(message, node=self._context.node, key="reshape")])

    def outside(self, name: str, shape: Shape, *, given: bool) -> Shape:
        """Return the shape that items have, of a tensor that has `shape` in the model. `given`: it
        is an input. -1 stands for any size.
        """
        table = self._tables.get(name)
        if table is None:
            return shape
        return (*(shape[:1] if self._has_batch else ()), *(table.given if given else table.to))

    def given(self, name: str, shape: Shape) -> Shape:
        """Return the shape of an input in an item, of which the model takes `shape`."""
        table = self._tables.get(name)
        if table is None:
            return shape
        lead = 1 if self._has_batch else 0
        inner = table.before(shape[lead:])
        return shape if inner is None else (*shape[:lead], *inner)

    def input_shape(self, name: str, shape: Shape, label: str) -> Shape:
        """Return the shape that the model takes of an input. Raises InvalidInput."""
        changed = self._changed(name, shape)
        if changed is None:
            raise InvalidInput(
                f"{label}: expected shape {self._expected(name)}, found {shape_text(shape)}"
            )
        return changed

    def output_shape(self, name: str, shape: Shape, label: str) -> Shape:
        """Return the shape that items get of an output. Raises BackendError."""
        changed = self._changed(name, shape)
        if changed is None:
            raise BackendError(
                f"{label}: the model gave shape {shape_text(shape)}, and the key reshape expects "
                f"{self._expected(name)}"
            )
        return changed

    def _changed(self, name: str, shape: Shape) -> Shape | None:
        lead = 1 if self._has_batch else 0
        inner = self._tables[name].after(shape[lead:]) if len(shape) >= lead else None
        return None if inner is None else (*shape[:lead], *inner)

    def _expected(self, name: str) -> str:
        sizes = [None if size == -1 else size for size in self._tables[name].given]
        return shape_text([*([None] if self._has_batch else []), *sizes])
