"""Response senders of a model."""

from __future__ import annotations

from typing import Any

from .error import TritonModelException


class InferenceResponseSender:
    """Sends the responses to one request."""


def sender_of(request: Any) -> InferenceResponseSender:
    """Return the sender of a request."""
    raise TritonModelException("this server does not serve response senders yet")


def is_cancelled(handle: int | None) -> bool:
    """Return whether the client of a request has left."""
    return False
