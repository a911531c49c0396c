"""A server whose every byte a test chooses."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class RawServer:
    """`answer` gets each request, head and body, and returns the bytes of the answer; None closes
    the connection. `requests` are those that came, `connections` how many connections did.
    """

    def __init__(self, answer: Callable[[bytes], bytes | None], port: int = 0) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = threading.Event()
        """A client has closed its connection."""
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError), connection:
            while True:
                while b"\r\n\r\n" not in data:
                    if not (piece := connection.recv(1 << 16)):
                        self.left.set()
                        return
                    data += piece
                head, _, body = data.partition(b"\r\n\r\n")
                while not _is_whole(head.lower(), body):
                    if not (piece := connection.recv(1 << 16)):
                        self.left.set()
                        return
                    body += piece
                data = b""
                request = head + b"\r\n\r\n" + body
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    return
                connection.sendall(answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        while self._open:  # one may come meanwhile
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)


def _is_whole(head: bytes, body: bytes) -> bool:
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length or b"0")


@contextlib.contextmanager
def raw_server(answer: Callable[[bytes], bytes | None], port: int = 0) -> Iterator[RawServer]:
    server = RawServer(answer, port)
    try:
        yield server
    finally:
        server.close()


def ok(body: bytes = b"", *lines: bytes, status: bytes = b"200 OK") -> bytes:
    """Return an answer with these lines in its head."""
    head = (b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *lines, b"", b"")
    return b"\r\n".join(head) + body
