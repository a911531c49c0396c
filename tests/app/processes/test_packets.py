from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from penstock.app.processes.packets import MAX_DESCRIPTORS, MESSAGE_BYTES, Packets

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=LOOPS)
def run(request: Any) -> Run:
    """Run a coroutine function on each kind of loop, for at most 20 s."""

    def run_in(function: Callable[[], Awaitable[None]]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(function(), 20))

    return run_in


class Side:
    """One end, and what it has received."""

    def __init__(self, end: socket.socket) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.descriptors: list[int] = []
        self.gone = 0
        self._changed = asyncio.Event()
        self.packets = Packets(end, self.on_message, self.on_gone)

    def on_message(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        self.messages.append(message)
        self.descriptors += descriptors
        self._changed.set()
        if message == ("mistake",):
            raise ValueError("a mistake")
        if message == ("close",):
            self.packets.close()

    def on_gone(self) -> None:
        self.gone += 1
        self._changed.set()

    async def until(self, count: int, gone: int = 0) -> None:
        while len(self.messages) < count or self.gone < gone:
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Side, Side]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sides = Side(ends[0]), Side(ends[1])
    for side in sides:
        side.packets.start()
    yield sides
    for side in sides:
        side.packets.close()
        for descriptor in side.descriptors:
            os.close(descriptor)


def is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def test_messages_come_as_they_were_sent_and_in_order(run: Run) -> None:
    async def test() -> None:
        async with two() as (left, right):
            sent = [(1, 2**40, b"\0\xff", "ü", None, True, 0.25, ("a", 1)), (), (b"x" * 50_000,)]
            for message in [*sent, *((number,) for number in range(5000))]:
                left.packets.send(message)
            await right.until(5003)
            assert right.messages[:3] == sent
            assert right.messages[3:] == [(number,) for number in range(5000)]
            right.packets.send((memoryview(b"view"),))
            await left.until(1)
            assert left.messages == [(b"view",)]

    run(test)


def test_messages_of_one_iteration_share_a_packet(run: Run) -> None:
    async def test() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with right:
            packets = Packets(left, lambda *_: None, lambda: None)
            packets.send((1,))
            packets.send((2,))
            await asyncio.sleep(0)
            packets.send((3,))
            packets.flush()
            assert len(right.recv(1 << 16)) > len(right.recv(1 << 16))
            packets.close()

    run(test)


def test_descriptors_come_with_their_message(run: Run) -> None:
    async def test() -> None:
        async with two() as (left, right):
            reading, writing = os.pipe()
            left.packets.send((1,))
            left.packets.send((2,), [reading, writing])
            os.close(reading)
            os.close(writing)
            left.packets.send((3,))
            await right.until(3)
            assert right.messages == [(1,), (2,), (3,)]
            received_reading, received_writing = right.descriptors
            assert fcntl.fcntl(received_reading, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            os.write(received_writing, b"x")
            assert os.read(received_reading, 1) == b"x"

    run(test)


def test_no_message_is_lost_while_the_other_side_does_not_read(run: Run) -> None:
    async def test() -> None:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        left, right = Side(ends[0]), Side(ends[1])
        for number in range(200):
            left.packets.send((number, b"x" * 30_000))
        reading, writing = os.pipe()
        left.packets.send((200,), [writing])
        os.close(writing)
        left.packets.flush()
        assert left.packets.unsent_bytes > 1 << 20
        right.packets.start()
        await right.until(201)
        assert [message[0] for message in right.messages] == list(range(201))
        assert left.packets.unsent_bytes == 0
        os.close(right.descriptors[0])
        assert os.read(reading, 1) == b""  # the sender has no copy of the other end left
        os.close(reading)
        left.packets.close()
        right.packets.close()

    run(test)


def test_the_departure_of_the_other_side_is_told_once_and_after_its_messages(run: Run) -> None:
    async def test() -> None:
        async with two() as (left, right):
            right.packets.send((1,))  # it is never read: the kernel resets the connection
            right.packets.flush()
            left.packets.send((2,))
            left.packets.flush()
            left.packets.close()
            right.packets.send((3,))
            await right.until(1, gone=1)
            right.packets.send((4,))
            await asyncio.sleep(0)
            assert right.messages == [(2,)]
            assert (left.gone, right.gone) == (0, 1)
            assert right.packets.unsent_bytes == 0

    run(test)


def test_unsent_descriptors_are_closed_with_the_packets(run: Run) -> None:
    async def test() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with right:
            packets = Packets(left, lambda *_: None, lambda: None)
            reading, writing = os.pipe()
            while not packets.unsent_bytes:  # until the kernel takes no more
                packets.send((1, b"x" * 50_000))
                packets.flush()
            packets.send((2,), [writing])
            os.close(writing)
            packets.close()
            packets.close()
            assert os.read(reading, 1) == b""
            os.close(reading)
            assert repr(packets) == "<Packets closed, 0 bytes unsent>"

    run(test)


def test_a_handler_that_raises_or_closes_does_not_disturb_the_others(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with two() as (left, right):
            for text in ("mistake", "next", "close", "after"):
                left.packets.send((text,))
            await left.until(0, gone=1)
            assert right.messages == [("mistake",), ("next",), ("close",)]
            assert right.gone == 0

    run(test)
    assert [record.message for record in caplog.records] == [
        "a message of another process could not be handled"
    ]


def test_what_can_not_be_sent_is_refused(run: Run) -> None:
    async def test() -> None:
        async with two() as (left, right):
            with pytest.raises(ValueError, match="at most 61440 bytes and 64 descriptors"):
                left.packets.send((b"x" * MESSAGE_BYTES,))
            with pytest.raises(ValueError, match="with 65 descriptors"):
                left.packets.send((), [0] * (MAX_DESCRIPTORS + 1))
            with pytest.raises(ValueError, match="unmarshallable"):
                left.packets.send((object(),))
            left.packets.send((1,))
            await right.until(1)
            assert right.messages == [(1,)]

    run(test)


class Failing(socket.socket):
    """A socket on which the first packets can't be sent."""

    errors: list[int]

    def send(self, *arguments: Any) -> int:
        if self.errors:
            raise OSError(self.errors.pop(), "no")
        return super().send(*arguments)


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.EMSGSIZE])
def test_what_the_kernel_refuses(run: Run, error: int) -> None:
    """Messages wait for its memory; both sides notice if they can't be sent at all."""

    async def test() -> None:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        failing = Failing(fileno=ends[0].detach())
        failing.errors = [error]
        left, right = Side(failing), Side(ends[1])
        for side in (left, right):
            side.packets.start()
        left.packets.send((1,))
        if error == errno.ENOBUFS:
            await right.until(1)
            assert right.messages == [(1,)]
        else:
            await left.until(0, gone=1)
            await right.until(0, gone=1)
            assert right.messages == []
        for side in (left, right):
            side.packets.close()


def test_descriptors_need_no_copy_if_they_leave_at_once(run: Run) -> None:
    async def test() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with right:
            packets = Packets(left, lambda *_: None, lambda: None)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (left.fileno(), hard))
            try:
                packets.send((1,), [right.fileno()])
                assert packets.unsent_bytes == 0
                while not packets.unsent_bytes:
                    packets.send((2, b"x" * 50_000))
                    packets.flush()
                unsent = packets.unsent_bytes
                with pytest.raises(OSError, match="Too many open files"):
                    packets.send((3,), [right.fileno()])
                assert packets.unsent_bytes == unsent
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with pytest.raises(OSError, match="Bad file descriptor"):
                packets.send((4,), [1 << 20])
            packets.close()

    run(test)
