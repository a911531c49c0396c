"""X-Forwarded-For and X-Forwarded-Proto are believed from trusted proxies only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FORWARDED = {
    "x-forwarded-for": "198.51.100.1, 203.0.113.9, 127.0.0.2",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "evil.example",
    "x-forwarded-prefix": "/evil",
    "forwarded": "for=192.0.2.7;proto=https;host=evil.example",
    "host": "a.example",
}


@pytest.mark.parametrize(
    ("trusted", "client_address"),
    [
        (None, "127.0.0.1"),
        ("10.0.0.0/8,::1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.0/8", "203.0.113.9"),
        ("10.0.0.1, 127.0.0.1,127.0.0.2", "203.0.113.9"),
        ("*", "198.51.100.1"),
    ],
)
def test_only_trusted_proxies_are_believed(
    spawn: Any, echo: Path, trusted: str | None, client_address: str
) -> None:
    options = () if trusted is None else ("--trusted-proxies", trusted)
    # uvicorn reads this variable if it is not told whom to trust.
    server = spawn("serve", echo, "--port", 0, "--access-log", *options, FORWARDED_ALLOW_IPS="*")
    with server.listening() as client:
        answer = client.get("/openapi.json/", headers=FORWARDED)
        scheme = "http" if client_address == "127.0.0.1" else "https"
        assert answer.headers["location"] == f"{scheme}://a.example/openapi.json"
        document = client.get("/openapi.json", headers=FORWARDED).json()
        assert "evil" not in str(document.get("servers"))
    server.process.terminate()
    assert server.end() == 0
    lines = [line for line in server.lines if "/openapi.json" in line]
    assert len(lines) == 2 and all(f" {client_address}:" in line for line in lines), lines


def test_without_the_header_the_connection_counts(spawn: Any, echo: Path) -> None:
    server = spawn("serve", echo, "--port", 0, "--access-log", "--trusted-proxies", "127.0.0.1")
    with server.listening() as client:
        assert client.get("/health/live").status_code == 200
    server.process.terminate()
    assert server.end() == 0
    assert any(" 127.0.0.1:" in line and "/health/live" in line for line in server.lines)
