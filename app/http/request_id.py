"""Request ids: the client's X-Request-Id if it is fit to be logged and returned, else a new one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import count
from secrets import token_hex
from typing import Any

MAX_ID_CHARACTERS = 128
_FIT = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID_CHARACTERS}}}")

new_request_id = map(f"{token_hex(6)}-".__add__, map(str, count(1))).__next__
"""Makes an id that is unique across processes, by the random prefix of this one.

It is cheap: random bytes are read once a process, not once a request, and no Python runs.
"""


def choose_request_id(sent: bytes | None) -> str:
    """Return `sent` if it is 1 to 128 visible ASCII characters, else a new id.

    A longer or stranger one would only carry trouble into logs.
    """
    if sent is None:
        return new_request_id()
    text = sent.decode("latin-1")
    return text if is_fit(text) else new_request_id()


def is_fit(text: str) -> bool:
    """Return whether an id is fit to be logged: 1 to 128 visible ASCII characters."""
    return _FIT.fullmatch(text) is not None


def request_id_of(scope: Any) -> str:
    """Return the id of an ASGI request, the same at every call."""
    known = scope.get("penstock.request_id")
    if known is None:
        headers: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())
        known = scope["penstock.request_id"] = choose_request_id(
            next((value for key, value in headers if key == b"x-request-id"), None)
        )
    request_id: str = known
    return request_id
