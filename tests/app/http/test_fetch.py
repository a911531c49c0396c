"""Images by URL: which are refused, what is bounded, and that the connection goes to the address
that was checked.

The servers are on the loopback, which only `exempt`, for tests, lets through. The tests resolve the
names themselves.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from penstock.app.factory import create_app
from penstock.app.http import fetch as fetch_module
from penstock.app.http.fetch import MAX_CONCURRENT_FETCHES, Fetcher, resolve_by_system
from penstock.app.http.public_address import is_public
from penstock.app.settings import Settings
from penstock.backends.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    QueueFull,
    TooLarge,
)

NOT_PUBLIC = "unknown, or has an address that is not public"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage"


class Site:
    """A server that answers with `parts` and notes what it gets.

    A part is bytes, or seconds to wait, or None: wait until the other side has left. `endless`:
    repeat the last two forever.
    """

    def __init__(self, *parts: bytes | float | None, endless: bool = False) -> None:
        self.parts = parts
        self.endless = endless
        self.requests: list[str] = []
        self.connections = 0
        self.sent = 0
        self.gone = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await self.send(self.parts, reader, writer)
            while self.endless:
                await self.send(self.parts[-2:], reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self.gone.set()
            writer.close()

    async def send(self, parts: Any, reader: Any, writer: Any) -> None:
        for part in parts:
            if part is None:
                await reader.read()
            elif isinstance(part, bytes):
                writer.write(part)
                self.sent += len(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)


@asynccontextmanager
async def online(site: Site, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Site]:
    server = await asyncio.start_server(site.serve, host, 0, **options)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site


class Names:
    """A resolver that gives the answers of a name in turn, the last forever. Notes its calls."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(answers) for name, answers in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("Name or service not known")
        answers = self.answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


def fetcher(
    *sites: Site,
    names: Names | None = None,
    exempt: Any = ("127.0.0.1",),
    ports: Any = (),
    **options: Any,
) -> Fetcher:
    names = names or Names(site_test=[["127.0.0.1"]])
    bounds = {"max_bytes": 1000, "timeout": 60.0, **options}
    return Fetcher(
        **bounds,
        ports=(*(site.port for site in sites), *ports, 80, 443),
        resolve=names,
        exempt=exempt,
    )


async def test_an_image() -> None:
    async with online(Site(OK)) as site:
        names = Names(site_test=[["127.0.0.1"]])
        assert (
            await fetcher(site, names=names)(f"http://Site.test:{site.port}/a/b.png?c=d#e")
            == b"image"
        )
        assert names.asked == ["site.test"]
    (request,) = site.requests
    head, *headers = request.strip().splitlines()
    assert head == "GET /a/b.png?c=d HTTP/1.1"
    assert sorted(headers) == [
        "accept-encoding: identity",
        "accept: image/*",
        "connection: close",
        f"host: site.test:{site.port}",
        "user-agent: penstock",
    ]


async def test_no_length_and_chunks() -> None:
    async with online(Site(b"HTTP/1.1 200 OK\r\n\r\n", b"ima", b"ge")) as site:
        assert await fetcher(site)(f"http://site.test:{site.port}/") == b"image"
    async with online(
        Site(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nima\r\n2\r\nge\r\n0\r\n\r\n"
        )
    ) as site:
        assert await fetcher(site)(f"http://site.test:{site.port}/") == b"image"


