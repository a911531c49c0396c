"""The one table from an error's code to its statuses, and problem+json (RFC 9457) made from it.

`type` is `about:blank`, so `title` is the phrase of the status. Clients should branch on `code`,
which never changes.

A client gets the message of every `PenstockError`, which is written for it. For a `BackendError` it
gets only the place (node, backend, kind of exception): the exception's own text is about our
insides (paths, shapes, SQL, keys). For any other exception it gets only the request id, under which
the log has the rest.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from penstock.backends.errors import (
    BackendError,
    InvalidRequest,
    MemoryFull,
    PenstockError,
    code_and_status,
)
from penstock.backends.text import encodable, message_of

from ..history.record import Failure
from .paths import sort_allow
from .request_id import request_id_of

logger = logging.getLogger("penstock.http")

PROBLEM_MEDIA_TYPE = "application/problem+json"

LONGEST_PATH_CHARACTERS = 200
"""So much of an unknown path is quoted."""

Problem = tuple[int, list[tuple[bytes, bytes]], bytes]
"""An answer: status, headers, body."""


class Unauthorized(PenstockError):  # noqa: N818  named as all of ours are
    """Raised for a request without a key or token, or with a wrong one."""

    code = "unauthorized"


class Forbidden(PenstockError):  # noqa: N818
    """Raised if the request's key does not suffice, or the operator has not allowed it."""

    code = "forbidden"


class LoadFailed(PenstockError):  # noqa: N818
    """Raised if a pipeline could not be loaded. The administrator gets the full reason."""

    code = "load_failed"


@dataclass(frozen=True, slots=True)
class CodeStatuses:
    """The statuses by which one code is answered, here and below /v2."""

    http: int
    protocol: int
    """The status in the Open Inference Protocol, where clients expect Triton's."""
    retry_after: int = 0
    """Seconds of the header Retry-After, if the error names none; 0: no header."""
    example: str = ""
    """An example of `detail`, for the OpenAPI document."""

    @property
    def title(self) -> str:
        return HTTPStatus(self.http).phrase


STATUSES: dict[str, CodeStatuses] = {
    "invalid_request": CodeStatuses(400, 400, example="the body is empty: expected an image"),
    "unauthorized": CodeStatuses(
        401, 401, example="expected the header Authorization: Bearer <API key>"
    ),
    "forbidden": CodeStatuses(403, 403, example="this needs the admin token"),
    "not_found": CodeStatuses(
        404, 404, example="there is no pipeline 'digit', did you mean 'digits'?"
    ),
    "unknown_request": CodeStatuses(
        404,
        404,
        example="no request 'photo-1' is remembered: 812 of the last 1024 are (request_history), "
        "the oldest from 62.4 s ago",
    ),
    "history_off": CodeStatuses(
        404,
        404,
        example="no requests are remembered: the operator has turned that off "
        "(request_history = 0)",
    ),
    "method_not_allowed": CodeStatuses(
        405, 405, example="GET is not allowed here: use POST or PUT"
    ),
    "too_large": CodeStatuses(413, 400, example="the body is larger than 67108864 bytes"),
    "unsupported_media": CodeStatuses(
        415, 415, example="the media type text/html is not understood"
    ),
    "invalid_input": CodeStatuses(422, 400, example="the image can't be decoded"),
    "config": CodeStatuses(
        422,
        400,
        example="digits.toml: [digits] backend: there is no backend 'DecodeMap', "
        "did you mean 'DecodeMat'?",
    ),
    "queue_full": CodeStatuses(
        429,
        503,
        retry_after=1,
        example="too many requests in flight: 1024 (max_requests = 1024)",
    ),
    "overloaded": CodeStatuses(
        429,
        503,
        retry_after=1,
        example="an answer would take about 900 ms, the deadline is in 500 ms",
    ),
    "memory_full": CodeStatuses(
        503,
        503,
        retry_after=1,
        example="a body needs 52428800 bytes, and requests hold 120000000 of 134217728 bytes "
        "already (max_memory)",
    ),
    "too_many_watchers": CodeStatuses(
        503,
        503,
        retry_after=5,
        example="16 clients watch the server already (max_watchers = 16)",
    ),
    "backend_error": CodeStatuses(
        500, 500, example="node 'digits': backend OnnxTensor raised RuntimeError"
    ),
    "model_error": CodeStatuses(500, 500, example="the model has no such voice"),
    "load_failed": CodeStatuses(500, 500, example="node 'digits': FileNotFoundError: digits.onnx"),
    "internal": CodeStatuses(
        500, 500, example="the server failed; its log has more under this request id"
    ),
    "not_ready": CodeStatuses(503, 503, retry_after=1, example="pipeline 'digits' is loading"),
    "deadline_exceeded": CodeStatuses(
        504, 503, example="node 'digits': the deadline passed while the request was queued"
    ),
}
"""Code -> status. It decides how every exception of Penstock is answered, below /v2 too.
`status_of` finds those of a user's own error classes.
"""

