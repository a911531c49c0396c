"""How the page at / is served: its files and headers, where it is, and who gets it."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from penstock import create_app, create_router
from penstock.app.http.assets import MEDIA_TYPES
from penstock.app.page.files import DIRECTORY
from penstock.app.settings import Settings

ROOT = Path(__file__).parents[3]
FILES = sorted(path for path in DIRECTORY.rglob("*") if path.suffix in {".js", ".css", ".svg"})
TABLES = sorted(ROOT.glob("app/*/assets/vendor/README.md"))
ROW = re.compile(r"^\| `([^`]+)` \| .* \| `([0-9a-f]{64})` \|$", re.MULTILINE)


def client_of(app: Any, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, **options)
    return httpx.AsyncClient(transport=transport, base_url="http://penstock")


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app()


def test_all_that_is_served_is_260_kilobytes_at_most() -> None:
    sizes = {
        path: path.stat().st_size for path in DIRECTORY.rglob("*") if path.suffix in MEDIA_TYPES
    }
    assert sum(sizes.values()) <= 260_000, sorted(sizes.items(), key=lambda item: item[1])


async def test_the_page_and_all_that_it_links_to_are_there(app: Any) -> None:
    async with client_of(app) as client:
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
        assert {"page/main.js", "page/style.css", "docs"} <= set(links)
        for link in links:
            assert not link.startswith(("/", "http", "data:")), "links are relative"
            assert (await client.get(f"/{link}")).status_code == 200, link


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
async def test_each_file_is_served_as_it_is(app: Any, file: Path) -> None:
    url = f"/page/{file.relative_to(DIRECTORY)}"
    content = file.read_bytes()
    async with client_of(app) as client:
        plain = await client.get(url, headers={"Accept-Encoding": "identity"})
        packed = await client.get(url, headers={"Accept-Encoding": "br, gzip;q=0.5"})
        head = await client.head(url, headers={"Accept-Encoding": "identity"})
    assert plain.content == packed.content == content
    assert plain.headers["content-length"] == str(len(content)) == head.headers["content-length"]
    assert packed.headers.get("content-encoding") == "gzip" or len(content) < 400
    assert head.content == b"" and head.headers["etag"] == plain.headers["etag"]


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/docs", "/docs/assets/docs.js"])
async def test_headers(app: Any, path: str) -> None:
    async with client_of(app) as client:
        headers = (await client.get(path)).headers
    policy: dict[str, str] = {}
    for directive in headers["content-security-policy"].split("; "):
        name, _, sources = directive.partition(" ")
        policy[name] = sources
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["img-src"] == "'self' blob: data:" and policy["media-src"] == "'self' blob:"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "microphone=(self)" in headers["permissions-policy"]
    assert "camera=()" in headers["permissions-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-cache" and headers["vary"] == "Accept-Encoding"


async def test_a_browser_that_has_a_file_gets_304(app: Any) -> None:
    async with client_of(app) as client:
        for coding in ("gzip", "identity"):
            accepts = {"Accept-Encoding": coding}
            tag = (await client.get("/page/style.css", headers=accepts)).headers["etag"]
            for condition in (tag, f'W/{tag}, "other"', f'"other" , {tag}', "*"):
                headers = accepts | {"If-None-Match": condition}
                answer = await client.get("/page/style.css", headers=headers)
                assert answer.status_code == 304 and answer.content == b"", condition
                assert answer.headers["etag"] == tag and "content-length" not in answer.headers
            headers = accepts | {"If-None-Match": '"other"'}
            assert (await client.get("/page/style.css", headers=headers)).status_code == 200
        packed = await client.get("/page/style.css", headers={"Accept-Encoding": "gzip"})
        assert packed.headers["etag"] != tag  # other bytes


@pytest.mark.parametrize("coding", ["gzip;q=0", "br", "identity", ""])
async def test_a_client_that_takes_no_gzip_gets_none(app: Any, coding: str) -> None:
    async with client_of(app) as client:
        answer = await client.get("/page/style.css", headers={"Accept-Encoding": coding})
    assert "content-encoding" not in answer.headers


async def messages_of(app: Any, method: str, path: str) -> list[dict[str, Any]]:
    """Return what an app sends by ASGI."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
    }
    await app(scope, receive, send)
    return sent


async def test_head_sends_no_content(app: Any) -> None:
    for method, sends in (("GET", True), ("HEAD", False)):
        sent = await messages_of(app, method, "/page/main.js")
        assert any(message.get("body") for message in sent) is sends


SEGMENTS = (
    ". .. page assets vendor main.js files.py index.html __init__.py style.css README.md LICENSE "
    "%2e%2e ..%2f etc passwd \x00 \\ é"
)
SEGMENT = st.sampled_from(["", *SEGMENTS.split(" ")])


