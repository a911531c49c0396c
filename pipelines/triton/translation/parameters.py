"""Reads the values of `parameters`, which are texts, as Triton's backends do."""

from __future__ import annotations

from ...config.source import Tables
from ..model import TritonModel

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class ParameterReader:
    """The parameters of a model. A value that can't be read becomes a problem of the tables."""

    __slots__ = ("_model", "_tables", "_values")

    def __init__(self, model: TritonModel, tables: Tables) -> None:
        self._model, self._tables = model, tables
        self._values = model.parameters

    def text(self, key: str) -> str | None:
        """Return a value; None if the model does not have it."""
        return self._values.get(key)

    def boolean(self, key: str) -> bool | None:
        value = self.text(key)
        if value is None:
            return None
        if value.lower() not in _BOOLEANS:
            self._refuse(key, f"found {value!r}, expected true, false, 1 or 0")
        return _BOOLEANS.get(value.lower())

    def number(self, key: str, most: int | None = None) -> int | None:
        """Return a whole number, at most `most`."""
        value = self.text(key)
        if value is None:
            return None
        try:
            number = int(value)
        except ValueError:
            self._refuse(key, f"found {value!r}, expected a whole number")
            return None
        if most is not None and not 0 <= number <= most:
            self._refuse(key, f"found {value}, expected 0 to {most}")
            return None
        return number

    def _refuse(self, key: str, message: str) -> None:
        self._tables.problems.append(self._model.problem(f"parameters.{key}", message))
