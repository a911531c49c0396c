"""The answers of a model process, whose front processes are in this process too."""

from __future__ import annotations

import asyncio
import io
import marshal
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from penstock import Pipeline, Settings, create_app, lifespan
from penstock.app.log_settings import log_settings
from penstock.app.openapi.status import STATUS_SCHEMAS
from penstock.app.processes.merge.front import FrontReports
from penstock.app.processes.merge.model import ServerProcesses, merge_processes
from penstock.app.processes.merge.report import (
    LOG,
    NOTHING,
    REPORT,
    NodeReport,
    PipelineReport,
    Report,
    write,
)
from penstock.app.server.connections import Connections
from penstock.app.server.logs import Log, configure_logging
from penstock.app.status.snapshot import Snapshots
from penstock.pipelines.other_processes import MemoryUse, NodeGauges
from penstock.pipelines.repository import Repository

from ...logging_state import logging_restored

NAME = {"pipeline": {"name": "it"}}
PART = {**NAME, "first": {"backend": "Identity"}}
WHOLE = {
    **NAME,
    "first": {"backend": "Identity", "next": "second", "max": 2},
    "second": {"backend": "Identity"},
}
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Front:
    """A front process that runs `first`."""

    def __init__(self, name: str, pid: int, part: Pipeline, token: str, log: Log) -> None:
        self.pid = pid
        self.part = part
        self.connections = Connections(Settings())
        self.reports = FrontReports(name, self.connections, log, lambda: [(token, part)])
        self.orders: list[Any] = []
        self.ordered = asyncio.Event()

    def answer(self, question: bytes) -> bytes:
        kind, *rest = marshal.loads(question)
        if kind == REPORT:
            return write(self.reports.report()._replace(pid=self.pid))
        self.orders.append((kind, *rest))
        self.ordered.set()
        return self.reports.answer(question)


class Links:
    """Links to fronts in this process."""

    def __init__(self) -> None:
        self.fronts: dict[int, Front | Told] = {}
        self.silent: set[int] = set()
        self.asked = asyncio.Queue[None]()
        self.open = asyncio.Event()
        self.open.set()
        self.on_linked: Callable[[int], None] = lambda number: None

    @property
    def numbers(self) -> set[int]:
        return set(self.fronts)

    async def query(self, payload: bytes, seconds: float) -> list[tuple[int, bytes]]:
        if marshal.loads(payload) == (REPORT,):
            self.asked.put_nowait(None)
        await self.open.wait()
        return [
            (number, front.answer(payload))
            for number, front in self.fronts.items()
            if number not in self.silent
        ]


