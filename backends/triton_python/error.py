"""The errors of a Triton Python model."""

from __future__ import annotations

from enum import IntEnum

from ..errors import ModelError
from ..server import ResponseError
from .strings import as_text


class TritonModelException(Exception):  # noqa: N818  Triton's name
    """Raised where Triton's Python backend raises it: a call that is wrong or can't be served."""


class ErrorCode(IntEnum):
    """The codes of `TritonError`."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    """An error with which a model answers one request. It is not an exception, as in Triton."""

    __slots__ = ("_code", "_message")

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        """Raises TypeError for a message that is no text or a code that is none of Triton's."""
        self._message = as_text(message, "TritonError: message")
        if not isinstance(code, ErrorCode):
            raise TypeError(f"TritonError: code: expected one of TritonError's, found {code!r}")
        self._code = code

    def __repr__(self) -> str:
        return f"<TritonError {self._code.name}: {self._message}>"

    def message(self) -> str:
        """Return the text."""
        return self._message

    def code(self) -> ErrorCode:
        """Return the code."""
        return self._code


def answer_of(error: TritonError) -> ModelError:
    """Return the exception that fails the request of an item as the model's error says."""
    return ResponseError(error.code().name, error.message()).as_exception()
