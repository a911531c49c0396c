"""How the page at / is served: its headers, and where it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import create_app
from penstock.app.page.files import DIRECTORY
from penstock.app.settings import Settings

FILES = sorted(path for path in DIRECTORY.rglob("*") if path.suffix in {".js", ".css", ".svg"})


def client_of(app: Any, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, **options)
    return httpx.AsyncClient(transport=transport, base_url="http://penstock")


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app()


async def test_the_page_and_all_that_it_links_to_are_there(app: Any) -> None:
    async with client_of(app) as client:
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
        assert {"page/main.js", "page/style.css"} <= set(links)
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
    assert packed.headers.get("content-encoding") == "gzip" or len(content) < 300
    assert head.content == b"" and head.headers["etag"] == plain.headers["etag"]


async def test_a_setting_turns_it_off() -> None:
    async with client_of(create_app(settings=Settings(page=False))) as client:
        for path in ("/", "/page/main.js"):
            assert (await client.get(path)).status_code == 404