class Server:
    """A server of several processes, all of which are here."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        links: Links,
        processes: ServerProcesses,
        repository: Repository,
    ) -> None:
        self.client = client
        self.repository = repository
        self.links = links
        self.processes = processes
        self.start: Callable[[int, int], Any]
        """Start a front of a number, and with a process id."""

    async def samples(self) -> dict[str, float]:
        """Return each sample by its name and labels. The parser rejects those that come twice."""
        answer = await self.client.get("/metrics", headers=OPENMETRICS)
        parse: Any = text_string_to_metric_families
        families = parse(answer.text)
        return {
            " ".join((one.name, *(f"{key}={one.labels[key]}" for key in sorted(one.labels)))): (
                one.value
            )
            for family in families
            for one in family.samples
        }

    async def status(self) -> Any:
        return (await self.client.get("/status")).json()

    async def count_of(self, node: str) -> float:
        return (await self.samples())[f"penstock_items_total node={node} outcome=ok pipeline=it"]


@pytest.fixture
def log() -> Iterator[Log]:
    log_settings.reset()
    with logging_restored():
        yield configure_logging(stream=io.StringIO())


@pytest.fixture
async def server(log: Log) -> AsyncIterator[Server]:
    app = create_app(WHOLE)
    links, repository = Links(), app.state.penstock
    processes = merge_processes(app, Connections(Settings()), log, links, fronts=2)
    transport = httpx.ASGITransport(app)
    async with (
        AsyncExitStack() as parts,
        lifespan(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        made = Server(client, links, processes, repository)

        async def start(number: int, pid: int) -> Front:
            part = await parts.enter_async_context(Pipeline.load(PART))
            token = repository.pipelines["it"].token
            front = links.fronts[number] = Front(f"front {number}", pid, part, token, log)
            links.on_linked(number)
            return front

        made.start = start
        yield made


async def test_nodes_in_fronts_are_counted_as_if_they_were_here(server: Server) -> None:
    one, two = await server.start(1, 11), await server.start(2, 12)
    for front, times in ((one, 3), (two, 2)):
        for _ in range(times):
            await front.part({"data": b"x"})
    (await server.client.post("/predict/it", content=b"x")).raise_for_status()
    samples = await server.samples()
    assert samples["penstock_items_total node=first outcome=ok pipeline=it"] == 6
    assert samples["penstock_items_total node=second outcome=ok pipeline=it"] == 1
    assert samples["penstock_run_seconds_count node=first pipeline=it"] == 6
    assert samples["penstock_executors node=first pipeline=it"] == 3
    (pipeline,) = (await server.status())["pipelines"]
    first = pipeline["nodes"][0]
    assert (first["name"], first["items"], first["batches"]) == ("first", 6, 6)
    assert [one["name"] for one in first["executors"]] == [
        "it/first#0",
        "front 1 it/first#0",
        "front 2 it/first#0",
    ]
    (model,) = (await server.client.get("/v2/models/it/stats")).json()["model_stats"]
    assert model["execution_count"] == 1  # a pipeline of several nodes: its requests
    assert await server.count_of("first") == 6  # asking again adds nothing


class Told:
    """A front process that reports what the test says of `first`."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.in_flight = 0
        self.gauges = NodeGauges()

    def answer(self, question: bytes) -> bytes:
        node = NodeReport("first", NOTHING, self.gauges)
        part = PipelineReport(self.token, self.in_flight, [node])
        return write(Report(11, 0, MemoryUse(), [], [part]))


async def test_what_fronts_hold_is_added_up(server: Server) -> None:
    pipeline = server.repository.pipelines["it"]
    front = server.links.fronts[1] = Told(pipeline.token)
    front.in_flight, front.gauges = 2, NodeGauges(3, 1024, 2, 1)
    samples = await server.samples()
    assert samples["penstock_requests_in_flight pipeline=it"] == 2
    for name, value in (("queue_depth", 3), ("ahead_bytes", 1024), ("executors_busy", 1)):
        assert samples[f"penstock_{name} node=first pipeline=it"] == value
    assert samples["nv_inference_pending_request_count model=it version=1"] == 3
    (shown,) = (await server.status())["pipelines"]
    assert (shown["in_flight"], shown["nodes"][0]["queued"]) == (2, 3)
    assert shown["mood"] == "busy"  # more than a batch waits there


@pytest.mark.parametrize(("seconds", "mood"), [(1.0, "calm"), (2.0, "busy")])
async def test_a_node_is_busy_when_all_its_executors_in_fronts_are(
    server: Server, seconds: float, mood: str
) -> None:
    """Those of the model process have little to do, then."""
    front = server.links.fronts[1] = Told(server.repository.pipelines["it"].token)
    front.in_flight, front.gauges = 1, NodeGauges(executors=2)
    snapshots = Snapshots(server.repository, Settings())
    await server.processes.refresh()
    _, totals = snapshots.take(None, 0.0)
    front.gauges = NodeGauges(executors=2, running_seconds=seconds)
    await server.processes.refresh()
    snapshot, _ = snapshots.take(totals, 1.0)
    assert snapshot["pipelines"][0]["mood"] == mood