# The URL itself.


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://site.test/a", "another scheme than http and https"),
        ("file:///etc/passwd", "another scheme than http and https"),
        ("gopher://site.test/", "another scheme than http and https"),
        ("//site.test/a", "another scheme than http and https"),
        ("site.test/a", "another scheme than http and https"),
        ("", "another scheme than http and https"),
        ("http://", "no host"),
        ("http:///a", "no host"),
        ("http://user:password@site.test/", "user name or password"),
        ("http://user@site.test/", "user name or password"),
        ("http://@site.test/", "user name or password"),
        ("http://site.test@127.0.0.1/", "user name or password"),
        ("http://site.test:80@127.0.0.1:80/", "user name or password"),
        ("http://127.0.0.1\\@site.test/", "characters"),
        ("http://site.test\\@127.0.0.1/", "characters"),
        ("http://site.test/\r\nHost: other", "characters"),
        ("http://site.test/a b", "characters"),
        ("http://site.test/\x00", "characters"),
        ("http://①②⑦.⓪.⓪.①/", "characters"),
        ("http://localhost。test/", "characters"),
        ("http://site.test:22/", "port 22, expected 80, 443"),
        ("http://site.test:0/", "port 0"),
        ("http://site.test:99999/", "port 99999"),
        ("https://site.test:6379/", "port 6379"),
        ("http://site.test:abc/", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://a%2eb/", "standard form"),
        ("http://127.0.0.1%00.site.test/", "standard form"),
        ("http://site.test/" + "a" * 2048, "more than 2048"),
    ],
)
async def test_urls_that_are_not_accepted(url: Any, reason: str) -> None:
    names = Names(site_test=[["127.0.0.1"]])
    with pytest.raises(InvalidRequest, match=reason) as raised:
        await fetcher(names=names)(url)
    assert not names.asked and "password@" not in str(raised.value)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "0x7f.0x0.0x0.0x1",
        "0",
    ],
)
async def test_odd_forms_of_an_address(host: Any) -> None:
    """The system's resolver takes them for 127.0.0.1. They are refused before it is called."""
    async with online(Site(OK)) as site:
        for resolve in (resolve_by_system, Names(**{host.replace(".", "_"): [["127.0.0.1"]]})):
            guard = Fetcher(max_bytes=10, timeout=60, ports=(site.port,), resolve=resolve)
            with pytest.raises(InvalidRequest, match=r"standard form|not a valid URL"):
                await guard(f"http://{host}:{site.port}/")
    assert not site.connections


async def test_odd_forms_that_get_to_the_resolver_are_refused_by_their_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_module, "_check_host", lambda host, what: None)
    for host in ("2130706433", "0x7f.1", "127.1", "localhost"):
        with pytest.raises(InvalidRequest, match=NOT_PUBLIC):
            await Fetcher(max_bytes=10, timeout=60)(f"http://{host}/")


# Addresses.

PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
    "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1",
    "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:7f00:1", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1",
    "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1", "3fff::1", "4000::1", "5f00::1",
    "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1",
    "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "192.167.1.1",
    "198.17.0.1",
    "223.255.255.255",
]
PUBLIC_6 = ["2606:4700:4700::1111", "2a00:1450:4001:829::200e", "2001:4860:4860::8888", "3ffe::1"]


def test_public_addresses() -> None:
    assert [address for address in PRIVATE if is_public(address)] == []
    assert [address for address in (*PUBLIC, *PUBLIC_6) if not is_public(address)] == []
    assert (
        not is_public("site.test")
        and not is_public("")
        and not is_public("127.1")
        and not is_public("0x7f.0.0.1")
    )


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_addresses_are_refused(address: Any) -> None:
    """In the URL itself, and as an address of a name: alone, before and after a public one."""
    host = f"[{address.replace('%', '%25')}]" if ":" in address else address
    with pytest.raises(InvalidRequest, match=NOT_PUBLIC) as raised:
        await fetcher(exempt=())(f"http://{host}/")
    assert address not in str(raised.value)
    for addresses in ([address], ["8.8.8.8", address], [address, "8.8.8.8"]):
        with pytest.raises(InvalidRequest, match=NOT_PUBLIC) as raised:
            await fetcher(names=Names(site_test=[addresses]), exempt=())("http://site.test/")
        assert address not in str(raised.value)


async def test_unknown_names_are_answered_as_private_ones_are() -> None:
    answers = []
    for name in ("private.test", "unknown.test", "empty.test"):
        with pytest.raises(InvalidRequest) as raised:
            await fetcher(names=Names(private_test=[["10.0.0.1"]], empty_test=[[]]), exempt=())(
                f"http://{name}/"
            )
        answers.append(str(raised.value))
    assert len(set(answers)) == 1


async def test_a_resolver_that_rebinds() -> None:
    """A second look-up would give 127.0.0.1, where a server listens.

    It is never made, and nothing connects there.
    """
    async with online(Site(OK)) as site, online(Site(OK), "127.0.0.2") as checked:
        names = Names(
            site_test=[["127.0.0.2"], ["127.0.0.1"]]
        )  # 127.0.0.2 stands for a public address
        guard = fetcher(site, checked, names=names, exempt=("127.0.0.2",))
        assert await guard(f"http://site.test:{checked.port}/") == b"image"
        assert names.asked == ["site.test"] and checked.connections == 1
        with pytest.raises(InvalidRequest, match=NOT_PUBLIC):
            await guard(f"http://site.test:{site.port}/")
    assert not site.connections


