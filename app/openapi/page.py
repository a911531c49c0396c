"""`/docs`: Swagger UI. Its 1.7 MB of script come from the package fastapi-offline where that is installed (the extra `docs`), so that the
page works without internet and tells nobody; else from a CDN, as FastAPI has it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

ASSETS = "/docs/assets"


def installed_assets() -> Path | None:
    """The directory of the files, where they are installed. The package itself is not imported."""
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        return None
    directory = Path(found.origin).parent / "static"
    return directory if (directory / "swagger-ui-bundle.js").is_file() else None


def add_docs_page(app: FastAPI, assets: Path) -> None:
    """`/docs` with the files of this directory; for an app that was made with `docs_url=None`."""
    app.mount(ASSETS, StaticFiles(directory=assets))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=f"{app.title} - Swagger UI",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
        )
