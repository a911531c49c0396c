"""Every exception of Penstock, each with the stable `code` that clients receive.

PenstockError
├── ConfigError (ValueError)            a pipeline file is wrong; carries every problem found
├── InvalidRequest (ValueError)         the request itself is malformed
│   └── MissingData (IndexError)        the item has no `data`
├── NotFound (IndexError)               no such pipeline, node or version
├── UnsupportedMedia                    the media type is not understood
├── InvalidInput (ValueError)           an input does not decode or fit: a soft failure of one item
│   ├── TooLarge                        body or decoded image above the bound
│   ├── MemoryFull                      requests hold all the memory that they may hold together
│   └── ModelError                      a Triton Python model answered its request with an error
├── QueueFull                           too many requests in flight, or in the queue
├── Overloaded                          the request would wait for too long
├── NotReady                            loading, draining, closed, or without executors
├── DeadlineExceeded (TimeoutError)     the request's deadline passed
└── BackendError (RuntimeError)         a backend raised; names node and backend, has a `__cause__`
    ├── DeviceError                     the device itself failed: never retried item by item
    └── UnknownRestart (IndexError)     `restart` names no node that can be entered: the pipeline's
                                        fault, not the client's

`app/http/errors.py` holds the one table from code to HTTP status. Subclasses of a user's own may
have codes and statuses of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

ERROR_STATUSES = frozenset(
    {*range(400, 419), *range(421, 427), 428, 429, 431, 451, *range(500, 509), 510, 511}
)
"""The statuses that a user's own error class may have: HTTP's, as far as they are registered."""


class PenstockError(Exception):
    """Base class of all errors. `str(error)` is written for the person who has to act.

    A subclass of your own may have a `code` of its own, in lower case with underscores, and a
    `status`. Defining one with another `code` or `status` raises TypeError. Both may be set on an
    instance too; there, values that are not valid are ignored.
    """

    code: str = "internal"
    status: int | None = None
    """The HTTP status, 400 to 599, of an error class of your own; None: that of its base class."""
    retry_after: int | None = None
    """Seconds after which a request that was refused for load should come again; None: unknown."""
    logged: bool = False
    """True if the log has it. A server logs what it answers by 500 and is not logged yet."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not _is_code(cls.code):
            raise TypeError(
                f"{cls.__name__}.code is {cls.code!r}: expected lower case with underscores, as in "
                "'too_long'"
            )
        if not _is_status(cls.status):
            raise TypeError(
                f"{cls.__name__}.status is {cls.status!r}: expected an HTTP status from 400 to 599"
            )


def _is_code(code: object) -> bool:
    return isinstance(code, str) and re.fullmatch("[a-z][a-z0-9_]*", code) is not None


def _is_status(status: object) -> bool:
    return status is None or (type(status) is int and status in ERROR_STATUSES)


def code_and_status(error: PenstockError) -> tuple[str, int | None]:
    """Return the code and the status of an error: its own, or where these are not valid, those of
    its class.
    """
    code, status, kind = error.code, error.status, type(error)
    return code if _is_code(code) else kind.code, status if _is_status(status) else kind.status


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a pipeline file: where it is, and what to do about it."""

    message: str
    file: str = ""
    node: str = ""
    key: str = ""

    def __str__(self) -> str:
        where = [self.file] if self.file else []
        if self.node:
            where.append(f"[{self.node}]")
        if self.key:
            where.append(self.key)
        return ": ".join([" ".join(where), self.message] if where else [self.message])


class ConfigError(PenstockError, ValueError):
    """Raised when a pipeline can't be loaded. `problems` holds every problem found."""

    code = "config"
    problems: tuple[Problem, ...] = ()  # of a subclass whose `__init__` does not call this one

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        """Take the problems; a text is one problem."""
        given = (Problem(problems),) if isinstance(problems, str) else problems
        self.problems = tuple(given)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InvalidRequest(PenstockError, ValueError):
    """Raised when the request itself is malformed."""

    code = "invalid_request"


class MissingData(InvalidRequest, IndexError):
    """Raised when an item has no `data`. An IndexError too, as torchpipe's callers expect."""


class NotFound(PenstockError, IndexError):
    """Raised when there is no such pipeline, node or version."""

    code = "not_found"


class UnsupportedMedia(PenstockError):
    """Raised when the media type of a request is not understood."""

    code = "unsupported_media"


class InvalidInput(PenstockError, ValueError):
    """Raised when an input does not decode or fit: a soft failure of one item."""

    code = "invalid_input"


class TooLarge(InvalidInput):
    """Raised when a body or a decoded image is above its bound."""

    code = "too_large"


class QueueFull(PenstockError):
    """Raised when too many requests are in flight, or wait."""

    code = "queue_full"


class Overloaded(PenstockError):
    """Raised when a request would wait past its deadline, or for longer than `max_wait`."""

    code = "overloaded"


class MemoryFull(InvalidInput):
    """Raised when requests hold all the memory that they may hold together (`max_memory`).

    The input does not fit now, whoever's fault that is: a soft failure of one item.
    """

    code = "memory_full"


class ModelError(InvalidInput):
    """Raised for a request that a Triton Python model answered with an error.

    Its `code` and `status` are those of Triton's code.
    """

    code = "model_error"
    status = 500
    logged = True


class NotReady(PenstockError):
    """Raised while a pipeline loads, drains, is closed, or has no executors."""

    code = "not_ready"


class DeadlineExceeded(PenstockError, TimeoutError):
    """Raised when the deadline of a request has passed."""

    code = "deadline_exceeded"


class BackendError(PenstockError, RuntimeError):
    """Raised when a backend fails. Names the node and the backend; the cause is `__cause__`."""

    code = "backend_error"


class DeviceError(BackendError):
    """Raised when the device itself failed. The batch is never retried item by item."""

    code = "backend_error"


class UnknownRestart(BackendError, IndexError):
    """Raised when `restart` in a looping pipeline names no node that can be entered.

    An IndexError too, as torchpipe's callers expect.
    """

    code = "backend_error"


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an exception, and of those that it came from.

    Frames hold what a request held, and often an item that holds the exception: a cycle, which
    would be counted in `max_memory` until the garbage collector runs.
    """
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.with_traceback(None)
            errors += (each.__cause__, each.__context__)
