"""The page /docs: its files, who gets them, and what it tells its script."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from penstock import create_app
from penstock.app.openapi.page import DIRECTORY
from penstock.app.settings import Settings

SCRIPT = "docs/assets/vendor/swagger-ui/swagger-ui-bundle.js"


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://penstock")


def protected(**settings: Any) -> Any:
    return create_app(settings=Settings(api_key=SecretStr("k3y"), **settings))


async def test_the_page_needs_no_other_server() -> None:
    async with client_of(create_app()) as client:
        page = await client.get("/docs")
        assert page.status_code == 200 and "//" not in page.text
        links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        assert SCRIPT in links
        for link in links:
            assert not link.startswith("/"), "links are relative"
            assert (await client.get(f"/{link}")).status_code == 200, link
        assert "'unsafe" not in page.headers["content-security-policy"]


@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_the_script_is_sent_as_the_client_reads_it(coding: str) -> None:
    async with client_of(create_app()) as client:
        answer = await client.get(f"/{SCRIPT}", headers={"Accept-Encoding": coding})
    stored = (DIRECTORY / SCRIPT.removeprefix("docs/assets/")).with_suffix(".js.gz").read_bytes()
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.content == gzip.decompress(stored)
    assert answer.headers.get("content-encoding", "identity") == coding
    size = len(stored) if coding == "gzip" else len(answer.content)
    assert answer.headers["content-length"] == str(size)


async def test_the_page_is_public_and_the_document_needs_the_key() -> None:
    async with client_of(protected()) as client:
        page = await client.get("/docs")
        assert page.status_code == 200 and '"penstock-key" content="needed"' in page.text
        assert (await client.get("/docs/assets/docs.js")).status_code == 200
        assert (await client.get("/openapi.json")).status_code == 401
        key = {"Authorization": "Bearer k3y"}
        assert (await client.get("/openapi.json", headers=key)).status_code == 200
    async with client_of(create_app()) as client:
        assert '"penstock-key" content="none"' in (await client.get("/docs")).text


@pytest.mark.parametrize("page", [True, False])
async def test_it_links_to_the_page_if_there_is_one(page: bool) -> None:
    async with client_of(create_app(settings=Settings(page=page))) as client:
        state = "on" if page else "off"
        assert f'"penstock-page" content="{state}"' in (await client.get("/docs")).text


async def test_the_group_metadata_holds_for_it() -> None:
    rule = SecretStr("metadata:x-secret=s3cret")
    async with client_of(create_app(settings=Settings(restricted_api=rule))) as client:
        for path in ("/docs", "/docs/assets/docs.js"):
            assert (await client.get(path)).status_code == 403
            assert (await client.get(path, headers={"x-secret": "s3cret"})).status_code == 200


def test_the_files_are_small_in_the_wheel() -> None:
    files = [path for path in Path(DIRECTORY).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 550_000
