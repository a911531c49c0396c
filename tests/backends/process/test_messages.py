"""The second channel to a child: messages that cross one another, and those that can't be read."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from penstock.backends.allocation import empty_array
from penstock.backends.errors import InvalidInput, MemoryFull, NotFound, TooLarge
from penstock.backends.memory import budget, limited
from penstock.backends.process.connection import RemoteConnection, RemoteListener
from penstock.backends.process.failure import ProcessDiedError
from penstock.backends.process.messages import Messages
from penstock.backends.server import (
    Connection,
    Listener,
    ModelCall,
    ModelOrder,
    Response,
    ResponseError,
    Server,
)


class Vanishing:
    """Pickled in one process, and not to be found in another."""

    def __reduce__(self) -> Any:
        return _vanish, ()


def _vanish() -> None:
    raise RuntimeError("it means nothing here")


class End:
    """One end of the channel, which receives on a thread."""

    def __init__(self, connection: socket.socket) -> None:
        self.messages = Messages(connection, empty_array)
        self.received: SimpleQueue[tuple[int, int, Any]] = SimpleQueue()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        def take(kind: int, number: int, message: Any) -> None:
            self.received.put((kind, number, message))

        self.messages.receive_all(take, take)

    def get(self) -> tuple[int, int, Any]:
        return self.received.get(timeout=60)

    def end(self) -> None:
        self.messages.close()
        self._thread.join()
        self.messages.release()


@contextmanager
def channel() -> Iterator[tuple[End, End]]:
    ours, theirs = socket.socketpair()
    ends = End(ours), End(theirs)
    try:
        yield ends
    finally:
        for end in ends:
            end.end()


def test_both_sides_send_at_any_time_from_any_thread() -> None:
    array = np.arange(1 << 20).reshape(2, -1)

    def work(end: End, first: int) -> None:
        for number in range(first, first + 20):
            end.messages.send(1, number, {"small": number, "large": array[:, ::2], "none": b""})

    with channel() as ends:
        threads = [
            threading.Thread(target=work, args=(end, first)) for end in ends for first in (0, 100)
        ]
        for thread in threads:
            thread.start()
        for end in ends:
            found = [end.get() for _ in range(40)]
            assert sorted(number for _, number, _ in found) == [*range(20), *range(100, 120)]
            assert all(message["small"] == number for _, number, message in found)
            assert all((message["large"] == array[:, ::2]).all() for _, _, message in found)
        for thread in threads:
            thread.join()


def test_a_message_that_can_not_be_read_says_whose_it_was() -> None:
    with channel() as (here, there):
        with limited(budget.used + (1 << 20)):
            large = np.zeros(2 << 20, np.uint8)
            here.messages.send(1, 7, [np.zeros(8), large, np.zeros(8)])
            kind, number, error = there.get()
            assert (kind, number) == (1, 7)
            assert isinstance(error, TooLarge)
            here.messages.send(1, 8, [b"x" * (2 << 20)])  # in the pickle itself
            assert isinstance(there.get()[2], TooLarge)
        here.messages.send(2, 9, Vanishing())
        _, number, error = there.get()
        assert (number, str(error)) == (9, "it means nothing here")
        with pytest.raises(Exception, match="pickle"):
            here.messages.send(1, 10, lambda: None)
        here.messages.send(1, 11, "well")
        assert there.get() == (1, 11, "well")


def test_what_messages_bring_is_counted_until_it_is_gone() -> None:
    with channel() as (here, there), limited(budget.used + (4 << 20)):
        before = budget.used
        here.messages.send(1, 1, np.zeros(3 << 20, np.uint8))
        message = there.get()
        assert budget.used - before == 3 << 20
        here.messages.send(1, 2, np.zeros(3 << 20, np.uint8))
        assert isinstance(there.get()[2], MemoryFull)
        del message
        here.messages.send(1, 3, np.zeros(3 << 20, np.uint8))
        assert there.get()[2].nbytes == 3 << 20


def test_messages_to_a_side_that_has_gone_are_dropped() -> None:
    with channel() as (here, there):
        there.end()
        here.messages.send(1, 1, np.zeros(4 << 20, np.uint8))
        here.messages.send(1, 2, "no more")


class Remembered:
    """A connection that remembers what is asked of it."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.asked: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.closed = threading.Event()

    def start(self, number: int, call: ModelCall | ModelOrder) -> None:
        self.asked.put(("start", number, call))

    def more(self, number: int) -> None:
        self.asked.put(("more", number))

    def cancel(self, number: int) -> None:
        self.asked.put(("cancel", number))

    def respond(self, handle: int, response: Response) -> None:
        self.asked.put(("respond", handle, response))

    def is_cancelled(self, handle: int) -> bool:
        return handle == 13

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def close(self) -> None:
        self.closed.set()

    def get(self) -> tuple[Any, ...]:
        return self.asked.get(timeout=60)


