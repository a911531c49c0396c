"""Health and metrics of a server that loads, runs, loses an executor and drains."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families as parse

from penstock import Settings, create_app
from penstock.backends.base import Backend
from penstock.backends.errors import DeviceError, InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository


class Gates:
    """Events between a test and the backends below."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.open = threading.Event()
        self.inside = threading.Event()
        self.may_load = threading.Event()
        self.fails_to_load = False


GATES = Gates()
PIPELINE = (("pipeline", "pipeline"),)


@register_backend("HealthGate")
class HealthGate(Backend):
    def init(self, params: Any, context: Any) -> None:
        GATES.may_load.wait(60)
        if GATES.fails_to_load:
            raise ValueError("not today")

    def forward(self, batch: Any) -> None:
        for item in batch:
            if item["data"] == b"die":
                GATES.may_load.clear()
                raise DeviceError("lost")
            if item["data"] == b"wait":
                GATES.inside.set()
                GATES.open.wait(60)
            if item["data"] == b"broken":
                raise ValueError("/secret/path")
            if item["data"] == b"unreadable":
                item["error"] = InvalidInput("not an image")
            else:
                item["result"] = len(item["data"])


@pytest.fixture(autouse=True)
def gates() -> Any:
    GATES.reset()
    GATES.may_load.set()
    yield
    GATES.open.set()
    GATES.may_load.set()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def values(client: httpx.Client) -> Any:
    """Return every sample by its name and labels. Fails for a series that comes twice."""
    samples = {}
    for family in parse(client.get("/metrics").text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def test_live_and_ready(running: Any) -> None:
    with running(create_app({"backend": "HealthGate"})) as client:
        assert client.get("/health/live").json() == {"live": True}
        assert (
            client.head("/health/live").status_code
            == client.head("/health/ready").status_code
            == 200
        )
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()) == (200, {"ready": True})


def test_not_ready_without_a_lifespan(running: Any) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with running(
        Starlette(routes=[Mount("/models", create_app({"backend": "HealthGate"}))])
    ) as client:
        answer = client.get("/models/health/ready")
        assert answer.status_code == 503 and "lifespan" in answer.json()["reason"]
        answer = client.post("/models/predict/pipeline", content=b"x")
        assert (
            answer.status_code == 503
            and answer.headers["retry-after"]
            and "lifespan" in answer.json()["detail"]
        )


def test_not_ready_while_an_executor_is_replaced(running: Any) -> None:
    with running(create_app({"backend": "HealthGate"})) as client:
        answer = client.post("/predict/pipeline", content=b"die")
        assert answer.status_code == 500
        assert client.get("/health/live").status_code == 200
        answer = client.get("/health/ready")
        assert answer.status_code == 503 and "executors are not running" in answer.json()["reason"]
        assert "not running" in client.get("/pipelines").json()["pipelines"][0]["reason"]
        assert values(client)["penstock_ready", ()] == 0
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.post, "/predict/pipeline", content=b"x")
            until(lambda: values(client)["penstock_requests_in_flight", PIPELINE] == 1)
            GATES.may_load.set()
            assert waiting.result().json() == {"result": 1}
        until(lambda: client.get("/health/ready").status_code == 200)
        samples = values(client)
        labels = (("node", "main"), ("pipeline", "pipeline"))
        assert (
            samples["penstock_executor_restarts_total", labels] == 1
            and samples["penstock_executors", labels] == 1
        )


