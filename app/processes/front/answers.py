"""The answers that a front gives by itself, while it is linked to no model process."""

from __future__ import annotations

from typing import NamedTuple

from penstock.backends.errors import NotReady

from ...http.errors import problem
from ...http.request_id import choose_request_id
from ...server.asgi import STATUS_LINES
from ...server.direct import lines_of
from ...server.head import RequestHead
from ...v2.call import error_answer

LIVE_BODY = b'{"live":true}'

NO_MODELS = NotReady("the server has no process for its models now: one is being started")
STUCK = NotReady("the server's process for its models takes no requests now: it does not answer")
SHUTTING_DOWN = NotReady("the server is shutting down")


class Answer(NamedTuple):
    """An answer. `head` lacks its last line."""

    status: int
    head: bytes
    body: bytes
    request_id: str | None


def live(default_head: bytes) -> Answer:
    """Return the answer to a request for liveness."""
    lines = b"content-length: %d\r\ncontent-type: application/json\r\n" % len(LIVE_BODY)
    return Answer(200, STATUS_LINES[200] + default_head + lines, LIVE_BODY, None)


def not_ready(head: RequestHead, default_head: bytes, error: NotReady) -> Answer:
    """Return the answer to a request that no model process can take: it may come again."""
    given = next((value for name, value in head.fields if name == b"x-request-id"), None)
    request_id = choose_request_id(given)
    if head.path.startswith(b"/v2/"):
        status, headers, body = error_answer(error)
        lines = lines_of([*headers, (b"content-length", b"%d" % len(body))])
    else:
        status, fields, body = problem(error, request_id)
        lines = lines_of(fields)
    start = b"%b%b%b" % (STATUS_LINES[status], default_head, lines)
    end = b"x-request-id: %b\r\n" % request_id.encode()
    return Answer(status, start + end, body, request_id)
