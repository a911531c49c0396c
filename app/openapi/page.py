"""`/docs`: Swagger UI.

Its 1.7 MB of script come from the package fastapi-offline if that is installed (the extra `docs`):
the page then works without internet and contacts no other server. Otherwise the browser fetches
them from a CDN, as FastAPI's own page does.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

ASSETS_PATH = "/docs/assets"


def installed_assets() -> Path | None:
    """Return the directory of Swagger UI's files, or None if they are not installed.

    The package is not imported.
    """
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        return None
    directory = Path(spec.origin).parent / "static"
    return directory if (directory / "swagger-ui-bundle.js").is_file() else None


def add_docs_page(app: FastAPI, assets: Path) -> None:
    """Serve `/docs` with the files of `assets`, in an app that was made with `docs_url=None`."""
    app.mount(ASSETS_PATH, StaticFiles(directory=assets))

    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{ASSETS_PATH}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS_PATH}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS_PATH}/favicon.png",
        )

    app.add_route("/docs", docs, include_in_schema=False)