def test_what_no_executor_will_serve_is_refused_at_once(running: Any) -> None:
    with running(create_app({"backend": "HealthGate"})) as client:
        GATES.fails_to_load = True
        assert client.post("/predict/pipeline", content=b"die").status_code == 500
        GATES.may_load.set()
        labels = (("node", "main"), *PIPELINE)
        until(lambda: values(client)["penstock_executor_restarts_total", labels] >= 2)
        refused = client.post("/predict/pipeline", content=b"x")
        assert refused.status_code == 503 and refused.json()["code"] == "not_ready"
        assert refused.headers["retry-after"] and "1 of 1 executors" in refused.json()["detail"]
        many = client.post("/predict/pipeline/batch", files=[("images", b"x"), ("images", b"y")])
        assert [result["code"] for result in many.json()["results"]] == ["not_ready"] * 2
        document = {"inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
        assert client.post("/v2/models/pipeline/infer", json=document).status_code == 503
        GATES.fails_to_load = False
        until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/predict/pipeline", content=b"x").json() == {"result": 1}


@register_backend("HealthSlow")
class HealthSlow(Backend):
    """A backend whose `init` reports its progress and waits; it can be cancelled."""

    def init(self, params: Any, context: Any) -> None:
        context.loading.on_stop(GATES.may_load.set)
        context.loading.text = "building 42 %"
        GATES.inside.set()
        GATES.may_load.wait(60)
        context.loading.text = ""

    def forward(self, batch: Any) -> None:
        if not GATES.open.is_set():
            GATES.inside.clear()
            GATES.may_load.clear()
            raise DeviceError("lost")
        for item in batch:
            item["result"] = 1


def test_ready_reports_the_progress_of_a_build(running: Any) -> None:
    GATES.may_load.clear()
    repository = Repository(
        [load({"net": {"backend": "HealthSlow", "instance_num": 2}}, name="slow")]
    )
    host = FastAPI(lifespan=lambda host: starting(repository))
    host.mount("/models", create_app(repository))
    with running(host) as client:
        assert GATES.inside.wait(60)
        answer = client.get("/models/health/ready")
        reason = "pipeline 'slow' is loading (node 'net': building 42 %)"
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": reason})
        refused = client.post("/models/predict/slow", content=b"x")
        assert refused.status_code == 503 and refused.json()["detail"] == reason
        GATES.may_load.set()
        until(lambda: client.get("/models/health/ready").status_code == 200)
        # its executor dies and is replaced
        assert client.post("/models/predict/slow", content=b"x").status_code == 500
        assert GATES.inside.wait(60)
        assert client.get("/models/health/ready").json()["reason"] == "node 'net': building 42 %"
        GATES.open.set()
        GATES.may_load.set()
        until(lambda: client.get("/models/health/ready").status_code == 200)
        assert client.post("/models/predict/slow", content=b"x").json() == {"result": 1}


def test_a_load_is_cancelled_when_the_server_stops(running: Any) -> None:
    GATES.may_load.clear()
    repository = Repository([load("HealthSlow", name="slow")])
    with running(FastAPI(lifespan=lambda host: starting(repository))):
        assert GATES.inside.wait(60)
    assert GATES.may_load.is_set() and repository.state == "closed"


@contextlib.asynccontextmanager
async def starting(repository: Repository) -> AsyncIterator[None]:
    """Load while the server listens, as `penstock serve` does."""
    task = asyncio.create_task(repository.start())
    yield
    task.cancel()
    await asyncio.wait([task])
    await repository.close(1)


def test_metrics_count_what_happened(running: Any) -> None:
    node = (("node", "main"), ("pipeline", "gate"))
    pipeline = (("pipeline", "gate"),)
    config = load(
        {
            "backend": "HealthGate",
            "pipeline": {"name": "gate", "max_requests": 1},
            "stuck_after": 60,
        }
    )
    with running(create_app(config)) as client, ThreadPoolExecutor() as threads:
        assert [client.post("/predict/gate", content=b"x").json()["result"] for _ in range(3)] == [
            1,
            1,
            1,
        ]
        assert client.post("/predict/gate", content=b"unreadable").status_code == 422
        broken = client.post("/predict/gate", content=b"broken")
        assert broken.status_code == 500 and "secret" not in broken.text
        assert broken.json()["detail"] == "node 'main': backend HealthGate raised ValueError"
        waiting = threads.submit(client.post, "/predict/gate", content=b"wait")
        assert GATES.inside.wait(60)
        refused = client.post("/predict/gate", content=b"x")
        assert refused.status_code == 429 and refused.headers["retry-after"] in ("1", "2")
        samples = values(client)
        assert (
            samples["penstock_requests_in_flight", pipeline]
            == samples["penstock_executors_busy", node]
            == 1
        )
        GATES.open.set()
        assert waiting.result().status_code == 200
        samples = values(client)
        outcomes = {
            outcome: samples["penstock_items_total", (node[0], ("outcome", outcome), node[1])]
            for outcome in ("ok", "soft", "failed")
        }
        assert outcomes == {"ok": 4, "soft": 1, "failed": 1}
        assert (
            samples["penstock_refused_total", (("pipeline", "gate"), ("reason", "queue_full"))] == 1
        )
        assert (
            samples["penstock_requests_in_flight", pipeline]
            == samples["penstock_queue_depth", node]
            == samples["penstock_executors_busy", node]
            == 0
        )
        for name in ("penstock_queue_seconds", "penstock_run_seconds", "penstock_batch_size"):
            buckets = [value for (key, _), value in samples.items() if key == f"{name}_bucket"]
            assert buckets == sorted(buckets) and buckets[-1] == samples[f"{name}_count", node] == 6
        assert samples["penstock_batch_size_sum", node] == 6 and samples["penstock_ready", ()] == 1
        assert "process_resident_memory_bytes" in dict(samples.keys())


def test_devices_in_use_and_items_that_moved_are_shown(running: Any) -> None:
    keys = {"backend": "HealthGate", "device": "cuda:0,cuda:1,cuda:2", "instance_num": 3}
    node = (("node", "main"), ("pipeline", "gate"))
    config = load({**keys, "pipeline": {"name": "gate"}})

    def in_use(client: httpx.Client) -> list[float]:
        samples = values(client)
        return [
            samples["penstock_device_in_use", (("device", f"cuda:{number}"), *node)]
            for number in range(3)
        ]

    with running(create_app(config)) as client:
        assert in_use(client) == [1, 1, 1]
        assert values(client)["penstock_items_moved_total", node] == 0
        assert client.post("/predict/gate", content=b"die").status_code == 500  # on two of them
        assert sorted(in_use(client)) == [0, 0, 1]
        assert values(client)["penstock_items_moved_total", node] == 1
        assert client.get("/health/ready").status_code == 200


def test_pressure_and_refusals_by_level_are_shown(running: Any) -> None:
    config = load(
        {
            "backend": "HealthGate",
            "pipeline": {"name": "gate", "max_requests": 1},
            "priority_levels": 2,
        }
    )
    pipeline = ("pipeline", "gate")

    def refused(client: httpx.Client, level: int) -> float:
        labels = (("level", str(level)), pipeline, ("reason", "queue_full"))
        count: float = values(client)["penstock_refused_total", labels]
        return count

    with running(create_app(config)) as client, ThreadPoolExecutor() as threads:
        assert client.post("/predict/gate", content=b"x").status_code == 200
        assert values(client)["penstock_pressure", (pipeline,)] == 0
        waiting = threads.submit(
            client.post, "/predict/gate", content=b"wait", headers={"penstock-priority": "1"}
        )
        assert GATES.inside.wait(10)
        for level in ("2", "1", "2"):
            answer = client.post(
                "/predict/gate", content=b"x", headers={"penstock-priority": level}
            )
            assert answer.status_code == 429
        assert (refused(client, 1), refused(client, 2)) == (1, 2)
        assert values(client)["penstock_pressure", (pipeline,)] == 1
        answer = client.get("/health/ready")  # the server still takes all that it can answer
        assert (answer.status_code, answer.json()) == (
            200,
            {"ready": True, "pressure": {"gate": {"queue_full": 3, "overloaded": 0}}},
        )
        GATES.open.set()
        assert waiting.result().status_code == 200
        assert client.post("/predict/gate", content=b"x").status_code == 200
        assert client.get("/health/ready").json() == {"ready": True}
        assert values(client)["penstock_pressure", (pipeline,)] == 0


def test_metrics_of_nodes_that_wait_for_others(running: Any) -> None:
    config = load({"each": {"backend": "Jump", "jump": "gate"}, "gate": {"backend": "HealthGate"}})
    with running(create_app(config)) as client:
        for content in (b"x", b"x", b"unreadable", b"broken"):
            answer = client.post("/predict/pipeline", content=content)
        assert answer.status_code == 500
        samples = values(client)
        assert re.fullmatch(
            r"queue\.each;\S+, run\.each;.*",
            client.post("/predict/pipeline", content=b"x").headers["server-timing"],
        )
    labels = (("node", "each"), ("pipeline", "pipeline"))
    for node in ("each", "gate"):
        for outcome, count in {
            "ok": 2,
            "soft": 1,
            "failed": 1,
            "expired": 0,
            "cancelled": 0,
        }.items():
            assert (
                samples["penstock_items_total", (("node", node), ("outcome", outcome), labels[1])]
                == count
            )
    assert samples["penstock_run_seconds_count", labels] == 4
    assert ("penstock_executors", labels) not in samples and (
        "penstock_queue_depth",
        labels,
    ) not in samples


def test_metrics_of_two_apps_and_of_openmetrics_clients(running: Any) -> None:
    one, two = create_app(load("Identity", name="one")), create_app(load("Identity", name="two"))
    with running(one) as first, running(two) as second:
        assert ("penstock_requests_in_flight", (("pipeline", "two"),)) not in values(first)
        assert ("penstock_requests_in_flight", (("pipeline", "one"),)) not in values(second)
        answer = first.get(
            "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        assert answer.headers["content-type"].startswith(
            "application/openmetrics-text"
        ) and answer.text.endswith("# EOF\n")


def test_a_repository_that_the_caller_started_is_not_started_again(running: Any) -> None:
    repository = Repository([load("Identity", name="one")])
    app = create_app(repository)
    assert app.state.penstock is repository
    with running(app) as client:
        assert client.post("/predict/one", content=b"x").status_code == 200
    assert repository.state == "closed"


@pytest.mark.parametrize(("ready_when", "status"), [("all", 503), ("any", 200)])
def test_one_pipeline_that_hangs(
    running: Any, ready_when: Literal["all", "any"], status: int
) -> None:
    gate = load({"backend": "HealthGate", "pipeline": {"name": "gate"}, "stuck_after": 0.2})
    app = create_app(
        [gate, load("Identity", name="other")], settings=Settings(ready_when=ready_when)
    )
    with running(app) as client:
        assert client.get("/health/ready").status_code == 200
        assert client.post("/predict/gate", content=b"wait").status_code == 504
        assert client.get("/health/ready").status_code == status
        assert client.get("/v2/health/ready").status_code == status
        assert values(client)["penstock_ready", ()] == (status == 200)
        # Each pipeline has its own state, and the other one answers.
        assert client.get("/v2/models/gate/ready").status_code == 400
        assert client.get("/v2/models/other/ready").status_code == 200
        assert client.post("/predict/other", content=b"x").status_code == 200
        GATES.open.set()


@pytest.mark.parametrize("ready_when", ["all", "any"])
async def test_a_repository_that_drains_is_not_ready(ready_when: Literal["all", "any"]) -> None:
    repository = Repository([load("Identity", name="one")])
    assert "not been started" in repository.why_not_ready(ready_when)
    await repository.start()
    assert repository.why_not_ready(ready_when) == ""
    await repository.close(0)
    assert repository.why_not_ready(ready_when) == "the server is closed"
