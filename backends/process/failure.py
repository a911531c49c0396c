"""An exception on its way from one process to another.

The exception itself can't be sent: the other process may not know its class, and pickle may refuse
it.
"""

from __future__ import annotations

import builtins
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any

from .. import errors
from ..errors import ConfigError, InvalidInput, PenstockError, Problem, code_and_status
from ..text import message_of, name_of


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
    `problems` are those of a ConfigError.
    """

    known: str
    name: str
    text: str
    traceback: str = ""
    backend: str = ""
    code: str = ""
    status: int | None = None
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, error: BaseException, backend: str = "") -> Failure:
        kind = type(error)
        known = next(
            base
            for base in type.__dict__["__mro__"].__get__(kind)
            if _known(name_of(base)) is base and not issubclass(base, BaseExceptionGroup)
        )
        code, status = "", None
        problems: tuple[Problem, ...] = ()
        with suppress(BaseException):  # of a user's class: any attribute may raise
            backend = getattr(error, "penstock_backend", backend)
            if issubclass(kind, PenstockError):
                code, status = code_and_status(error)  # type: ignore[arg-type]  # it is one
            if isinstance(error, ConfigError):
                problems = tuple(one for one in error.problems if type(one) is Problem)
        # A soft failure is the client's mistake: its traceback helps no one.
        lines = "" if issubclass(kind, InvalidInput) else _traceback_of(error)
        return cls(
            name_of(known), name_of(kind), message_of(error), lines, backend, code, status, problems
        )

    def rebuild(self, where: str) -> BaseException:
        """Return an exception of the same name, text and kind.

        The remote traceback is added as a note, which logs show and messages don't.
        """
        error = self._plain() or self._copy()
        if isinstance(error, PenstockError) and code_and_status(error) != (self.code, self.status):
            error.code, error.status = self.code, self.status  # of the instance, not of its class
        if isinstance(error, ConfigError):
            error.problems = self.problems
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
        if isinstance(error, PenstockError) and (self.code, self.status) != code_and_status(error):
            error.code, error.status = self.code, self.status  # set on the exception itself
        return error if str(error) == self.text else None

    def _copy(self) -> BaseException:
        cls = _copy_of(self.known, self.name, self.code, self.status)
        error = cls.__new__(cls)
        error.args = (self.text,)
        return error


class _OtherError(Exception):
    """No error is one, so `isinstance` asks each for its `__class__`."""


def readable(error: BaseException) -> BaseException:
    """Return the error, or a copy of one whose class raises when it is looked at.

    `isinstance` asks for `__class__`, and a traceback for more. A user's class may have properties
    of these names that raise, or a `__getattribute__`.
    """
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    try:
        while errors:
            each = errors.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            isinstance(each, _OtherError)
            for name in ("__name__", "__qualname__", "__module__"):
                getattr(type(each), name)
            for name in ("__traceback__", "__suppress_context__", "__notes__", "penstock_backend"):
                getattr(each, name, None)
            errors += (each.__cause__, each.__context__)
    except BaseException:
        copy = replace(Failure.of(error), traceback="").rebuild("")
        return copy.with_traceback(_frames_of(error))
    return error


def _frames_of(error: BaseException) -> TracebackType | None:
    frames: TracebackType | None = BaseException.__dict__["__traceback__"].__get__(error)
    return frames


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # of a user's class
        return "".join(traceback.format_tb(_frames_of(error)))


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
