"""Images by URL, for operators that allow it: fetch what a client names, from public hosts only.

A server that fetches for its clients can be made to reach what only the server reaches (SSRF):
itself, its neighbours, the metadata of its cloud. So a URL is parsed once; its host is resolved
once; every address of the host must be public; and the connection goes to an address that was
checked, by number, so that no later answer of the resolver can change it. TLS still verifies the
host by its name. A redirect is a new URL and goes the same way. Nothing of the client's request is
sent along, and no environment variable (proxies) is read.

Errors do not say which address a name has, nor whether the name exists: private and unknown hosts
are answered alike.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import httpx

from penstock.backends.errors import (
    DeadlineExceeded,
    InvalidInput,
    InvalidRequest,
    QueueFull,
    TooLarge,
)
from penstock.backends.memory import Reservation, budget

from .body import Pieces
from .public_address import is_public

logger = logging.getLogger("penstock.fetch")

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns all addresses of a host, in the order in which to try them. Raises OSError."""

MAX_REDIRECTS = 3
MAX_ADDRESSES = 3
"""The most addresses of one host that are tried."""
CONNECT_TIMEOUT_SECONDS = 3.0
"""The seconds that a connection to one address may take."""
MAX_CONCURRENT_FETCHES = 64
MAX_URL_CHARACTERS = 2048
DEFAULT_PORTS = (80, 443)

REQUEST_HEADERS = {
    "accept": "image/*",
    "accept-encoding": "identity",
    "user-agent": "penstock",
    "connection": "close",
}
REDIRECT_STATUSES = (301, 302, 303, 307, 308)


async def resolve_by_system(host: str, port: int) -> list[str]:
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in addresses))


