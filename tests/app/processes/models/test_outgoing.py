from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from penstock.app.processes.arena import Arena
from penstock.app.processes.models.outgoing import Outgoing
from penstock.app.processes.packets import INLINE_BYTES
from penstock.backends.memory import Reservation, budget, limited

LARGE = b"x" * (INLINE_BYTES + 1)


class Owner:
    """A request, as far as it is needed here."""

    def __init__(self) -> None:
        self.memory = Reservation(budget)
        self.memory.resize(1000, "a test")


class Sending:
    """An outgoing side, and what it has sent and refused."""

    def __init__(self, size: int) -> None:
        self.sent: list[Any] = []
        self.refused: list[Any] = []
        packets: Any = self
        self.outgoing = Outgoing(packets, Arena(size), self.refused.append)

    def send(self, message: tuple[Any, ...]) -> None:
        self.sent.append(message)


@pytest.fixture
def sending() -> Iterator[Sending]:
    before = budget.used
    sending = Sending(3 * INLINE_BYTES)
    yield sending
    sending.outgoing.close()
    assert budget.used == before


def test_small_content_goes_inside_its_message(sending: Sending) -> None:
    sending.outgoing.send((1,), [b"a", memoryview(b"b")], (2,))
    assert sending.sent == [(1, b"ab", 2)]
    assert repr(sending.outgoing) == "<Outgoing <Arena 0 of 98304 bytes in 0 extents>, 0 waiting>"


def test_large_content_waits_for_room_in_order(sending: Sending) -> None:
    for number in range(4):
        sending.outgoing.send((number,), [LARGE])
    assert [message[0] for message in sending.sent] == [0, 1]
    sending.outgoing.send((4,), [b"small"])
    assert sending.sent[2] == (4, b"small")
    sending.outgoing.free([sending.sent[0][1][0], sending.sent[1][1][0]])
    assert [message[0] for message in sending.sent] == [0, 1, 4, 2, 3]


def test_a_request_keeps_its_memory_until_its_answer_is_sent(sending: Sending) -> None:
    owners: list[Any] = [Owner(), Owner(), Owner()]
    for owner in owners:
        sending.outgoing.send((), [LARGE], (), owner)
    assert [owner.memory.size for owner in owners] == [0, 0, 1000]
    sending.outgoing.free([sending.sent[0][0][0]])
    assert owners[2].memory.size == 0


def test_content_is_refused_if_nothing_can_make_room_for_it(sending: Sending) -> None:
    owner: Any = Owner()
    sending.outgoing.send((1,), [LARGE])
    with limited(budget.used):
        sending.outgoing.send((2,), [LARGE], (), owner)
        assert sending.refused == []  # the first one will make room
        budget.limit -= len(LARGE)
        sending.outgoing.free([sending.sent[0][1][0]])
        assert sending.refused == [owner]
    sending.outgoing.send((3,), [LARGE])
    assert [message[0] for message in sending.sent] == [1, 3]