async def test_a_resolver_that_rebinds_during_a_redirect() -> None:
    """The redirect leads to the same name, which is resolved and checked again."""
    async with online(Site(OK)) as inner:
        redirect = Site(redirect_to(f"http://site.test:{inner.port}/"))
        async with online(redirect, "127.0.0.2") as outer:
            names = Names(site_test=[["127.0.0.2"], ["127.0.0.1"]])
            with pytest.raises(InvalidRequest, match=NOT_PUBLIC):
                await fetcher(inner, outer, names=names, exempt=("127.0.0.2",))(
                    f"http://site.test:{outer.port}/"
                )
    assert outer.connections == 1 and not inner.connections and names.asked == ["site.test"] * 2


async def test_the_next_address_is_tried() -> None:
    async with online(Site(OK)) as site:
        names = Names(site_test=[["127.0.0.3", "127.0.0.1"]])
        assert (
            await fetcher(site, names=names, exempt=("127.0.0.1", "127.0.0.3"))(
                f"http://site.test:{site.port}/"
            )
            == b"image"
        )
        names = Names(site_test=[["127.0.0.3", "127.0.0.4"]])
        with pytest.raises(InvalidInput, match="can't be connected"):
            await fetcher(site, names=names, exempt=("127.0.0.3", "127.0.0.4"))(
                f"http://site.test:{site.port}/"
            )


async def test_no_proxy_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with online(Site(OK)) as site, online(Site(OK)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await fetcher(site)(f"http://site.test:{site.port}/") == b"image"
    assert site.connections == 1 and not proxy.connections


# Redirects.


def redirect_to(location: str, status: str = "302 Found", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nLocation: {location}\r\n{more}Content-Length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
async def test_a_redirect(status: str) -> None:
    async with online(Site(OK)) as target:
        more = "Set-Cookie: a=b; Path=/\r\n"
        async with online(
            Site(redirect_to(f"http://site.test:{target.port}/x", status, more))
        ) as site:
            assert await fetcher(site, target)(f"http://site.test:{site.port}/") == b"image"
    assert (
        target.requests[0].startswith("GET /x HTTP/1.1\r\n")
        and "cookie" not in target.requests[0].lower()
    )


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.2:{port}/", NOT_PUBLIC),
        ("http://127.0.0.1/", "port 80"),
        ("http://169.254.169.254:{port}/latest/meta-data", NOT_PUBLIC),
        ("//169.254.1.1:{port}/", NOT_PUBLIC),
        ("http://[::1]:{port}/", NOT_PUBLIC),
        ("http://[::ffff:127.0.0.2]:{port}/", NOT_PUBLIC),
        ("http://[64:ff9b::7f00:1]:{port}/", NOT_PUBLIC),
        ("http://2130706433:{port}/", "standard form"),
        ("http://inner.test:{port}/", NOT_PUBLIC),
        ("http://site.test:22/", "port 22"),
        ("http://user:pw@site.test:{port}/", "user name or password"),
        ("file:///etc/passwd", "another scheme than http and https"),
        ("http://[::1/", "not a valid URL"),
        ("", "redirected without a location"),
    ],
)
async def test_redirects_that_are_not_followed(location: Any, reason: str) -> None:
    async with (
        online(Site(OK), "127.0.0.2") as inner,
        online(Site(redirect_to(location.format(port=inner.port)))) as site,
    ):
        names = Names(site_test=[["127.0.0.1"]], inner_test=[["127.0.0.2"]])
        guard = Fetcher(
            max_bytes=10,
            timeout=60,
            ports=(site.port, inner.port),
            resolve=names,
            exempt=("127.0.0.1",),
        )
        with pytest.raises((InvalidRequest, InvalidInput), match=reason):
            await guard(f"http://site.test:{site.port}/")
    assert site.connections == 1 and not inner.connections


async def test_a_loop_of_redirects() -> None:
    async with online(Site(redirect_to("/again"))) as site:
        with pytest.raises(InvalidInput, match="redirected more than 3 times"):
            await fetcher(site)(f"http://site.test:{site.port}/")
    assert site.connections == 4


# Bounds.


async def test_a_slow_body() -> None:
    async with online(
        Site(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"x", 0.01, endless=True)
    ) as site:
        with pytest.raises(InvalidInput, match=r"did not arrive within 0\.3 s \(url_timeout\)"):
            await fetcher(site, timeout=0.3)(f"http://site.test:{site.port}/")
        with pytest.raises(DeadlineExceeded):
            await fetcher(site)(f"http://site.test:{site.port}/", 0.2)
        await asyncio.wait_for(site.gone.wait(), 60)


