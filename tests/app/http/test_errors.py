"""The table of errors, and the problems made from it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from penstock.app.http.errors import STATUSES, log_failure, problem, problem_object
from penstock.app.http.request_id import choose_request_id, request_id_of
from penstock.backends import errors

HTTP = {
    "InvalidRequest": 400, "MissingData": 400, "NotFound": 404, "TooLarge": 413,
    "UnsupportedMedia": 415, "InvalidInput": 422, "QueueFull": 429, "Overloaded": 429,
    "MemoryFull": 503, "NotReady": 503, "DeadlineExceeded": 504, "BackendError": 500,
    "DeviceError": 500, "UnknownRestart": 500, "PenstockError": 500, "ConfigError": 422,
    "ModelError": 500,
}  # fmt: skip
"""The status of each exception."""


def exceptions() -> Any:
    return [
        member
        for member in vars(errors).values()
        if isinstance(member, type) and issubclass(member, errors.PenstockError)
    ]


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_has_its_status(kind: Any) -> None:
    error = kind([errors.Problem("what")]) if kind is errors.ConfigError else kind("what")
    status, headers, body = problem(error, "r1")
    document = orjson.loads(body)
    assert status == document["status"] == HTTP[kind.__name__]
    assert (
        document["type"] == "about:blank"
        and document["request_id"] == "r1"
        and document["code"] == kind.code
    )
    fields = dict(headers)
    assert fields[b"content-type"] == b"application/problem+json" and int(
        fields[b"content-length"]
    ) == len(body)
    assert (b"retry-after" in fields) == (status in (429, 503))


def test_statuses_of_the_inference_protocol() -> None:
    statuses = {
        code: STATUSES[code].protocol
        for code in ("too_large", "invalid_input", "queue_full", "overloaded", "deadline_exceeded")
    }
    assert statuses == {
        "too_large": 400,
        "invalid_input": 400,
        "queue_full": 503,
        "overloaded": 503,
        "deadline_exceeded": 503,
    }


def test_nothing_internal_is_answered() -> None:
    for error in (KeyError("/secret"), errors.PenstockError("/secret")):
        assert b"secret" not in problem(error)[2] and problem(error)[0] == 500
    cause = ValueError("/secret\nmore")
    error = errors.BackendError(f"node 'n': backend B raised ValueError: {cause}")
    error.__cause__ = cause
    assert problem_object(error)["detail"] == "node 'n': backend B raised ValueError"
    error = errors.BackendError("node 'n': /secret in other words")
    error.__cause__ = cause
    assert problem_object(error)["detail"] == "a backend failed"


def test_text_with_a_lone_surrogate() -> None:
    assert orjson.loads(problem(errors.InvalidInput("name \ud800"))[2])["detail"] == "name \\ud800"


@pytest.mark.parametrize("sent", [b"a", b"x" * 128, b"~!{}\"'", b"7f3-99"])
def test_request_ids_that_are_kept(sent: Any) -> None:
    assert choose_request_id(sent) == sent.decode()


@pytest.mark.parametrize(
    "sent", [None, b"", b"x" * 129, b"a b", b"a\n", b"\xe9", b"a\x7f", b"\x1b[0m"]
)
def test_request_ids_that_are_replaced(sent: Any) -> None:
    first, second = choose_request_id(sent), choose_request_id(sent)
    assert first != second and first.isascii() and 8 < len(first) < 40


def test_a_requests_id_stays() -> None:
    scope = {"headers": [(b"x-request-id", b"a b")]}
    assert request_id_of(scope) == request_id_of(scope)


def test_memory_that_the_operating_system_refuses_is_told_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    status, headers, body = problem(MemoryError(), "r1")
    document = orjson.loads(body)
    assert (status, document["code"]) == (503, "memory_full")
    assert (b"retry-after", b"1") in headers and "ulimit -v" in document["detail"]
    log_failure(MemoryError(), "r1")
    (record,) = caplog.records
    assert "r1" in record.getMessage() and record.exc_info is None
