"""Every exception of Penstock, each with the stable `code` that travels on the wire.

PenstockError
├── ConfigError (ValueError)            a pipeline file is wrong; carries every problem found
├── InvalidRequest (ValueError)         the request itself is malformed
│   └── MissingData (IndexError)        the item has no `data`
├── NotFound (IndexError)               no such pipeline, node or version
├── UnsupportedMedia                    the media type is not understood
├── InvalidInput (ValueError)           an input does not decode or fit: a soft failure, of this item alone
│   └── TooLarge                        body or decoded image above the bound
├── QueueFull                           too many requests inside
├── Overloaded                          would have to wait past its deadline
├── NotReady                            loading, draining, closed, or without executors
├── DeadlineExceeded (TimeoutError)     the request's deadline passed
└── BackendError (RuntimeError)         a backend raised; names node and backend, the cause is `__cause__`
    ├── DeviceError                     the device itself failed: never retried item by item
    └── UnknownRestart (IndexError)     `restart` names no node that can be entered: the pipeline's fault, not the client's

`app/http/errors.py` holds the one table from code to HTTP status.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class PenstockError(Exception):
    """Base of all. `str(error)` is written for the person who must act."""

    code: ClassVar[str] = "internal"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a pipeline file: where it is, and what to do about it."""

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
    """A pipeline can't be loaded. `problems` holds all that was found, not only the first."""

    code = "config"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InvalidRequest(PenstockError, ValueError):
    code = "invalid_request"


class MissingData(InvalidRequest, IndexError):
    """The item has no `data` (an IndexError too, as torchpipe's callers expect)."""


class NotFound(PenstockError, IndexError):
    code = "not_found"


class UnsupportedMedia(PenstockError):
    code = "unsupported_media"


class InvalidInput(PenstockError, ValueError):
    code = "invalid_input"


class TooLarge(InvalidInput):
    code = "too_large"


class QueueFull(PenstockError):
    code = "queue_full"


class Overloaded(PenstockError):
    code = "overloaded"


class NotReady(PenstockError):
    code = "not_ready"


class DeadlineExceeded(PenstockError, TimeoutError):
    code = "deadline_exceeded"


class BackendError(PenstockError, RuntimeError):
    code = "backend_error"


class DeviceError(BackendError):
    code = "backend_error"


class UnknownRestart(BackendError, IndexError):
    """Of a pipeline that loops (an IndexError too, as torchpipe's callers expect)."""

    code = "backend_error"