@contextmanager
def connected() -> Iterator[tuple[Server, Remembered]]:
    """A server as a child has it, and what it is connected with."""
    ours, theirs = socket.socketpair()
    made: list[Remembered] = []

    def connect(listener: Listener) -> Connection:
        made.append(Remembered(listener))
        return made[0]

    remote = RemoteListener(Messages(ours, empty_array), connect, "test")
    child = Messages(theirs)
    server = Server(lambda listener: RemoteConnection(child, listener))
    try:
        yield server, made[0]
    finally:
        server.close()
        remote.close()
        child.release()
        assert made[0].closed.is_set()


def fail(word: str) -> None:
    raise NotFound(word)


def test_a_server_in_a_child_asks_that_of_its_parent() -> None:
    with connected() as (server, parent):
        call = server.start(ModelCall("m", "", {"X": np.ones(4)}, streams=True))
        asked, number, given = parent.get()
        assert (asked, number, given.inputs["X"].sum()) == ("start", call.number, 4)
        parent.listener.answered(number, Response({"Y": np.ones(2)}, final=False))
        assert call.get().outputs is not None
        call.ask()
        call.ask()  # once
        assert parent.get() == ("more", number)
        call.cancel()
        assert parent.get() == ("cancel", number)
        parent.listener.answered(number, Response(None, ResponseError("CANCELLED", "left")))
        assert call.get().error == ("CANCELLED", "left")
        call.cancel()  # it has ended
        assert not server.is_cancelled(1)
        assert server.is_cancelled(13)
        assert server.run(max, 3, 4) == 4
        with pytest.raises(NotFound, match="nowhere"):
            server.run(fail, "nowhere")
        assert parent.asked.empty()


def test_calls_and_responses_that_do_not_fit_fail_alone() -> None:
    large = np.zeros(2 << 20, np.uint8)
    with connected() as (server, parent), limited(budget.used + (1 << 20)):
        error = server.start(ModelCall("m", "", {"X": large})).get().error
        assert error is not None
        assert error.code == "INVALID_ARG"
        assert "max_memory" in error.message
        with server.running([{"handle": 5}], responds=True):
            server.respond(5, Response({"Y": large}))
        asked, handle, response = parent.get()
        assert (asked, handle, response.error.code) == ("respond", 5, "INVALID_ARG")
        with pytest.raises(InvalidInput):
            server.run(np.sum, large)


def test_a_model_waits_while_its_client_has_too_much_to_read() -> None:
    def work(server: Server) -> None:
        for _ in range(200):
            server.respond(5, Response({"Y": np.zeros(1 << 10)}, final=False))

    with connected() as (server, parent):
        with server.running([{"handle": 5}], responds=True):
            thread = threading.Thread(target=work, args=(server,))
            thread.start()
        sizes = [parent.get()[2].size for _ in range(64)]
        assert parent.asked.empty()
        parent.listener.taken(5, sizes[-1])
        assert parent.get()[0] == "respond"
        parent.listener.ended(5)  # what follows is dropped at once
        thread.join()


def test_a_child_whose_parent_has_gone_gets_errors() -> None:
    with connected() as (server, parent):
        waiting = server.start(ModelCall("m", "", {}))
        server.close()
        error = waiting.get().error
        assert error is not None
        assert error.code == "UNAVAILABLE"
        assert server.start(ModelOrder("ready", "m")).get().error == error
        assert parent.closed.wait(60)
        with pytest.raises(ProcessDiedError, match="the server has gone"):
            server.run(max, 1, 2)


def test_a_forked_process_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        messages = Messages(ours)
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        with pytest.raises(RuntimeError, match="a process that a model has forked"):
            messages.send(1, 2, None)
        messages.close()
        monkeypatch.undo()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):  # neither a message nor the end of the stream
            theirs.recv(1)


@pytest.mark.parametrize(("responds", "parents"), [(False, (5,)), (True, ())])
def test_calls_from_other_threads_are_those_of_the_batch_unless_it_responds(
    responds: bool, parents: tuple[int, ...]
) -> None:
    with connected() as (server, parent):
        with server.running([{"handle": 5}], responds):
            server.start(ModelCall("m", "", {}))
            thread = threading.Thread(target=lambda: server.start(ModelCall("m", "", {})))
            thread.start()
            thread.join()
        assert [parent.get()[2].parents for _ in range(2)] == [(5,), parents]
        server.start(ModelCall("m", "", {}))
        assert parent.get()[2].parents == ()


def test_a_request_whose_batch_fails_takes_no_responses() -> None:
    with connected() as (server, parent):
        with pytest.raises(ValueError, match="no"), server.running([{"handle": 5}], responds=True):
            raise ValueError("no")
        server.respond(5, Response({}))
        assert server.run(max, 1, 2) == 2  # what was sent before has come
        assert parent.asked.empty()
