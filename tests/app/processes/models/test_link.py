from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from penstock.app.processes import messages
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend

from ..fronts import Models, models


@register_backend("CrossedProbe")
class CrossedProbe(Backend):
    """Returns the size of `data`, or many numbers for b"many"."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            data = item["data"]
            item["result"] = np.zeros(100_000) if data == b"many" else len(data)


PROBE = {"pipeline": {"name": "probe"}, "probe": {"backend": "CrossedProbe", "max": 8}}


@pytest.fixture(scope="module")
def served() -> Iterator[Models]:
    with models(PROBE) as process:
        yield process


def test_a_request_is_answered(served: Models) -> None:
    with served.front() as front:
        number = front.request("/predict/probe", b"12345")
        answered, status, head, body = front.answer()
        assert (answered, status, body) == (number, 200, b'{"result":5}')
        assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")


def test_large_bodies_cross_in_extents(served: Models) -> None:
    with served.front() as front:
        extent = front.arena.put(b"x" * 100_000)
        assert extent is not None
        front.request("/predict/probe", extent)
        _, status, _, body = front.answer()
        assert (status, body) == (200, b'{"result":100000}')
        if front.arena.in_use:
            front.freed(front.receive())
        assert front.arena.in_use == 0
        front.request("/predict/probe", b"many")
        _, status, head, body = front.answer()
        assert status == 200
        assert f"content-length: {len(body)}\r\n".encode() in head
        assert body == b'{"result":[' + b",".join([b"0.0"] * 100_000) + b"]}"


def test_a_request_that_was_asked_for(served: Models) -> None:
    with served.front() as front:
        number = front.request("/predict/probe", b"", size=5, kind=messages.ASK)
        assert front.receive() == (messages.GO, number)
        front.send(messages.BODY, number, b"12345")
        assert front.answer()[1::2] == (200, b'{"result":5}')
        front.request("/predict/missing", b"", size=5, kind=messages.ASK)
        assert front.answer()[1] == 404


def test_what_no_call_takes_is_sent_again(served: Models) -> None:
    with served.front() as front:
        number = front.request("/health/live", b"x")
        assert front.receive() == (messages.RESEND, number)
