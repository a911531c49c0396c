"""Which requests cross where the app has middleware of its own, and for whom."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.app.processes.front.call import CrossingCall
from penstock.app.processes.front.link import Links
from penstock.app.processes.front.routes import FrontRoutes
from penstock.app.server.head import HeadParser
from penstock.app.settings import Settings


def call_of(*lines: str, client: str | None = "10.0.0.1", **settings: Any) -> CrossingCall | None:
    head = ["POST /predict/one HTTP/1.1", *lines, "Content-Length: 1", "", ""]
    text = "\r\n".join(head).encode()
    routes = FrontRoutes(Settings(**settings), Links(1.0))
    return routes.call_of(HeadParser().parse(text, 100), text, client)


@pytest.mark.parametrize(
    ("host", "crosses"), [("mine:80", True), ("a.ours", True), ("other", False)]
)
def test_requests_for_allowed_hosts_cross(host: str, crosses: bool) -> None:
    call = call_of(f"Host: {host}", allowed_hosts="mine, *.ours")
    assert (call is not None) == crosses


def test_no_request_crosses_if_every_answer_gets_headers_for_other_origins() -> None:
    assert call_of("Host: mine", cors_origins="https://page") is None


@pytest.mark.parametrize(
    ("sender", "proxies", "client"),
    [
        ("10.0.0.1", "10.0.0.0/8", ("192.0.2.7", 0)),  # from a proxy, by way of another one
        ("192.0.2.1", "10.0.0.0/8", None),
        (None, "*", ("198.51.100.1", 9)),  # over a Unix socket
    ],
)
def test_a_trusted_proxy_names_the_client(
    sender: str | None, proxies: str, client: tuple[str, int] | None
) -> None:
    forwarded = "X-Forwarded-For: 198.51.100.1:9, 192.0.2.7, 10.0.0.9"
    call = call_of("Host: mine", forwarded, client=sender, trusted_proxies=proxies)
    assert call is not None
    assert call.forwarded == client


def test_a_trusted_proxy_that_names_no_client() -> None:
    call = call_of("Host: mine", trusted_proxies="*")
    assert call is not None
    assert call.forwarded is None
