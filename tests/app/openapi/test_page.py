"""The page /docs, with files of this server and of a CDN."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount

from penstock import create_app, lifespan
from penstock.app.openapi import page as docs_page
from penstock.app.settings import Settings


def links(page: Any) -> Any:
    return re.findall(r"(?:href|src)=\"([^\"]+)\"|url: '([^']+)'", page)


@pytest.mark.parametrize("prefix", ["", "/models"])
def test_the_page_works_without_internet(running: Any, digits: Path, prefix: str) -> None:
    models = create_app(digits)
    app = (
        Starlette(routes=[Mount(prefix, models)], lifespan=lambda host: lifespan(models))
        if prefix
        else models
    )
    with running(app) as client:
        page = client.get(f"{prefix}/docs").text
        assert "//" not in page.replace(
            "<!-- `SwaggerUIBundle` is now available on the page -->", ""
        )
        urls = [one or other for one, other in links(page)]
        assert len(urls) == 4 and all(link.startswith(f"{prefix}/") for link in urls)
        for link in urls:
            assert client.get(link).status_code == 200, link
        script = next(link for link in urls if link.endswith(".js"))
        assert "SwaggerUIBundle" in client.get(script).text
        assert "/predict/digits" in client.get(urls[-1]).json()["paths"]
        assert client.get(f"{prefix}/docs/assets/../core.py").status_code == 404


def test_the_files_require_the_key(running: Any, digits: Path) -> None:
    with running(create_app(digits, settings=Settings(api_key=SecretStr("k3y")))) as client:
        for path in ("/docs", "/docs/assets/swagger-ui.css"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer k3y"}).status_code == 200


def test_without_the_package_the_files_come_from_a_cdn(
    running: Any, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_page, "find_spec", lambda name: None)
    assert docs_page.installed_assets() is None
    with running(create_app(digits)) as client:
        assert (
            "https://cdn." in client.get("/docs").text
            and client.get("/docs/assets/swagger-ui.css").status_code == 404
        )
