"""An exception on its way from one process to another.

The exception itself can't be sent: the other process may not know its class, and pickle may refuse
it.
"""

from __future__ import annotations

import builtins
import traceback
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .. import errors
from ..errors import InvalidInput, PenstockError
from ..text import message_of


class ProcessDiedError(RuntimeError):
    """Raised when the child ended while it worked on a batch."""


class RestartError(BaseException):
    """Raised when a new child can't be loaded.

    It ends the executor's thread, as no exception of a backend does. The node then tries again, at
    growing intervals. It is not an `Exception`, so that nothing on the way takes it for one of a
    backend.
    """


@dataclass(frozen=True, slots=True)
class Failure:
    """The parts of an exception that can be sent.

    `known` is the nearest base class that Python or `errors.py` has, so that the same `except`
    catches it in both processes. `code` and `status` are those of an error class of a user's own.
    """

    known: str
    name: str
    text: str
    traceback: str = ""
    backend: str = ""
    code: str = ""
    status: int | None = None

    @classmethod
    def of(cls, error: BaseException, backend: str = "") -> Failure:
        known = next(
            base
            for base in type(error).__mro__
            if _known(base.__name__) is base and not issubclass(base, BaseExceptionGroup)
        )
        text = message_of(error)
        # A soft failure is the client's mistake: its traceback helps no one.
        lines = (
            "" if isinstance(error, InvalidInput) else "".join(traceback.format_exception(error))
        )
        return cls(
            known.__name__,
            type(error).__name__,
            text,
            lines,
            getattr(error, "penstock_backend", backend),
            error.code if isinstance(error, PenstockError) else "",
            error.status if isinstance(error, PenstockError) else None,
        )

    def rebuild(self, where: str) -> BaseException:
        """Return an exception of the same name, text and kind.

        The remote traceback is added as a note, which logs show and messages don't.
        """
        error = self._plain() or self._copy()
        if self.backend:
            error.penstock_backend = self.backend  # type: ignore[attr-defined]
        if self.traceback:
            error.add_note(f"in {where}:\n{self.traceback}")
        return error

    def _plain(self) -> BaseException | None:
        """Return the known class itself, if it takes a text and shows it; else None."""
        if self.name != self.known:
            return None
        try:
            error: BaseException = (
                _known(self.known)(self.text) if self.text else _known(self.known)()
            )
        except Exception:
            return None
        return error if str(error) == self.text else None

    def _copy(self) -> BaseException:
        cls = _copy_of(self.known, self.name, self.code, self.status)
        error = cls.__new__(cls)
        error.args = (self.text,)
        return error


def _known(name: str) -> Any:
    return getattr(errors, name, None) or getattr(builtins, name, None)


@lru_cache(256)
def _copy_of(known: str, name: str, code: str, status: int | None) -> type[BaseException]:
    """Make a class of that name that shows the text it is given. A code and status go along.

    The `__init__` and `__str__` of the base may expect other arguments.
    """
    base: type[BaseException] = _known(known)
    own = {"code": code, "status": status} if code else {}
    return type(
        name,
        (base,),
        {"__init__": _init, "__str__": _text, "__module__": base.__module__, **own},
    )


def _init(self: BaseException, *args: object) -> None:
    """Do nothing: the text is set as `args`."""


def _text(self: BaseException) -> str:
    return str(self.args[0])
