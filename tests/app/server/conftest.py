"""A proxy in front of a server: nginx with its default settings, if it is installed."""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ...ports import free_port

CONFIGURATION = """
user root;
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/1;
    proxy_temp_path {directory}/2;
    fastcgi_temp_path {directory}/3;
    uwsgi_temp_path {directory}/4;
    scgi_temp_path {directory}/5;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server};
        }}
        location /cut/ {{
            proxy_pass http://127.0.0.1:{server}/;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(
    command: str, server: int, directory: Path, configuration: str = CONFIGURATION
) -> Iterator[int]:
    port = free_port()
    file = directory / "nginx.conf"
    file.write_text(configuration.format(directory=directory, port=port, server=server))
    log = directory / "error.log"
    process = subprocess.Popen([command, "-p", directory, "-e", log, "-c", file])
    try:
        end = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait(15)


class LikeNginx(socketserver.StreamRequestHandler):
    """What nginx does by default: reads the whole request, sends it on by HTTP/1.0, and answers 502
    if the server closes before all of it is sent. When the client leaves, it leaves too.
    """

    server_port = 0

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            self._relay()

    def _relay(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            if not line.lower().startswith(b"connection:"):
                head += line
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        body = self.rfile.read(int(length or 0))
        head = head.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\nConnection: close\r\n", 1)
        with socket.create_connection(("127.0.0.1", self.server_port)) as upstream:
            try:
                upstream.sendall(head + body)
                while True:
                    readable, _, _ = select.select([upstream, self.connection], [], [])
                    if upstream not in readable or not (more := upstream.recv(1 << 16)):
                        return  # one of them has ended
                    self.wfile.write(more)
            except OSError:
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


@contextlib.contextmanager
def like_nginx(server: int) -> Iterator[int]:
    handler = type("Handler", (LikeNginx,), {"server_port": server})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        yield proxy.server_address[1]
        proxy.shutdown()


@pytest.fixture(scope="module", params=["direct", "behind a proxy"])
def door(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], int]]:
    """A function that puts nothing or a proxy in front of a server's port, and returns the port to
    use. .ci/run installs nginx; a machine without it has a stand-in.
    """
    with contextlib.ExitStack() as stack:

        def make(server: int) -> int:
            if request.param == "direct":
                return server
            command = shutil.which("nginx")
            directory = tmp_path_factory.mktemp("nginx")
            return stack.enter_context(
                nginx(command, server, directory) if command else like_nginx(server)
            )

        yield make
