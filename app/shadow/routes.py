"""`/shadow`: the report, and the switch by hand."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from ..http.auth import check_admin_token, check_key
from ..settings import Settings
from .shadow import Shadow


def shadow_routes(shadow: Shadow, settings: Settings) -> APIRouter:
    """Return the routes. They need the admin token if there is one, else the API key."""
    router = APIRouter(include_in_schema=False)

    def check(request: Request) -> None:
        if settings.admin_token is not None:
            check_admin_token(request.scope, settings)
        else:
            check_key(request.scope, settings)

    @router.get("/shadow/")
    @router.get("/shadow")
    async def report(request: Request) -> Response:
        check(request)
        return JSONResponse(await shadow.report())

    @router.post("/shadow/switch")
    async def switch(request: Request) -> Response:
        check(request)
        reasons = shadow.switch.why_not()
        forced = request.query_params.get("force") == "true"
        if reasons and not forced and not shadow.switch.is_done:
            return JSONResponse(_problem(reasons), 409, media_type="application/problem+json")
        shadow.switch.take_all()
        return JSONResponse((await shadow.report())["switch"])

    return router


def _problem(reasons: list[str]) -> dict[str, Any]:
    return {
        "title": "requests would fail after the switch",
        "status": 409,
        "code": "not_switched",
        "detail": f"{'; '.join(reasons)}. POST /shadow/switch?force=true switches nevertheless",
    }