CODE_BY_STATUS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media",
}
"""Codes of errors that FastAPI's router raises as a bare status.

Other statuses below 500 are `invalid_request`, the rest `internal`.
"""

LOGGED_STATUSES = frozenset(range(500, 600)) - {501, 503, 504}
"""Statuses that mean a failure of ours. What we don't have (501), overload and a passed deadline
aren't: clients cause them as often as they like, and metrics count them.
"""

NO_MEMORY_DETAIL = "the operating system gives the server no more memory (ulimit -v)"
INTERNAL_DETAIL = "the server failed; its log has more under this request id"


def code_of(error: BaseException) -> str:
    """Return the code of any exception."""
    if isinstance(error, MemoryError):
        return MemoryFull.code
    return code_and_status(error)[0] if isinstance(error, PenstockError) else "internal"


def status_of(error: BaseException) -> CodeStatuses:
    """Return the statuses of any exception. An error of a user's own has those of its nearest base
    class here, unless it says another.
    """
    code = code_of(error)
    if not isinstance(error, PenstockError):
        return STATUSES[code]
    codes = [code, *(kind.code for kind in type(error).__mro__ if issubclass(kind, PenstockError))]
    own = code_and_status(error)[1]
    if own is not None:
        return CodeStatuses(own, own)
    return STATUSES[next(code for code in codes if code in STATUSES)]


def log_failure(error: BaseException, request_id: str, pipeline: str | None = None) -> None:
    """Log an exception that a request is answered by, if it is a failure of ours and the log does
    not have it yet. So the log has a line for every answer of 500.
    """
    if isinstance(error, PenstockError) and (
        error.logged or status_of(error).http not in LOGGED_STATUSES
    ):
        return
    if isinstance(error, MemoryError):  # what allocated says nothing of who took the memory
        logger.error(
            "request %s: %s",
            request_id,
            NO_MEMORY_DETAIL,
            extra={"request_id": request_id, "pipeline": pipeline},
        )
        return
    logger.error(
        "request %s failed",
        request_id,
        exc_info=error,
        extra={"request_id": request_id, "pipeline": pipeline},
    )


def detail_of(error: BaseException) -> str:
    """Return the part of an exception that a client may know."""
    if isinstance(error, BackendError):
        # The message is "node 'x': backend Y raised ValueError: text". Drop the text.
        cause = error.__cause__
        message = message_of(error)
        text = f": {message_of(cause)}"
        if cause is None or message.endswith(text):
            return message.removesuffix(text)
        return "a backend failed"
    if isinstance(error, MemoryError):
        return NO_MEMORY_DETAIL
    return message_of(error) if code_of(error) != "internal" else INTERNAL_DETAIL


def failure_of(error: BaseException) -> Failure:
    """Return the code of an exception and what a client may know, for the history."""
    return Failure(code_of(error), detail_of(error))


def problem_object(error: BaseException, request_id: str = "") -> dict[str, Any]:
    """Make the problem of one error, as a dict; it stands for a failed item of a batch."""
    return _object(status_of(error).http, detail_of(error), code_of(error), request_id)


