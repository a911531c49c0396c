"""An exception on its way from one process to another. It can't be sent itself: its class may be unknown there, or refuse to be pickled."""

from __future__ import annotations

import builtins
import traceback
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .. import errors
from ..errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Failure:
    """`known`: the nearest base that Python or `errors.py` has, so that it is caught there as it would be here."""

    known: str
    name: str
    text: str
    traceback: str = ""
    backend: str = ""

    @classmethod
    def of(cls, error: BaseException, backend: str = "") -> Failure:
        known = next(
            base
            for base in type(error).__mro__
            if _known(base.__name__) is base and not issubclass(base, BaseExceptionGroup)
        )
        try:
            text = str(error)
        except Exception:
            text = "(its message can't be shown)"
        # A soft failure is the client's: nobody reads where it was raised.
        lines = (
            "" if isinstance(error, InvalidInput) else "".join(traceback.format_exception(error))
        )
        return cls(
            known.__name__,
            type(error).__name__,
            text,
            lines,
            getattr(error, "penstock_backend", backend),
        )

    def rebuild(self, where: str) -> Exception:
        """An exception of the same name, text and kind. The remote traceback is a note, which logs show and messages don't."""
        error = self._plain() or self._copy()
        if self.backend:
            error.penstock_backend = self.backend  # type: ignore[attr-defined]
        if self.traceback:
            error.add_note(f"in {where}:\n{self.traceback}")
        return error

    def _plain(self) -> Exception | None:
        """The known class itself, where it takes a text and shows it."""
        if self.name != self.known:
            return None
        try:
            error: Exception = _known(self.known)(self.text) if self.text else _known(self.known)()
        except Exception:
            return None
        return error if str(error) == self.text else None

    def _copy(self) -> Exception:
        cls = _copy_of(self.known, self.name)
        error = cls.__new__(cls)
        error.args = (self.text,)
        return error


def _known(name: str) -> Any:
    return getattr(errors, name, None) or getattr(builtins, name, None)


@lru_cache(256)
def _copy_of(known: str, name: str) -> type[Exception]:
    """A class by that name whose text is what it is given, whatever the base's own `__init__` and `__str__` expect."""
    base: type[Exception] = _known(known)
    return type(name, (base,), {"__init__": _init, "__str__": _text, "__module__": base.__module__})


def _init(self: BaseException, *args: object) -> None:
    """Nothing: the text is set as `args`."""


def _text(self: BaseException) -> str:
    return str(self.args[0])