async def test_what_a_dead_front_had_told_stays(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    one = await server.start(1, 11)
    await one.part({"data": b"x"})
    one.connections.closed["late"] = 4
    before = await server.samples()
    again = await server.start(1, 21)
    again.connections.closed["late"] = 1
    await again.part({"data": b"x"})
    after = await server.samples()
    assert after["penstock_items_total node=first outcome=ok pipeline=it"] == 2
    assert after["penstock_connections_closed_total reason=late"] == 5
    assert [name for name, value in before.items() if _grows(name) and after[name] < value] == []
    del server.links.fronts[1]
    caplog.clear()
    last = await server.samples()
    assert [name for name, value in after.items() if _grows(name) and last[name] < value] == []
    assert "process_resident_memory_bytes process=front 1" not in last
    assert not caplog.messages  # that it does not report is no news


def _grows(name: str) -> bool:
    return name.split(maxsplit=1)[0].endswith(("_total", "_count", "_sum", "_bucket"))


async def test_a_silent_front_is_named_and_its_gauges_left_out(server: Server) -> None:
    one, two = await server.start(1, 11), await server.start(2, 12)
    await one.part({"data": b"x"})
    connection: Any = object()
    for front in (one, two):
        front.connections.open.add(connection)
    server.processes.take_processes(
        [
            ("parent", os.getppid(), 0),
            ("models", os.getpid(), 1),
            ("front 1", os.getpid(), 0),
            ("front 2", os.getpid(), 2),
        ]
    )
    before = await server.samples()
    assert before["penstock_connections"] == 2
    assert before["penstock_process_up process=front 1"] == 1
    server.links.silent = {1}
    samples = await server.samples()
    assert samples["penstock_connections"] == 1
    assert samples["penstock_process_up process=front 1"] == 0
    assert samples["penstock_process_up process=front 2"] == 1
    assert samples["penstock_process_restarts_total process=front 2"] == 2
    assert samples["penstock_items_total node=first outcome=ok pipeline=it"] == 1
    assert samples["penstock_executors node=first pipeline=it"] == 2
    status = await server.status()
    shown = {one["name"]: one for one in status["processes"]}
    assert list(shown) == ["parent", "models", "front 1", "front 2"]
    assert [one["state"] for one in shown.values()] == ["up", "up", "not answering", "up"]
    assert [one["connections"] for one in shown.values()] == [None, None, None, 1]
    assert [one["restarts"] for one in shown.values()] == [0, 1, 0, 2]
    described = STATUS_SCHEMAS["ProcessStatus"]["required"]
    assert all(sorted(one) == sorted(described) for one in shown.values())
    assert all(one["rss_bytes"] > 0 and one["cpu_s"] >= 0 for one in shown.values())
    assert status["ready"]


async def test_each_process_has_metrics_of_its_own(server: Server) -> None:
    await server.start(1, 11)
    samples = await server.samples()
    for process in ("parent", "models", "front 1"):
        assert samples[f"process_resident_memory_bytes process={process}"] > 0
    assert "process_resident_memory_bytes" not in samples


async def test_memory_of_all_processes_is_added_up(server: Server) -> None:
    alone = (await server.status())["memory"]
    for number in (1, 2):  # which have the same budget here
        await server.start(number, number)
    status, samples = await server.status(), await server.samples()
    assert status["memory"]["limit_bytes"] == 3 * alone["limit_bytes"]
    assert samples["penstock_memory_limit_bytes"] == 3 * alone["limit_bytes"]


async def test_it_is_ready_when_all_fronts_have_been_linked(server: Server) -> None:
    answers = [await server.client.get("/health/ready")]
    for number in (1, 2):
        await server.start(number, number)
        answers.append(await server.client.get("/health/ready"))
    del server.links.fronts[1]
    answers.append(await server.client.get("/health/ready"))
    assert [answer.status_code for answer in answers] == [503, 503, 200, 200]
    assert answers[1].json()["reason"] == "processes are starting: front 2"


async def test_who_comes_while_fronts_are_asked_gets_the_same_answer(server: Server) -> None:
    await server.start(1, 11)
    server.links.open.clear()
    leaving = asyncio.create_task(server.processes.refresh())
    reading = [asyncio.create_task(server.client.get("/metrics")) for _ in range(3)]
    await server.links.asked.get()
    leaving.cancel()  # it ends nobody else's scrape
    server.links.open.set()
    assert [answer.status_code for answer in await asyncio.gather(*reading)] == [200] * 3
    assert server.links.asked.empty()


async def test_log_settings_reach_all_fronts_and_those_that_come_later(server: Server) -> None:
    """A front may have been started, or changed, by a model process before this one."""
    one = await server.start(1, 11)
    await one.ordered.wait()
    assert one.orders == [(LOG, log_settings.read())]
    log_settings.update({"log_info": False})
    await log_settings.spread()
    two = await server.start(2, 12)
    await two.ordered.wait()
    assert one.orders[1] == two.orders[0] == (LOG, log_settings.read())
    assert not log_settings.read()["log_info"]