def problem(error: BaseException, request_id: str = "", **more: Any) -> Problem:
    """Make the answer to a request that ended with `error`, without the header X-Request-Id.

    `more`: further members of the problem object.
    """
    body = problem_object(error, request_id) | more
    status = status_of(error)
    headers = retry_headers(error, status)
    if status.http == 401:
        headers.append((b"www-authenticate", b'Bearer realm="penstock"'))
    return _answer(status.http, body, headers)


def retry_headers(error: BaseException, status: CodeStatuses) -> list[tuple[bytes, bytes]]:
    """Return Retry-After, if a request that failed so may come again: after the seconds that the
    error names, else after those of its status.
    """
    named = error.retry_after if isinstance(error, PenstockError) else None
    seconds = named if type(named) is int and named > 0 else status.retry_after
    return [(b"retry-after", b"%d" % seconds)] if seconds else []


def problem_response(error: BaseException, request_id: str) -> Response:
    """Make the same answer as a Starlette response, with the header X-Request-Id."""
    return _response(*problem(error, request_id), request_id)


def install_handlers(app: FastAPI) -> None:
    """Make every error of the app's ordinary routes a problem too.

    These are our errors, the 404 and 405 of the router, and unexpected exceptions.
    """
    app.add_exception_handler(PenstockError, exception_handler)
    app.add_exception_handler(RequestValidationError, _handle_validation)
    app.add_exception_handler(HTTPException, _handle_http)
    app.add_exception_handler(Exception, exception_handler)  # the server still logs its traceback


async def exception_handler(request: Request, error: Exception) -> Response:
    """Answer a request that ended with a `PenstockError` by its problem, as Penstock's own routes
    do: with its status, `X-Request-Id` and `Retry-After`. Failures (500) are logged.

    For apps with routes that call pipelines, FastAPI's and Starlette's alike:

    ```python
    app.add_exception_handler(PenstockError, exception_handler)
    ```

    Any other exception gets an "internal" problem that says nothing about it, and is left to the
    server to log.
    """
    request_id = request_id_of(request.scope)
    if isinstance(error, PenstockError):
        log_failure(error, request_id)
    return problem_response(error, request_id)


async def _handle_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    text = "; ".join(
        f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()
    )
    return problem_response(InvalidRequest(text), request_id_of(request.scope))


async def _handle_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sort_allow(error)  # routes that aren't ours too
    request_id = request_id_of(request.scope)
    code = CODE_BY_STATUS.get(
        error.status_code, "invalid_request" if error.status_code < 500 else "internal"
    )
    headers = [
        (key.lower().encode("latin-1"), value.encode("latin-1"))
        for key, value in (error.headers or {}).items()
    ]
    body = _object(error.status_code, _detail(request, error), code, request_id)
    return _response(*_answer(error.status_code, body, headers), request_id)


def _detail(request: Request, error: HTTPException) -> str:
    """Return what the error says; where the router only repeats the status, what was asked."""
    if error.detail != HTTPStatus(error.status_code).phrase:
        return str(error.detail)
    if error.status_code == 404:
        return f"there is nothing at {request.scope['path'][:LONGEST_PATH_CHARACTERS]}"
    allowed = (error.headers or {}).get("Allow")
    if error.status_code == 405 and allowed:
        methods = allowed.replace(", ", " or ")
        return f"{request.method} is not allowed here: use {methods}"
    return str(error.detail)


def _object(status: int, detail: str, code: str, request_id: str) -> dict[str, Any]:
    members = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    return {**members, "request_id": request_id} if request_id else members


def _answer(status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> Problem:
    content = orjson.dumps({**body, "detail": encodable(body["detail"])})
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"content-length", b"%d" % len(content)),
        *headers,
    ]
    return status, headers, content


def _response(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes, request_id: str
) -> Response:
    response = Response(body, status)
    response.raw_headers = [*headers, (b"x-request-id", request_id.encode("latin-1"))]
    return response
