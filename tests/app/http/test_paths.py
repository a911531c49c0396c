"""No way to write a path gets around a check: whatever serves a route also checks it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from penstock.app.factory import create_app, create_router, lifespan
from penstock.app.http.auth import OPEN_PATHS
from penstock.app.http.paths import path_of
from penstock.app.settings import API_GROUPS, Settings

ROUTES = {
    "/health/live": "GET",
    "/health/ready": "GET",
    "/metrics": "GET",
    "/metrics/": "GET",
    "/pipelines": "GET",
    "/pipelines/": "GET",
    "/pipelines/echo/load": "POST",
    "/pipelines/other/unload": "POST",
    "/predict/echo": "POST",
    "/predict/echo/batch": "POST",
    "/predict/echo/versions/1": "POST",
    "/predict/echo/versions/1/batch": "POST",
    "/openapi.json": "GET",
    "/docs": "GET",
    "/docs/assets/docs.css": "GET",
    "/page/style.css": "GET",
    "/v2": "GET",
    "/v2/health/live": "GET",
    "/v2/health/ready": "GET",
    "/v2/models/stats": "GET",
    "/v2/models/echo": "GET",
    "/v2/models/echo/ready": "GET",
    "/v2/models/echo/versions/1": "GET",
    "/v2/models/echo/versions/1/infer": "POST",
    "/v2/models/echo/infer": "POST",
    "/v2/models/echo/config": "GET",
    "/v2/models/echo/stats": "GET",
    "/v2/repository/index": "POST",
    "/v2/repository/models/echo/load": "POST",
    "/v2/repository/models/other/unload": "POST",
    "/v2/systemsharedmemory/status": "GET",
    "/v2/systemsharedmemory/region/r/unregister": "POST",
}
"""Every route by a path that it serves, with its method."""

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "QUERY")

NOT_SERVED = {400, 404, 405, 501}
"""The statuses of a path or method that nothing serves."""


def variants(path: str) -> Iterator[str]:
    """Write a path in ways that may mean the same to one parser and not to another."""
    letter = next(index for index, character in enumerate(path) if character.isalpha())
    before, character, after = path[:letter], path[letter], path[letter + 1 :]
    yield f"{before}%{ord(character):02x}{after}"
    yield f"{before}%{ord(character):02X}{after}"
    yield f"{before}%25{ord(character):02x}{after}"
    yield f"{before}{character.upper()}{after}"
    yield path.upper()
    last = path.rindex("/")
    head, tail = path[:last], path[last + 1 :]
    for slash in ("%2f", "%2F", "%252f", "//", "/./", "/x/../", "/%2e/", "/%2E%2e/x/", "\\", "%5c"):
        yield head + slash + tail
        if last:
            yield slash + path[1:]
    for end in (
        *("/", "//", "/.", "/..", "/x/..", "%2f", ";x", ";x=1", "/;x", "%3bx", "?", "?x", "%3f"),
        *("%0a", "%0A", "%0d", "%0d%0a", "%0a%0a", "/%0a", "%00", "%00x", "%20", "%09", "%0b"),
        *("%0c", "%1c", "%85", "%c2%85", "%e2%80%a8", "%a0", "#", "#x", ".json", "."),
    ):
        yield path + end
    yield f"http://a.example{path}"
    yield f"HTTP://a.example:80{path}%0a"
    yield f"http://a.example/{path}"


class Answer(NamedTuple):
    status: int
    body: bytes


class Wire:
    """One connection that sends the target of a request as it is."""

    def __init__(self, client: httpx.Client) -> None:
        self._address = client.base_url.host, client.base_url.port or 80
        self._socket: socket.socket | None = None

    def ask(self, method: str, target: str, *headers: str) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: a.example", "Content-Length: 2", *headers]
        request = "\r\n".join([*lines, "", "{}"]).encode("latin-1")
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=30)
        self._socket.sendall(request)
        file = self._socket.makefile("rb")
        status = int(file.readline().split()[1])
        fields: dict[bytes, bytes] = {}
        while (line := file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip()
        body = b""
        if method != "HEAD" and status not in (204, 304):
            body = file.read(int(fields.get(b"content-length", b"0")))
        file.close()
        if fields.get(b"connection") == b"close":
            self.close()
        return Answer(status, body)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@pytest.fixture(params=["app", "router", "mounted", "root_path"])
def served(request: Any, running: Any, tmp_path: Path) -> Any:
    """A function that serves two pipelines with settings, in one of the ways to serve them."""
    for name in ("echo", "other"):
        (tmp_path / f"{name}.toml").write_text('[a]\nbackend = "Identity"\n')

    def serve(**more: Any) -> Any:
        settings = Settings(
            admin_token=SecretStr("adm1n"),
            allow_model_control=True,
            allow_shared_memory=True,
            **more,
        )
        server = "penstock"
        if request.param in ("app", "root_path"):
            app = create_app(tmp_path, settings=settings)
            options = {"root_path": "/models"} if request.param == "root_path" else {}
            return running(app, http=server, **options)
        host = FastAPI(openapi_url=None)
        if request.param == "router":
            host.include_router(create_router(tmp_path, settings=settings, prefix="/models"))
        else:
            models = create_app(tmp_path, settings=settings)
            host = FastAPI(openapi_url=None, lifespan=lambda host: lifespan(models))
            host.mount("/models", models)
        return running(host, http=server)

    start: Any = serve
    # uvicorn puts `root_path` in front of the path itself.
    start.prefix = "" if request.param in ("app", "root_path") else "/models"
    return start


def requests(prefix: str) -> Iterator[tuple[str, str]]:
    for path, method in ROUTES.items():
        for each in METHODS:
            yield each, prefix + path
        for variant in variants(path):
            scheme, separator, rest = variant.partition("://a.example")
            target = (
                f"{scheme}{separator}{prefix}{rest}"
                if separator and ":80" not in variant
                else prefix + variant
                if not separator
                else variant.replace(":80", f":80{prefix}")
            )
            yield method, target
            if method != "GET":
                yield "GET", target


def test_what_serves_a_path_checks_its_restriction(served: Any) -> None:
    secret = "X-Secret: s3cret"
    admin = "Authorization: Bearer adm1n"
    rule = f"{','.join(API_GROUPS)}:x-secret=s3cret"
    seen = set()
    with served(restricted_api=SecretStr(rule)) as client, Wire(client) as wire:
        for method, target in requests(served.prefix):
            refused = wire.ask(method, target, admin)
            # Nothing that a secret would open is open without it.
            page = {200} if "/page" in unquote(target) else set()  # it is of no group
            assert refused.status in {403, 307, *NOT_SERVED, *page}, (method, target, refused)
            passed = wire.ask(method, target, admin, secret)
            assert passed.status != 403, (method, target)
            if passed.status not in NOT_SERVED | {307} | page:
                assert refused.status == 403, (method, target, refused, passed)
            if refused.status == 403:
                seen.add((method, target))
    for path, method in ROUTES.items():
        if path != "/openapi.json" and not path.startswith(("/docs", "/page")):
            assert (method, served.prefix + path) in seen


def test_what_serves_a_path_checks_the_key(served: Any) -> None:
    health = {served.prefix + path for path in OPEN_PATHS}
    files = {served.prefix + path for path in ("/docs", "/docs/assets/docs.css", "/page/style.css")}
    with served(api_key=SecretStr("k3y")) as client, Wire(client) as wire:
        for method, target in requests(served.prefix):
            answer = wire.ask(method, target)
            if answer.status not in {401, 307, *NOT_SERVED}:
                # It is health itself or a file of the pages, however it is written.
                path = httpx.URL(target).path if "://" in target else target.partition("?")[0]
                path = path.partition("#")[0]
                assert _decoded(path) in health | files, (method, target, answer)
                if _decoded(path) in health:
                    assert answer.body in (b'{"live":true}', b'{"ready":true}', b""), target


def _decoded(path: str) -> str:
    return httpx.URL("http://a", raw_path=path.encode()).path


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_line_break_at_the_end_is_another_path(served: Any, method: str) -> None:
    with served() as client, Wire(client) as wire:
        for path, own in ROUTES.items():
            if own == "GET":
                answer = wire.ask(method, f"{served.prefix}{path}%0a")
                assert answer.status in {400, 404}, (path, answer)  # 400: no such model


@pytest.mark.parametrize(
    ("path", "root_path", "inside"),
    [
        ("/a", "", "/a"),
        ("/m/a", "/m", "/a"),
        ("/m", "/m", ""),
        ("/mx/a", "/m", "/mx/a"),
        ("/a", "/m", "/a"),
    ],
)
def test_the_path_inside_an_app(path: str, root_path: str, inside: str) -> None:
    scope: Any = {"type": "http", "path": path, "root_path": root_path}
    assert path_of(scope) == inside
