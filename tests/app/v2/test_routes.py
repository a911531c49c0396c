"""Every path below /v2 answers errors in the protocol's form, wherever the app is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from penstock import create_app, create_router, lifespan
from penstock.app.settings import Settings
from penstock.app.v2.routes import REMEMBERED_PATHS

if TYPE_CHECKING:
    from tests.app.v2.conftest import Served

TEXT = {
    "pipeline": {"name": "text", "inputs": {"data": {"kind": "text"}}},
    "node": {"backend": "Identity"},
}
REQUEST = {"inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]}


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/nope", 404, "Not Found"),
        ("GET", "/v2//health/live", 404, "Not Found"),
        ("GET", "/v2/models", 404, "Not Found"),
        ("GET", "/v2/models/text/infer/x", 404, "Not Found"),
        ("GET", "/v2/models/text/infer", 405, "Method Not Allowed"),
        ("POST", "/v2/models/text", 405, "Method Not Allowed"),
        ("DELETE", "/v2", 405, "Method Not Allowed"),
        ("OPTIONS", "/v2/health/live", 405, "Method Not Allowed"),
    ],
)
def test_unknown_paths(served: Served, method: str, path: str, status: int, message: str) -> None:
    answer = served.http.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": message})
    assert answer.headers["content-type"] == "application/json"
    assert status != 405 or answer.headers["allow"] in {"GET, HEAD", "POST"}


def test_remembered_routes_check_the_method(served: Served) -> None:
    answer = served.http.get("/v2/models/nope")
    assert answer.status_code == 400 and "www-authenticate" not in answer.headers


def test_head_answers_like_get_without_a_body(served: Served) -> None:
    answer = served.http.head("/v2/health/live")
    assert (
        answer.status_code == 200
        and answer.content == b""
        and answer.headers["content-length"] == "13"
    )


def test_not_ready(running: Any) -> None:
    """Clients read `ready`, or `error` as in every other answer that is not 200."""
    with running(
        Starlette(routes=[Mount("/models", create_app([TEXT]))])
    ) as client:  # no lifespan has started the app
        answer = client.get("/models/v2/health/ready")
        assert answer.status_code == 503 and answer.json().keys() == {"ready", "error"}
        assert answer.json()["ready"] is False and "lifespan" in answer.json()["error"]


def test_answers_repeat_the_clients_request_id(served: Served) -> None:
    for path in ("/v2", "/v2/nope"):
        assert (
            served.http.get(path, headers={"X-Request-Id": "mine"}).headers["x-request-id"]
            == "mine"
        )
    assert (
        served.infer("text", REQUEST, headers={"X-Request-Id": "mine"}).headers["x-request-id"]
        == "mine"
    )


@pytest.mark.parametrize(
    ("headers", "identity", "backend", "answered"),
    [
        ({}, "own", "own", "own"),
        ({"X-Request-Id": "header"}, "own", "own", "header"),
        ({"X-Request-Id": "header"}, None, "header", "header"),
        ({"X-Request-Id": "header"}, "", "header", "header"),
        ({"X-Request-Id": "header"}, "two\nlines", "header", "header"),
        ({"X-Request-Id": "header"}, "x" * 129, "header", "header"),
    ],
)
def test_the_documents_id_reaches_backends(
    served: Served, headers: Any, identity: Any, backend: str, answered: str
) -> None:
    document = served.one("BYTES", [1], ["x"], name="data")
    if identity is not None:
        document["id"] = identity
    for _ in range(2):  # the second one is read by the layout of the first
        answer = served.infer("ids", document, headers=headers)
        assert answer.json()["outputs"][0]["data"] == [backend]
        assert answer.headers["x-request-id"] == answered
        assert not identity or answer.json()["id"] == identity


def test_a_connection_stays_open_after_a_body_that_was_read(served: Served) -> None:
    answers = [
        served.infer("text", REQUEST),
        served.infer("simple", served.simple(id="x" * 300_000)),
        served.infer("simple", b"{" * 300_000),
        served.http.get("/v2"),
        served.http.get("/v2/nope"),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 404]
    assert not any("connection" in answer.headers for answer in answers)
    assert served.http.post("/v2/nope", content=bytes(300_000)).headers["connection"] == "close"


def test_paths_that_only_begin_with_v2_are_not_the_protocols(served: Served) -> None:
    assert served.http.get("/v2x").json()["code"] == "not_found"


def test_keys(running: Any) -> None:
    with running(create_app([TEXT], settings=Settings(api_key=SecretStr("secret")))) as client:
        assert (
            client.get("/v2/health/live").status_code
            == client.get("/v2/health/ready").status_code
            == 200
        )
        for answer in (
            client.get("/v2"),
            client.post("/v2/models/text/infer", json=REQUEST),
            client.get("/v2/nope"),
        ):
            assert answer.status_code == 401 and list(answer.json()) == ["error"]
            assert answer.headers["www-authenticate"] == 'Bearer realm="penstock"'
        key = {"Authorization": "Bearer secret"}
        assert client.post("/v2/models/text/infer", json=REQUEST, headers=key).json()["outputs"][0][
            "data"
        ] == ["hello"]


def test_mounted(running: Any) -> None:
    models = create_app([TEXT])
    host = Starlette(routes=[Mount("/models", models)], lifespan=lambda host: lifespan(models))
    with running(host) as client:
        assert client.post("/models/v2/models/text/infer", json=REQUEST).json()["outputs"][0][
            "data"
        ] == ["hello"]
        assert client.get("/models/v2/nope").json() == {"error": "Not Found"}


def test_a_router_keeps_its_dependencies(running: Any) -> None:
    async def members(q: str = "") -> None:
        if q != "member":
            raise HTTPException(418)

    host = FastAPI()
    host.include_router(create_router([TEXT], prefix="/models", dependencies=[Depends(members)]))
    with running(host) as client:
        assert client.get("/models/v2").status_code == 418
        assert client.post("/models/v2/models/text/infer?q=member", json=REQUEST).json()["outputs"][
            0
        ]["data"] == ["hello"]
        assert client.get("/models/v2?q=member").json()["name"] == "penstock"
        assert client.get("/models/v2/nope?q=member").json() == {"error": "Not Found"}
        assert client.get("/models/v2/models/text/infer?q=member").status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("OPTIONS", "/v2", 405, "Method Not Allowed"),
        ("TRACE", "/v2/models/text", 405, "Method Not Allowed"),
        ("PROPFIND", "/v2/models/text/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/v2/a%0Ab", 404, "Not Found"),
        ("GET", "/v2/models/a%0Ab/ready", 400, "Request for unknown model: 'a\nb' is not found"),
    ],
)
def test_a_router_answers_errors_in_the_protocols_form(
    router: Any, method: str, path: str, status: int, message: str
) -> None:
    answer = router.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": message})


@pytest.fixture(scope="module")
def router(running: Any) -> Any:
    host = FastAPI()
    host.include_router(create_router([TEXT]))
    with running(host) as client:
        yield client


def test_a_router_with_a_key(running: Any) -> None:
    host = FastAPI()
    host.include_router(create_router([TEXT], settings=Settings(api_key=SecretStr("secret"))))
    with running(host) as client:
        assert client.get("/v2").json() == {
            "error": "expected the header Authorization: Bearer <API key>"
        }
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_middleware_of_the_host_sees_the_requests(running: Any) -> None:
    seen: list[Any] = []

    class Note:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope.get("path"))
            await self.app(scope, receive, send)

    with running(create_app([TEXT], middleware=[Middleware(Note)])) as client:
        client.post("/v2/models/text/infer", json=REQUEST)
    assert "/v2/models/text/infer" in seen


def test_more_paths_than_are_remembered(served: Served) -> None:
    """Each path finds its own model, whatever was forgotten meanwhile."""
    for number in range(REMEMBERED_PATHS + 10):
        answer = served.http.get(f"/v2/models/absent_{number}/config")
        assert answer.json() == {
            "error": f"Request for unknown model: 'absent_{number}' is not found"
        }
    assert served.http.get("/v2/models/simple/config").json()["name"] == "simple"
