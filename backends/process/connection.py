"""A backend in a child and the server, each as the other one's process knows it.

Both relay: what a model in the child asks of its `Server` goes by `Messages` to the connection that
the server made for it, and the answers come back.

child                                     parent
START number, call      →
                        ←   ANSWERED number, response     as often as the call has responses
MORE, CANCEL number     →
RESPOND handle, response →
                        ←   TAKEN handle, size; ENDED handle
RUN number, function    →
                        ←   REPLY number, what it returned or raised
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from ..server import (
    Connect,
    Connection,
    Listener,
    ModelCall,
    ModelOrder,
    Response,
    failed,
)
from .failure import Failure, ProcessDiedError
from .messages import Messages, Sender

START, MORE, CANCEL, RESPOND, RUN, ANSWERED, TAKEN, ENDED, REPLY = range(9)

IS_CANCELLED = "is_cancelled"
"""In place of a function to RUN: the question whether a request is cancelled."""


class RemoteConnection:
    """The server, as a child knows it. A `Connection`."""

    def __init__(self, messages: Messages, listener: Listener) -> None:
        self._messages = messages
        self._listener = listener
        self._numbers = count(1)
        self._lock = threading.Condition()
        self._replies: dict[int, Any] = {}
        self._gone = False
        threading.Thread(target=self._receive, name="messages of the server", daemon=True).start()

    def start(self, number: int, call: ModelCall | ModelOrder) -> None:
        self._messages.send(START, number, call)

    def more(self, number: int) -> None:
        self._messages.send(MORE, number, None)

    def cancel(self, number: int) -> None:
        self._messages.send(CANCEL, number, None)

    def respond(self, handle: int, response: Response) -> None:
        self._messages.send(RESPOND, handle, response)

    def is_cancelled(self, handle: int) -> bool:
        cancelled: bool = self._ask(IS_CANCELLED, handle)
        return cancelled

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._ask(function, *arguments)

    def _ask(self, function: Callable[..., Any] | str, *arguments: Any) -> Any:
        number = next(self._numbers)
        self._messages.send(RUN, number, (function, arguments))
        with self._lock:
            self._lock.wait_for(lambda: number in self._replies or self._gone)
            if number not in self._replies:
                raise ProcessDiedError("the server has gone")
            reply = self._replies.pop(number)
        if isinstance(reply, Failure):
            raise reply.rebuild("the server")
        return reply

    def close(self) -> None:
        """Hang up."""
        self._messages.close()

    def _receive(self) -> None:
        self._messages.receive_all(self._take, self._take_unreadable)
        with self._lock:
            self._gone = True
            self._lock.notify_all()

    def _take(self, kind: int, number: int, message: Any) -> None:
        if kind == ANSWERED:
            self._listener.answered(number, message)
        elif kind == TAKEN:
            self._listener.taken(number, message)
        elif kind == ENDED:
            self._listener.ended(number)
        else:
            with self._lock:
                self._replies[number] = message
                self._lock.notify_all()

    def _take_unreadable(self, kind: int, number: int, error: BaseException) -> None:
        if kind == ANSWERED:
            self._listener.answered(number, failed(error))
        elif kind == REPLY:
            self._take(REPLY, number, Failure.of(error))


class RemoteListener:
    """A backend in a child, as the server knows it. A `Listener`.

    It passes what the child asks to a connection of its own, until the child has gone.
    """

    def __init__(self, messages: Messages, connect: Connect, name: str) -> None:
        """`name`: that of its threads."""
        self._messages = messages
        self._connection: Connection = connect(self)
        self._sender = Sender(messages, f"{name} sends")
        self._thread = threading.Thread(target=self._receive, name=f"{name} receives", daemon=True)
        self._thread.start()

    def answered(self, number: int, response: Response) -> None:
        self._sender.send(
            ANSWERED, number, response, lambda error: self._answer_error(number, error)
        )

    def taken(self, handle: int, size: int) -> None:
        self._sender.send(TAKEN, handle, size, _ignore)

    def ended(self, handle: int) -> None:
        self._sender.send(ENDED, handle, None, _ignore)

    def hang_up(self) -> None:
        """End what the child has begun: it has gone. What it has sent is still heard."""
        self._messages.close()

    def wait_until_heard(self) -> None:
        """Wait until all that the child has sent is dealt with. Call it after `hang_up`."""
        self._thread.join()

    def close(self) -> None:
        """Hang up, and end the threads."""
        self._messages.close()
        self._sender.stop()
        self._thread.join()
        self._sender.join()
        self._messages.release()

    def _answer_error(self, number: int, error: BaseException) -> None:
        self.answered(number, failed(error))

    def _receive(self) -> None:
        try:
            self._messages.receive_all(self._take, self._take_unreadable)
        finally:
            self._connection.close()

    def _take(self, kind: int, number: int, message: Any) -> None:
        connection = self._connection
        if kind == START:
            connection.start(number, message)
        elif kind == MORE:
            connection.more(number)
        elif kind == CANCEL:
            connection.cancel(number)
        elif kind == RESPOND:
            connection.respond(number, message)
        else:
            self._run(number, *message)

    def _run(self, number: int, function: Any, arguments: tuple[Any, ...]) -> None:
        reply: Any
        try:
            if function == IS_CANCELLED:
                reply = self._connection.is_cancelled(*arguments)
            else:
                reply = self._connection.run(function, *arguments)
        except BaseException as error:
            reply = Failure.of(error)
        self._reply(number, reply)

    def _reply(self, number: int, reply: Any) -> None:
        def refuse(error: BaseException) -> None:
            self._reply(number, Failure.of(error))

        self._sender.send(REPLY, number, reply, refuse)

    def _take_unreadable(self, kind: int, number: int, error: BaseException) -> None:
        if kind == START:
            self._answer_error(number, error)
        elif kind == RESPOND:
            self._connection.respond(number, failed(error))
            self.ended(number)
        elif kind == RUN:
            self._reply(number, Failure.of(error))


def _ignore(error: BaseException) -> None: ...


def connector(messages: Messages) -> Connect:
    """Return what connects a `Server` in a child with that of its parent."""
    return partial(RemoteConnection, messages)