@settings(max_examples=200)
@given(st.lists(SEGMENT, max_size=6).map(lambda segments: f"/page/{'/'.join(segments)}"))
async def test_no_path_leads_to_another_file(app: Any, path: str) -> None:
    known = {f"/page/{file.relative_to(DIRECTORY)}" for file in FILES}
    answers = await messages_of(app, "GET", path)
    status = answers[0]["status"]
    assert (status == 200) is (path in known)
    assert status in {200, 404} or (status == 307 and path.removesuffix("/") in known)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_refused(app: Any, method: str) -> None:
    async with client_of(app) as client:
        answer = await client.request(method, "/")
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"
    assert answer.json()["code"] == "method_not_allowed"


async def test_a_setting_turns_it_off() -> None:
    async with client_of(create_app(settings=Settings(page=False))) as client:
        for path in ("/", "/page/main.js"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/docs")).status_code == 200


async def test_it_is_public_and_says_that_a_key_is_needed() -> None:
    protected = create_app(settings=Settings(api_key=SecretStr("k3y")))
    async with client_of(protected) as client:
        page = await client.get("/")
        assert page.status_code == 200 and '"penstock-key" content="needed"' in page.text
        assert (await client.get("/page/main.js")).status_code == 200
        for path in ("/pipelines", "/page", "/page/", "/page/none.js", "/page/../metrics"):
            assert (await client.get(path)).status_code == 401, path
    async with client_of(create_app()) as client:
        assert '"penstock-key" content="none"' in (await client.get("/")).text


@pytest.mark.parametrize("key", [None, SecretStr("k3y")])
async def test_a_page_of_the_host_at_the_same_path_is_not_hidden(key: SecretStr | None) -> None:
    app = create_app(settings=Settings(api_key=key))

    @app.get("/")
    async def own() -> dict[str, str]:
        return {"own": "page"}

    async with client_of(app) as client:
        headers = {"Authorization": "Bearer k3y"}
        assert (await client.get("/", headers=headers)).json() == {"own": "page"}
        # Nor is it public because ours would be.
        assert (await client.get("/")).status_code == (200 if key is None else 401)
        assert (await client.get("/page/main.js")).status_code == 200


@pytest.mark.parametrize("key", [None, SecretStr("k3y")])
async def test_a_site_of_the_host_hides_the_page_and_not_the_docs(key: SecretStr | None) -> None:
    app = create_app(settings=Settings(api_key=key))
    app.mount("/", PlainTextResponse("the host's"))
    headers = {"Authorization": "Bearer k3y"}
    async with client_of(app) as client:
        for path in ("/", "/page/main.js"):
            assert (await client.get(path, headers=headers)).text == "the host's"
            assert (await client.get(path)).status_code == (200 if key is None else 401)
        assert "swagger-ui" in (await client.get("/docs")).text


async def test_below_a_root_path_that_the_proxy_leaves() -> None:
    async with client_of(create_app(), root_path="/models") as client:
        moved = await client.get("/models")
        assert (moved.status_code, moved.headers["location"]) == (307, "./models/")
        assert (await client.get("/models/")).headers["content-type"].startswith("text/html")
        assert (await client.get("/models/page/main.js")).status_code == 200
        moved = await client.get("/models/docs/")
        assert (moved.status_code, moved.headers["location"]) == (307, "../docs")


def test_mounted_and_included() -> None:
    host = FastAPI()
    host.mount("/ml", create_app())
    host.include_router(create_router(prefix="/router"))

    @host.get("/")
    async def own() -> dict[str, str]:
        return {"own": "page"}

    with TestClient(host, client=("127.0.0.1", 50000)) as client:
        assert client.get("/").json() == {"own": "page"}
        page = client.get("/ml")  # by the host's redirect
        assert page.url.path == "/ml/" and "page/main.js" in page.text
        assert client.get("/ml/page/main.js").status_code == 200
        for path in ("/page/main.js", "/router/", "/router/page/main.js"):
            assert client.get(path).status_code == 404


async def test_with_tls_no_other_page_gets_a_handle_on_it(app: Any) -> None:
    """Without TLS, Chromium ignores the header and complains in the console."""
    async with client_of(app) as client:
        assert "cross-origin-opener-policy" not in (await client.get("/")).headers
        answer = await client.get("https://penstock/")
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.parts[-4])
def test_files_of_others_are_as_their_table_says(table: Path) -> None:
    rows = dict(ROW.findall(table.read_text()))
    files = [path for path in table.parent.rglob("*") if path.is_file() and path != table]
    assert sorted(rows) == sorted(str(path.relative_to(table.parent)) for path in files)
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        digest = hashlib.sha256(content).hexdigest()
        assert rows[str(file.relative_to(table.parent))] == digest, file
    licensed = {path.parent.name for path in files if path.name == "LICENSE"}
    assert licensed >= {path.name for path in table.parent.iterdir() if path.is_dir()}