class Fetcher:
    """Fetches images: `await fetcher(url)` returns the bytes at a URL.

    `max_bytes`: of the body. `timeout`: seconds for everything, redirects included. `exempt`:
    addresses that are accepted although they are not public, for tests alone, whose servers are on
    the loopback.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout: float,
        ports: Collection[int] = DEFAULT_PORTS,
        resolve: Resolve = resolve_by_system,
        ssl_context: ssl.SSLContext | None = None,
        exempt: Collection[str] = (),
    ) -> None:
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.ports = frozenset(ports)
        self.in_flight = 0
        self._resolve = resolve
        self._ssl = (
            ssl_context if ssl_context is not None else httpx.create_ssl_context(trust_env=False)
        )
        self._exempt = frozenset(exempt)

    async def __call__(
        self, url: str, deadline: float | None = None, memory: Reservation | None = None
    ) -> bytes:
        """Fetch a URL within `timeout` seconds, or `deadline` seconds if that is less.

        `memory` then has the bytes of the image. Raises `InvalidRequest` for a URL that is not
        accepted, `InvalidInput` for one that gives no bytes, `TooLarge`, `MemoryFull`,
        `DeadlineExceeded`, and `QueueFull` for too many fetches at once.
        """
        if self.in_flight >= MAX_CONCURRENT_FETCHES:
            raise QueueFull(
                f"too many images are being fetched: {self.in_flight} (at most "
                f"{MAX_CONCURRENT_FETCHES}); try again later, or send the image itself"
            )
        self.in_flight += 1
        first = deadline is not None and deadline < self.timeout
        try:
            async with asyncio.timeout(deadline if first else self.timeout):
                return await self._follow(url, memory or Reservation(budget))
        except TimeoutError:
            if first:
                raise DeadlineExceeded("the deadline passed while the image was fetched") from None
            raise InvalidInput(
                f"the image did not arrive within {self.timeout:g} s (url_timeout)"
            ) from None
        finally:
            self.in_flight -= 1

    async def _follow(self, text: str, memory: Reservation) -> bytes:
        url = parse(text, self.ports)
        for _ in range(MAX_REDIRECTS + 1):
            async with self._get(url) as answer:
                if answer.status_code not in REDIRECT_STATUSES:
                    return await self._read(answer, memory)
                location = answer.headers.get("location", "")
                if not location:
                    raise InvalidInput("the URL is redirected without a location")
                try:
                    target = str(url.join(location))
                except (httpx.InvalidURL, ValueError):
                    raise InvalidInput(
                        "the URL is redirected to a location that is not a valid URL"
                    ) from None
            url = parse(target, self.ports, "the redirect's target")
        raise InvalidInput(f"the URL is redirected more than {MAX_REDIRECTS} times")

    @asynccontextmanager
    async def _get(self, url: httpx.URL) -> AsyncIterator[httpx.Response]:
        """Request a URL from an address that was checked. Yields the answer, its body unread."""
        addresses = await self._checked_addresses(url)
        # A transport, not a client: it keeps no cookies, follows no redirects, reads no environment
        # and decompresses nothing. And one for each request: its connections are kept by address,
        # and TLS to another name at that address must not share one.
        async with httpx.AsyncHTTPTransport(verify=self._ssl, trust_env=False) as transport:
            answer = await self._connect(transport, url, addresses)
            try:
                yield answer
            finally:
                await answer.aclose()

    async def _connect(
        self, transport: httpx.AsyncHTTPTransport, url: httpx.URL, addresses: list[str]
    ) -> httpx.Response:
        headers = {"host": url.netloc.decode("ascii"), **REQUEST_HEADERS}
        timeouts = {"connect": CONNECT_TIMEOUT_SECONDS, "read": None, "write": None, "pool": None}
        extensions: dict[str, Any] = {"timeout": timeouts}
        if url.scheme == "https":
            # The certificate is verified for it, too.
            extensions["sni_hostname"] = url.raw_host.decode("ascii")
        for address in addresses[:MAX_ADDRESSES]:
            request = httpx.Request(
                "GET", url.copy_with(host=address), headers=headers, extensions=extensions
            )
            try:
                return await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                logger.info("fetching from %s at %s failed: %s", url.host, address, error)
                if isinstance(error, httpx.ConnectError) and _is_tls(error):
                    raise InvalidInput(
                        "the URL's host has no certificate that can be verified, or does not "
                        "support TLS"
                    ) from None
            except httpx.HTTPError as error:
                logger.info("fetching from %s at %s failed: %s", url.host, address, error)
                raise InvalidInput("the URL's host did not answer with HTTP") from None
        raise InvalidInput("the URL's host can't be connected to")

    async def _checked_addresses(self, url: httpx.URL) -> list[str]:
        """Resolve the host, or raise `InvalidRequest` if one address of it is not public.

        One is enough: the order of trying must not decide which address is used.
        """
        host = url.raw_host.decode("ascii")
        try:
            addresses = [str(ip_address(host))]
        except ValueError:
            try:
                addresses = await self._resolve(host, _port(url))
            except (OSError, UnicodeError):
                addresses = []
        if not addresses or not all(
            address in self._exempt or is_public(address) for address in addresses
        ):
            logger.info("a URL of host %r was refused; its addresses are %s", host, addresses)
            raise InvalidRequest("the URL's host is unknown, or has an address that is not public")
        return addresses

    async def _read(self, answer: httpx.Response, memory: Reservation) -> bytes:
        if answer.status_code != 200:
            raise InvalidInput(f"the URL was answered with status {answer.status_code}")
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            # It was not asked for, and the size after decompression has no bound.
            raise InvalidInput(
                "the image at the URL came compressed, although that was not asked for"
            )
        length = answer.headers.get("content-length", "")
        if (
            length.isascii()
            and length.isdigit()
            and (len(length) > 18 or int(length) > self.max_bytes)
        ):
            raise self._too_large()
        if length.isascii() and length.isdigit():
            memory.cover(int(length), "a fetched image")
        image = Pieces()
        try:
            async for chunk in answer.aiter_raw():
                image.write(chunk)
                if image.size > self.max_bytes:
                    raise self._too_large()
                memory.cover(image.size, "a fetched image")
            if not image.size:
                raise InvalidInput("the answer of the URL has no bytes")
            return await image.joined(memory)
        except httpx.HTTPError as error:
            logger.info("fetching broke off after %d bytes: %s", image.size, error)
            raise InvalidInput("the image at the URL broke off") from None
        finally:
            image.clear()  # the frames of an error may live on

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the image at the URL has more than {self.max_bytes} bytes (max_body)")


def parse(text: str, ports: Collection[int], subject: str = "the URL") -> httpx.URL:
    """Parse a URL, without its fragment. Raises `InvalidRequest` for one that is not accepted.

    Addresses are checked later. The result is used for everything that follows, so it does not
    matter whether other parsers would read the text differently.
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise InvalidRequest(f"{subject} has more than {MAX_URL_CHARACTERS} characters")
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise InvalidRequest(
            f"{subject} has characters that are not allowed in URLs: percent-encode them, and "
            "write the host in ASCII (punycode)"
        )
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise InvalidRequest(f"{subject} is not a valid URL") from None
    if url.scheme not in ("http", "https"):
        raise InvalidRequest(f"{subject} has another scheme than http and https")
    if not host:
        raise InvalidRequest(f"{subject} names no host")
    if re.match(r"[^/?#]*//[^/?#]*@", text):  # an empty one, too
        raise InvalidRequest(f"{subject} has a user name or password, which is not accepted")
    if _port(url) not in ports:
        allowed = ", ".join(map(str, sorted(ports)))
        raise InvalidRequest(f"{subject} has port {_port(url)}, expected {allowed} (url_ports)")
    _check_host(host, subject)
    return url.copy_with(fragment=None)


def _check_host(host: str, subject: str) -> None:
    """Raise `InvalidRequest` unless the host is a name, or an address in its standard form.

    So 127.1, 0x7f.1, 2130706433 and 0177.0.0.1, which resolvers take for addresses, are refused.
    """
    try:
        ip_address(host)
    except ValueError:
        last = host.rstrip(".").rpartition(".")[2]
        if re.fullmatch(r"[0-9]*|0x[0-9a-f]*", last, re.IGNORECASE) or not re.fullmatch(
            r"[A-Za-z0-9_.-]{1,253}", host
        ):
            raise InvalidRequest(
                f"{subject} has a host that is neither a name nor an address in its standard form"
            ) from None


def _is_tls(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else 443 if url.scheme == "https" else 80