async def test_a_host_that_never_answers() -> None:
    async with online(Site(30.0)) as site:
        with pytest.raises(InvalidInput, match="url_timeout"):
            await fetcher(site, timeout=0.2)(f"http://site.test:{site.port}/")


async def test_a_slow_resolver() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return []

    with pytest.raises(InvalidInput, match="url_timeout"):
        await Fetcher(max_bytes=10, timeout=0.1, resolve=resolve)("http://site.test/")


@pytest.mark.parametrize("head", [b"", b"Transfer-Encoding: chunked\r\n"])
async def test_an_endless_body(head: Any) -> None:
    data = b"400\r\n" + b"x" * 1024 + b"\r\n" if head else b"x" * 1024
    async with online(
        Site(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", data, 0.0, endless=True)
    ) as site:
        with pytest.raises(TooLarge, match=r"more than 10000 bytes \(max_body\)"):
            await fetcher(site, max_bytes=10_000)(f"http://site.test:{site.port}/")
        await asyncio.wait_for(site.gone.wait(), 60)


async def test_endless_headers() -> None:
    async with online(
        Site(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"x" * 1024 + b"\r\n", 0.0, endless=True)
    ) as site:
        with pytest.raises(InvalidInput, match="did not answer with HTTP"):
            await fetcher(site)(f"http://site.test:{site.port}/")


@pytest.mark.parametrize("length", [b"1001", b"99999999999999999999999", b"9" * 5000])
async def test_a_length_above_the_bound(length: Any) -> None:
    async with online(
        Site(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n", 30.0)
    ) as site:
        with pytest.raises((TooLarge, InvalidInput), match=r"more than 1000 bytes|with HTTP"):
            await fetcher(site)(f"http://site.test:{site.port}/")


async def test_exactly_the_bound() -> None:
    async with online(Site(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)) as site:
        assert len(await fetcher(site)(f"http://site.test:{site.port}/")) == 1000


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"identity, gzip"])
async def test_a_compressed_image_is_not_decompressed(encoding: Any) -> None:
    bomb = gzip.compress(bytes(500_000))
    assert len(bomb) < 1000
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        encoding,
        len(bomb),
        bomb,
    )
    async with online(Site(answer)) as site:
        with pytest.raises(InvalidInput, match="compressed"):
            await fetcher(site)(f"http://site.test:{site.port}/")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 1\r\n\r\nx", "status 206"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "no bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "broke off"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "did not answer with HTTP"),
        (b"", "did not answer with HTTP"),
    ],
)
async def test_answers_without_an_image(answer: Any, reason: str) -> None:
    async with online(Site(answer)) as site:
        with pytest.raises(InvalidInput, match=reason) as raised:
            await fetcher(site)(f"http://site.test:{site.port}/")
    assert "SSH" not in str(raised.value)


async def test_fetches_at_once_are_bounded() -> None:
    async with online(Site(30.0)) as site:
        guard = fetcher(site)
        url = f"http://site.test:{site.port}/"
        tasks = [asyncio.create_task(guard(url)) for _ in range(MAX_CONCURRENT_FETCHES)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await guard(url)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert guard.in_flight == 0


# TLS.


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


@pytest.mark.parametrize(
    ("name", "trusted", "good"),
    [
        ("site.test", True, True),
        ("other.test", True, False),
        ("127.0.0.1", True, False),
        ("site.test", False, False),
    ],
)
async def test_certificates_are_verified_by_name(
    authority: Any, name: Any, trusted: Any, good: Any
) -> None:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server_context)
    asked = []
    server_context.sni_callback = lambda connection, host, context: asked.append(host)
    client_context = ssl.create_default_context()
    if trusted:
        authority.configure_trust(client_context)
    async with online(Site(OK), ssl=server_context) as site:
        guard = fetcher(site, ssl_context=client_context)
        if good:
            assert await guard(f"https://site.test:{site.port}/") == b"image"
        else:
            with pytest.raises(InvalidInput, match="no certificate that can be verified"):
                await guard(f"https://site.test:{site.port}/")
            assert not site.requests
    assert asked == ["site.test"]


async def test_a_certificate_of_an_unknown_authority(authority: Any) -> None:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("site.test").configure_cert(server_context)
    async with online(Site(OK), ssl=server_context) as site:
        with pytest.raises(InvalidInput, match="no certificate that can be verified"):
            await fetcher(site)(f"https://site.test:{site.port}/")


