"""What tracing costs a no-op pipeline: servers without it and with it, loaded by wrk in turns.

The server's CPU is that of the event loop and its threads. The process that makes spans has its
own, and a processor of its own where there is one.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from figures import Figure, of_runs
from http_noop import NOOP, PIPELINE, WRK
from servers import penstock
from wrk import Side, compared, in_turns, ratios, require_wrk

PART = "tracing"
CONNECTIONS = 64
OFF = "no tracing"
SAMPLED = {
    "1 of 1,000,000 traced": ("1000000", 0.985),
    "1 of 100 traced": ("100", 0.98),
    "all traced": ("1", None),
}
"""Side -> its `trace_rate`, and the least part of the rate without tracing that it should have."""


class Collector(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None: ...  # noqa: A002


def measure(quick: bool) -> list[Figure]:
    require_wrk()
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        (folder / "noop_backend.py").write_text(NOOP)
        (folder / "noop.toml").write_text(PIPELINE)
        (folder / "post.lua").write_text(WRK)
        collector = running.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Collector))
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        running.callback(collector.shutdown)
        url = f"http://127.0.0.1:{collector.server_port}/v1/traces"

        def side(name: str, *options: str) -> Side:
            server = running.enter_context(penstock(folder / "noop.toml", *options))
            return Side(name, server, "/predict/noop", folder / "post.lua")

        sides = [side(OFF)]
        for what, (rate, _) in SAMPLED.items():
            options = ("--trace-mode", "opentelemetry", "--trace-url", url, "--trace-rate", rate)
            sides.append(side(what, *options))
        runs = in_turns(sides, CONNECTIONS, quick=quick)
    return [
        of_runs(
            PART,
            f"{CONNECTIONS} connections, {what}: rate ÷ without tracing",
            ratios(runs[what], runs[OFF]),
            least=least,
            note=compared(runs[what], runs[OFF]),
        )
        for what, (_, least) in SAMPLED.items()
    ]
