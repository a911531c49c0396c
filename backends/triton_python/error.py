"""The errors of a Triton Python model."""

from __future__ import annotations

from enum import IntEnum

from ..errors import ModelError
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


CODES: dict[ErrorCode, tuple[str, int]] = {
    ErrorCode.UNKNOWN: ("unknown", 400),
    ErrorCode.INTERNAL: ("model_error", 500),
    ErrorCode.NOT_FOUND: ("not_found", 404),
    ErrorCode.INVALID_ARG: ("invalid_input", 400),
    ErrorCode.UNAVAILABLE: ("unavailable", 503),
    ErrorCode.UNSUPPORTED: ("unsupported", 501),
    ErrorCode.ALREADY_EXISTS: ("already_exists", 400),
    ErrorCode.CANCELLED: ("cancelled", 400),
}
"""For each code of Triton's, ours and the status of HTTP (`HttpCodeFromError`)."""


def answer_of(error: TritonError) -> ModelError:
    """Return the exception that fails the request of an item as the model's error says."""
    failure = ModelError(error.message())
    failure.code, failure.status = CODES[error.code()]
    return failure


def error_of(error: BaseException) -> TritonError:
    """Return the error that a model sees of a failed call."""
    own = getattr(error, "code", "")
    code = next((code for code, (name, _) in CODES.items() if name == own), ErrorCode.INTERNAL)
    return TritonError(str(error), code)
