"""examples/host: an app of one's own, with its users and its workers, in process over ASGI."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from .conftest import Load

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGIT = (EXAMPLES / "digits" / "digit.png").read_bytes()


async def test_users_routes_and_jobs(load: Load) -> None:
    host = load(EXAMPLES / "host" / "app.py")
    async with (
        host.app.router.lifespan_context(host.app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(host.app), base_url="http://host", timeout=60
        ) as client,
    ):
        for method, path in (
            ("POST", "/models/predict/digits"),
            ("GET", "/models/pipelines"),
            ("POST", "/digit"),
            ("POST", "/jobs"),
            ("GET", "/jobs/1"),
        ):
            for headers in ({}, {"Authorization": "Bearer stolen"}):
                answer = await client.request(method, path, content=DIGIT, headers=headers)
                assert answer.status_code == 401, path

        client.headers["Authorization"] = "Bearer token-of-ann"
        answer = await client.post("/models/predict/digits", content=DIGIT)
        assert answer.json()["label"] == "three"
        digit = (await client.post("/digit", content=DIGIT)).json()
        assert digit == {"digit": 3, "score": answer.json()["score"]}

        answer = await client.post("/digit", content=b"no image")
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "invalid_input"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]

        added = [await client.post("/jobs", content=DIGIT) for _ in range(20)]
        added.append(await client.post("/jobs", content=b"no image"))
        assert {answer.status_code for answer in added} == {202}
        await asyncio.wait_for(host.waiting.join(), 60)
        paths = [f"/jobs/{answer.json()['id']}" for answer in added]
        of_bob = {"Authorization": "Bearer token-of-bob"}
        assert (await client.get(paths[0], headers=of_bob)).json()["code"] == "not_found"
        answers = [(await client.get(path)).json() for path in paths]
        assert answers == [{"done": True, **digit}] * 20 + [
            {"done": True, "error": "invalid_input"}
        ]
        assert (await client.get(paths[0])).status_code == 404
    assert host.models.state == "closed"


async def test_too_many_jobs_are_refused(load: Load) -> None:
    """No worker runs here, since the app's lifespan does not."""
    host = load(EXAMPLES / "host" / "app.py")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(host.app),
        base_url="http://host",
        headers={"Authorization": "Bearer token-of-ann"},
    ) as client:
        added = [await client.post("/jobs", content=DIGIT) for _ in range(host.MAX_WAITING_JOBS)]
        assert {answer.status_code for answer in added} == {202}
        assert (await client.get(f"/jobs/{added[0].json()['id']}")).json() == {"done": False}
        answer = await client.post("/jobs", content=DIGIT)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["code"] == "queue_full"