async def test_a_host_without_tls() -> None:
    async def answer(reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(InvalidInput, match="does not support TLS"):
            await fetcher(ports=(port,))(f"https://site.test:{port}/")


# The server.


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a server take the test's own site for a public one."""

    def settings(*ports: Any, **others: Any) -> Any:
        names = Names(site_test=[["127.0.0.1"]])
        monkeypatch.setattr(
            fetch_module, "Fetcher", partial(Fetcher, resolve=names, exempt=("127.0.0.1",))
        )
        return Settings(**{"allow_url": True, "url_ports": ",".join(map(str, ports)), **others})

    return settings


def test_off_by_default(running: Any, digits: Path) -> None:
    with running(create_app(digits, settings=Settings())) as client:
        answer = client.post("/predict/digits", json={"url": "http://127.0.0.1/"})
        assert answer.status_code == 400 and answer.json()["code"] == "invalid_request"
        assert "the operator has not allowed them (allow_url)" in answer.json()["detail"]


async def test_the_server_fetches(running: Any, digits: Path, digit: bytes, allow: Any) -> None:
    image = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(digit), digit)
    async with online(Site(image)) as site:
        url = f"http://site.test:{site.port}/three.png"

        def ask() -> Any:
            with running(
                create_app(digits, settings=allow(site.port, max_body=len(digit) + 100))
            ) as client:
                headers = {
                    "Authorization": "Bearer secret",
                    "Cookie": "a=b",
                    "X-Request-Id": "mine",
                }
                good = client.post("/predict/digits", json={"url": url}, headers=headers)
                both = client.post("/predict/digits", json={"url": url, "image": ""})
                number = client.post("/predict/digits", json={"url": 7})
                port = client.post("/predict/digits", json={"url": "http://site.test/"})
                private = client.post(
                    "/predict/digits", json={"url": f"http://127.0.0.2:{site.port}/"}
                )
                many = client.post("/predict/digits/batch", json={"url": url})
            return good, both, number, port, private, many

        good, *bad = await asyncio.to_thread(ask)
    assert (
        good.status_code == 200
        and good.json()["label"] == "three"
        and good.headers["server-timing"]
    )
    assert (
        len(site.requests) == 1
        and "secret" not in site.requests[0]
        and "mine" not in site.requests[0]
    )
    assert [(answer.status_code, answer.json()["code"]) for answer in bad] == [
        (400, "invalid_request")
    ] * 5
    assert [
        piece in answer.json()["detail"]
        for piece, answer in zip(
            ("'url'", "'url' is a JSON number", "port 80", "not public", "'url'"), bad, strict=True
        )
    ]


async def test_the_deadline_of_a_request_covers_the_fetch(
    running: Any, digits: Path, allow: Any
) -> None:
    async with online(Site(30.0)) as site:

        def ask() -> Any:
            with running(create_app(digits, settings=allow(site.port, url_timeout=0.5))) as client:
                document = {"url": f"http://site.test:{site.port}/"}
                answers = [
                    client.post("/predict/digits", json=document, headers=headers)
                    for headers in ({"Penstock-Deadline-Ms": "100"}, {})
                ]
            return [(answer.status_code, answer.json()["code"]) for answer in answers]

        assert await asyncio.to_thread(ask) == [(504, "deadline_exceeded"), (422, "invalid_input")]


async def test_a_client_that_leaves_ends_the_fetch(
    running: Any, leaving: Any, digits: Path, allow: Any
) -> None:
    """The server leaves the site at once, not only when the time is over."""
    loop = asyncio.get_running_loop()
    ended = []
    async with online(Site(None)) as site:

        def ask() -> None:
            with running(create_app(digits, settings=allow(site.port))) as client:
                body = b'{"url": "http://site.test:%d/"}' % site.port
                with leaving(client, "/predict/digits", body, Content_Type="application/json"):
                    end = time.monotonic() + 60
                    while not site.requests:
                        assert time.monotonic() < end
                        time.sleep(0.005)
                ended.append(
                    asyncio.run_coroutine_threadsafe(
                        asyncio.wait_for(site.gone.wait(), 60), loop
                    ).result(60)
                )

        await asyncio.to_thread(ask)
    assert ended


@pytest.mark.parametrize("allowed", ["false", "true"])
def test_httpx_is_imported_only_where_urls_are_allowed(digits: Path, allowed: str) -> None:
    code = (
        "import sys; from penstock import create_app; "
        "create_app(sys.argv[1]); print('httpx' in sys.modules)"
    )
    environment = os.environ | {"PENSTOCK_ALLOW_URL": allowed}
    done = subprocess.run(
        [sys.executable, "-c", code, str(digits)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{allowed == 'true'}\n"
