"""The app inside other apps: mounted, or as a router, behind their middleware and dependencies.

Each of these may refuse a predict request.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from penstock import (
    NotReady,
    PenstockError,
    create_app,
    create_router,
    exception_handler,
    lifespan,
)
from penstock.app.routes import ProblemRoute
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load

SEEN: list[bytes] = []


@register_backend("EmbeddingRecord")
class EmbeddingRecord(Backend):
    def forward(self, batch: Any) -> None:
        for item in batch:
            SEEN.append(item["data"])
            item["result"] = len(item["data"])


class Guard:
    """Authentication as plain ASGI, as a user might write it."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"x-ticket", b"good") not in scope["headers"]:
            await PlainTextResponse("no ticket", 401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def ticket(request: Request) -> None:
    if request.headers.get("x-ticket") != "good":
        raise HTTPException(401, "no ticket")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


@pytest.fixture
def config() -> Any:
    return load("EmbeddingRecord", name="record")


def refuses(client: httpx.Client, prefix: str = "") -> None:
    """Check that no request reaches the backend without a ticket, and every request with one."""
    paths = [f"{prefix}/predict/record", f"{prefix}/predict/record/batch"]
    for path in paths:
        for method in ("POST", "PUT"):
            answer = client.request(method, path, content=b"four")
            assert answer.status_code == 401 and "no ticket" in answer.text
    assert SEEN == []
    client.headers["X-Ticket"] = "good"
    assert client.post(paths[0], content=b"four").json() == {"result": 4}
    assert client.put(paths[0], content=b"four").json() == {"result": 4}
    assert client.post(paths[1], json={"images": ["Zm91cg=="]}).json() == {
        "results": [{"result": 4}]
    }
    assert SEEN == [b"four"] * 3


def test_middleware_of_the_app_refuses(running: Any, config: Any) -> None:
    with running(create_app(config, middleware=[Middleware(Guard)])) as client:
        refuses(client)


def test_middleware_added_to_the_app_refuses(running: Any, config: Any) -> None:
    app = create_app(config)
    app.add_middleware(Guard)
    with running(app) as client:
        refuses(client)


def test_an_http_middleware_function_refuses(running: Any, config: Any) -> None:
    app = create_app(config)

    @app.middleware("http")
    async def guard(request: Any, call_next: Any) -> Any:
        if request.headers.get("x-ticket") != "good":
            return PlainTextResponse("no ticket", 401)
        return await call_next(request)

    with running(app) as client:
        refuses(client)


@pytest.mark.parametrize("where", ["host", "mount"])
@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_middleware_of_a_host_around_a_mount_refuses(
    running: Any, config: Any, kind: Any, where: str
) -> None:
    models = create_app(config)
    host = kind(lifespan=lambda host: lifespan(models))
    if where == "host":
        host.add_middleware(Guard)
        host.mount("/models", models)
    else:
        host.router.routes.append(Mount("/models", models, middleware=[Middleware(Guard)]))
    with running(host) as client:
        refuses(client, "/models")
        assert client.get("/models/health/ready").json() == {"ready": True}
        document = client.get("/models/openapi.json").json()
        assert "/predict/record" in document["paths"] and document["servers"] == [
            {"url": "/models"}
        ]
        assert client.get("/models/docs").status_code == 200


def test_a_routers_dependency_refuses(running: Any, config: Any) -> None:
    host = FastAPI()
    host.include_router(create_router(config, prefix="/models", dependencies=[Depends(ticket)]))
    with running(host) as client:
        refuses(client, "/models")


def test_a_dependency_given_where_the_router_is_included_refuses(running: Any, config: Any) -> None:
    host = FastAPI()
    host.include_router(create_router(config), prefix="/models", dependencies=[Depends(ticket)])
    with running(host) as client:
        refuses(client, "/models")


def test_a_hosts_own_dependencies_refuse_a_router(running: Any, config: Any) -> None:
    host = FastAPI(dependencies=[Depends(ticket)])
    host.include_router(create_router(config))
    with running(host) as client:
        refuses(client)


def test_a_nested_mount(running: Any, config: Any) -> None:
    models = create_app(config)
    inner = Starlette(routes=[Mount("/inner", models)])

    @contextlib.asynccontextmanager
    async def together(host: Any) -> AsyncIterator[None]:
        async with lifespan(models):
            yield

    with running(
        Starlette(
            routes=[Mount("/outer", inner), Route("/", lambda request: PlainTextResponse("host"))],
            lifespan=together,
        )
    ) as client:
        assert client.post("/outer/inner/predict/record", content=b"abc").json() == {"result": 3}
        assert client.get("/").text == "host"
        answer = client.post("/outer/inner/predict/recrd", content=b"abc")
        assert answer.status_code == 404 and "did you mean 'record'" in answer.json()["detail"]
    assert models.state.penstock.state == "closed"


def test_the_key_of_a_mounted_app(running: Any, config: Any) -> None:
    models = create_app(config, settings=Settings(api_key=SecretStr("k3y")))
    host = Starlette(routes=[Mount("/models", models)], lifespan=lambda host: lifespan(models))
    with running(host) as client:
        assert client.post("/models/predict/record", content=b"abc").status_code == 401
        assert client.get("/models/health/ready").status_code == 200
        assert client.get("/models/metrics").status_code == 401
    assert SEEN == []


def test_a_router_and_its_host_share_a_document(running: Any, digits: Path, digit: bytes) -> None:
    host = FastAPI()

    @host.get("/own")
    async def own() -> dict[str, int]:
        return {"one": 1}

    host.include_router(create_router(digits, prefix="/models"))
    with running(host) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert list(paths) == ["/own", "/models/predict/digits", "/models/predict/digits/batch"]
        answer = paths["/models/predict/digits"]["post"]["responses"]["200"]["content"][
            "application/json"
        ]["schema"]
        assert answer["properties"]["label"]["type"] == "string"
        assert client.post("/models/predict/digits", content=digit).json()["label"] == "three"
        assert client.get("/own").json() == {"one": 1}


def test_an_apps_own_routes_stay(running: Any, config: Any) -> None:
    app = create_app(config)

    @app.get("/own")
    async def own() -> dict[str, int]:
        return {"one": 1}

    @app.get("/fails")
    async def fails() -> None:
        raise HTTPException(418, "teapot", headers={"X-Pot": "tea"})

    with running(app) as client:
        assert client.get("/own").json() == {"one": 1}
        assert "/own" in client.get("/openapi.json").json()["paths"]
        answer = client.get("/fails")
        assert (answer.status_code, answer.headers["x-pot"], answer.json()["detail"]) == (
            418,
            "tea",
            "teapot",
        )
        answer = client.get("/predict/record")
        assert (
            answer.status_code == 405
            and answer.headers["allow"]
            and answer.json()["code"] == "method_not_allowed"
        )


MANY = {"DELETE", "GET", "PATCH", "POST", "PUT"}
"""A set whose order is the sorted one by chance in 1 of 120 processes."""


@pytest.mark.parametrize("routed", [False, True])
def test_the_methods_in_allow_have_a_fixed_order(running: Any, config: Any, routed: bool) -> None:
    if routed:
        app = FastAPI()
        models = create_router(config)
        models.add_api_route("/many", lambda: 1, methods=[*MANY], route_class_override=ProblemRoute)
        app.include_router(models, prefix="/models")
    else:
        app = create_app(config)
        app.add_api_route("/many", lambda: 1, methods=[*MANY])
    with running(app) as client:
        prefix = "/models" * routed
        for path, allowed in {
            "/predict/record": "POST, PUT",
            "/predict/record/batch": "POST, PUT",
            "/predict/record/versions/1": "POST, PUT",
            "/health/ready": "GET, HEAD",
            "/v2": "GET, HEAD",
            "/many": "DELETE, GET, PATCH, POST, PUT",
        }.items():
            answer = client.request("QUERY", prefix + path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        if not routed:
            assert client.request("QUERY", "/docs").headers["allow"] == "GET, HEAD"


def test_a_lifespan_that_fails_says_so(config: Any) -> None:
    import asyncio

    from penstock.backends.errors import BackendError

    app = create_app({"backend": "OnnxTensor", "model": "absent.onnx"})

    async def start() -> None:
        async with lifespan(app):
            raise AssertionError

    with pytest.raises(BackendError, match=r"absent\.onnx"):
        asyncio.run(start())


@pytest.mark.parametrize("guarded", [False, True])
def test_the_short_cut_is_open_only_without_other_middleware(
    running: Any, config: Any, guarded: Any
) -> None:
    app = create_app(config)
    if guarded:
        app.add_middleware(Guard)
    routed: list[str] = []
    with running(app) as client:
        stack = app.middleware_stack
        assert stack is not None
        catcher = type(stack).__call__

        async def watched(self: Any, scope: Any, receive: Any, send: Any) -> None:
            routed.append(scope["path"])
            await catcher(self, scope, receive, send)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(stack), "__call__", watched)
            client.post("/predict/record", content=b"1", headers={"x-ticket": "good"})
            client.get("/health/live", headers={"x-ticket": "good"})
    assert routed == (["/predict/record", "/health/live"] if guarded else ["/health/live"])
    assert SEEN == [b"1"]


class TooDark(PenstockError):  # noqa: N818  named as all of ours are
    """An error of a user's own."""

    code = "too_dark"
    status = 422


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_the_exception_handler_of_a_host(running: Any, kind: Any) -> None:
    """It makes problems of Penstock's errors, and leaves the host's own as they are."""

    async def fail(request: Request) -> None:
        raise {
            "busy": NotReady("later"),
            "dark": TooDark("the picture is too dark"),
            "own": HTTPException(418, "tea"),
        }[request.path_params["how"]]

    host = kind(routes=[Route("/{how}", fail)])
    host.add_exception_handler(PenstockError, exception_handler)
    with running(host) as client:
        answer = client.get("/dark", headers={"X-Request-Id": "r1"})
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == "r1"
        assert answer.json() == {
            "type": "about:blank",
            "title": answer.json()["title"],
            "status": 422,
            "detail": "the picture is too dark",
            "code": "too_dark",
            "request_id": "r1",
        }
        answer = client.get("/busy")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        answer = client.get("/own")
        assert answer.status_code == 418 and "problem" not in answer.headers["content-type"]
