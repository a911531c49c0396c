"""A server of several processes with small children: `python stub_server.py serve [--X=Y …]`.

The fronts answer each request with their number and process; the model process only says that it
is ready. A file in the folder $STUB changes what new processes do:

    release     its text is part of each answer
    models      "fails": the model process says so and exits; "wrong": files are wrong; "dies": it
                is killed; "hangs": it is never ready
    fronts      the same for the fronts; "unprepared": front 1 never loads its front nodes
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.app.cli.signals import hold_signals_back
from penstock.app.processes.control import Control, Role, role_of
from penstock.app.processes.packets import Packets

FOLDER = Path(os.environ["STUB"])


def told(name: str) -> str:
    path = FOLDER / name
    return path.read_text().strip() if path.exists() else ""


class Stub:
    def __init__(self, role: Role, control: socket.socket) -> None:
        self.role = role
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self.retired = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.listeners: list[socket.socket] = []
        self.links: list[Packets] = []
        self.release = told("release")
        self.packets = Packets(control, self.received, self.ended.set)
        self.packets.start()

    async def run(self) -> int:
        fate = told("fronts" if self.role.number else "models")
        if fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "fails":
            self.say(Control.FAILED, "no such file")
            self.packets.flush()
            return 1
        if not self.role.number:
            self.say(Control.READ)
        if fate == "wrong":
            self.say(Control.PROBLEMS, ["x.toml: no node", "y.toml: no name"])
            self.packets.flush()
            return 1
        if fate != "hangs":
            self.say(Control.READY)
        if fate:
            print(f"{self.role} {fate}", file=sys.stderr, flush=True)
        await self.ended.wait()
        self.packets.flush()
        return 0

    def say(self, *message: Any) -> None:
        self.packets.send(message)

    def received(self, message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
        kind = message[0]
        if kind == Control.LINK:
            self.link(message[1], descriptors[0])
        elif kind == Control.CONNECTION:
            self.say(Control.TAKEN, 1)
            self.take(socket.socket(fileno=descriptors[0]), handed=True)
        elif kind == Control.LISTEN:
            for descriptor in descriptors:
                listener = socket.socket(fileno=descriptor)
                self.listeners.append(listener)
                self.loop.add_reader(listener, self.accept, listener)
        elif kind == Control.RETIRE and self.role.number:
            self.retired = True
            for listener in self.listeners:
                self.loop.remove_reader(listener)
            self.stop_when_empty()
        elif kind == Control.DRAIN:
            self.retired = True
            if not self.role.number:
                self.say(Control.DRAINED)
        elif kind == Control.END:
            for writer in self.writers:
                writer.close()
            self.ended.set()
        elif kind == Control.GRPC:
            os.close(descriptors[0])

    def link(self, number: int, descriptor: int) -> None:
        def greeted(message: tuple[Any, ...], descriptors: Sequence[int]) -> None:
            if self.role.number:
                self.say(Control.LINKED, number)
                if told("fronts") != "unprepared" or self.role.number > 1:
                    self.say(Control.PREPARED, number)
            else:
                link.send(message)

        link = Packets(socket.socket(fileno=descriptor), greeted, lambda: None)
        link.start()
        self.links.append(link)
        if self.role.number:
            link.send((0,))

    def accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError):
            self.take(listener.accept()[0], handed=False)

    def take(self, connection: socket.socket, *, handed: bool) -> None:
        task = asyncio.create_task(self.serve(connection, handed))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def serve(self, connection: socket.socket, handed: bool) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                body = f"{self.role} {os.getpid()} {self.release}".encode()
                close = b"connection: close\r\n" if self.retired else b""
                writer.write(
                    b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n" % (close, len(body))
                )
                writer.write(body)
                await writer.drain()
                if close:
                    break
        self.writers.discard(writer)
        writer.close()
        if handed:
            self.say(Control.CLOSED, 1)
        self.stop_when_empty()

    def stop_when_empty(self) -> None:
        if self.retired and not self.writers and len(self.tasks) <= 1:
            self.loop.call_soon(self.ended.set)


async def run_stub(name: str) -> int:
    return await Stub(role_of(name), socket.socket(fileno=3)).run()


def main() -> int:
    hold_signals_back(serves=True)
    given = sys.argv[2:]
    if given[0] == "--process":
        from penstock.app.processes.signals import leave_signals_to_the_parent

        leave_signals_to_the_parent()
        return asyncio.run(run_stub(given[1]))
    from penstock.app.processes.parent.serve import serve_processes
    from penstock.app.settings import Settings

    options: dict[str, Any] = dict(option[2:].split("=", 1) for option in given)
    return serve_processes(Settings(**options))


if __name__ == "__main__":
    sys.exit(main())
