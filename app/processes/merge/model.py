"""The model process's side: its answers tell of all processes of the server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import marshal
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from fastapi import FastAPI
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.pipelines.other_processes import NOTHING, MemoryUse, NodeGauges, OtherProcesses
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository

from ...log_settings import log_settings
from ...server.connections import Connections
from ...server.logs import Log
from ...server.metrics import ConnectionCollector
from ...status.totals import nodes_of
from ..control import MODELS, Role
from . import report
from .families import Sum, growing, of_process, packed
from .report import Counts, NodeReport, Report, add_news, sum_of_gauges
from .usage import usage_of

logger = logging.getLogger("penstock.processes")

PARENT = "parent"

ANSWER_SECONDS = 1.0
"""The longest that a front may take for its report. One that takes longer is named and left out."""

Processes = Sequence[tuple[str, int, int]]
"""The name, id and restarts of each process, as the parent tells it. Id 0: it does not run now."""


class Links(Protocol):
    """The links to front processes, as far as they are needed here."""

    on_linked: Callable[[int], None]
    """Called with the number of a front that has just been linked."""

    @property
    def numbers(self) -> Collection[int]:
        """The numbers of the fronts that are linked."""
        ...

    async def query(self, payload: bytes, seconds: float) -> list[tuple[int, bytes]]:
        """Ask all fronts. Return the answers that came in time, with the fronts' numbers."""
        ...


class ServerProcesses(OtherProcesses):
    """All processes of the server, as the model process sees them. Use it on its event loop."""

    def __init__(self, repository: Repository, links: Links, fronts: int) -> None:
        """`fronts`: how many front processes there are to be."""
        self._links = links
        self._pipeline_of = repository.pipeline_of
        self._waits_for = set(range(1, fronts + 1))
        self._fronts = fronts
        self._told: dict[str, tuple[int, int]] = {}  # id and restarts, by name
        self._reports: dict[int, Report] = {}  # the last one of each front that has not gone
        self._answered: set[int] = set()  # those whose report is of the last refresh
        self._counts: dict[int, dict[tuple[str, str], Counts]] = {}  # of fronts, by token and node
        self._gone = Sum()  # what fronts have counted that have gone
        self._in_flight: WeakKeyDictionary[Pipeline, int] = WeakKeyDictionary()
        self._gauges: WeakKeyDictionary[Pipeline, dict[str, NodeGauges]] = WeakKeyDictionary()
        self._asking: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[Any]] = set()
        self._parent = ProcessCollector(pid=lambda: self._pid_of(PARENT), registry=None)
        links.on_linked = self._on_linked
        log_settings.spread = self._spread_log_settings

    def __repr__(self) -> str:
        return f"<ServerProcesses {len(self._answered)} of {self._fronts} fronts have answered>"

    @property
    def not_ready(self) -> str:
        """Why the server is not ready: at its start, until all fronts have been linked."""
        if not self._waits_for:
            return ""
        names = ", ".join(str(Role(number)) for number in sorted(self._waits_for))
        return f"processes are starting: {names}"

    def take_processes(self, processes: Processes) -> None:
        """Take what the parent tells of all processes."""
        self._told = {name: (pid, restarts) for name, pid, restarts in processes}

    async def refresh(self) -> None:
        """Ask all fronts for their reports. Who comes while they are asked waits for the same."""
        if self._asking is None or self._asking.done():
            self._asking = self._task(self._ask())
        await asyncio.shield(self._asking)

    def in_flight(self, pipeline: Pipeline) -> int:
        return self._in_flight.get(pipeline, 0)

    def gauges(self, pipeline: Pipeline, node: str) -> NodeGauges:
        return self._gauges.get(pipeline, {}).get(node, NOTHING)

    def memory(self) -> MemoryUse:
        told = [self._reports[number].memory for number in self._answered]
        return MemoryUse(
            sum(one.used for one in told),
            sum(one.limit for one in told),
            sum(one.refused for one in told),
        )

    def described(self) -> list[dict[str, Any]]:
        fronts = [str(Role(number)) for number in range(1, self._fronts + 1)]
        return [self._described(name) for name in (PARENT, MODELS, *fronts)]

    def merged(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """Return the metrics of this process with those of all others."""
        total = Sum()
        total.add(of_process(packed(families), MODELS))
        total.add(of_process(packed(self._parent.collect()), PARENT))
        total.add(self._gone.families())
        for number, told in self._reports.items():
            of_front = of_process(told.families, str(Role(number)))
            total.add(of_front if number in self._answered else growing(of_front))
        return total.metrics()

    async def _ask(self) -> None:
        question = marshal.dumps((report.REPORT,))
        answers = {
            number: content
            for number, content in await self._links.query(question, ANSWER_SECONDS)
            if content  # it has no memory for an answer
        }
        for number in [one for one in self._reports if one not in self._links.numbers]:
            self._bury(number)
        for number, content in answers.items():
            self._take(number, report.read(content))
        late = self._reports.keys() - answers.keys()
        for number in late & self._answered:
            logger.warning(
                "%s has not reported in %g s: metrics leave it out", Role(number), ANSWER_SECONDS
            )
        self._answered = set(answers)
        self._sum_up()

    def _take(self, number: int, now: Report) -> None:
        """Add what a front has counted since its last report."""
        before = self._reports.get(number)
        if before is not None and before.pid != now.pid:
            self._bury(number)
        self._reports[number] = now
        known = self._counts.get(number, {})
        self._counts[number] = {}
        for part in now.pipelines:
            pipeline = self._pipeline_of(part.token)
            nodes = {} if pipeline is None else {node.name: node for node in nodes_of(pipeline)}
            for node in part.nodes:
                self._counts[number][part.token, node.name] = node.counts
                if node.name in nodes:
                    counted = known.get((part.token, node.name), report.NOTHING)
                    add_news(nodes[node.name].statistics, node.counts, counted)

    def _bury(self, number: int) -> None:
        """Keep what a front had counted that has gone. Its nodes' counts are in ours already."""
        gone = self._reports.pop(number)
        self._counts.pop(number, None)
        self._gone.add(growing(of_process(gone.families, str(Role(number)))))

    def _sum_up(self) -> None:
        """Sum what fronts hold at this moment: those that have answered."""
        self._in_flight.clear()
        self._gauges.clear()
        nodes: dict[Pipeline, list[NodeReport]] = {}
        for number in self._answered:
            for part in self._reports[number].pipelines:
                pipeline = self._pipeline_of(part.token)
                if pipeline is not None:
                    self._in_flight[pipeline] = self.in_flight(pipeline) + part.in_flight
                    nodes.setdefault(pipeline, []).extend(part.nodes)
        for pipeline, reported in nodes.items():
            self._gauges[pipeline] = {
                name: sum_of_gauges([one.gauges for one in reported if one.name == name])
                for name in {one.name for one in reported}
            }

    def _described(self, name: str) -> dict[str, Any]:
        number = _number(name)
        told = self._reports.get(number) if number in self._answered else None
        pid = self._pid_of(name)
        usage = usage_of(pid) if pid else None
        state = "up"
        if usage is None or (number and number not in self._links.numbers):
            state = "starting"
        elif number and told is None:
            state = "not answering"
        return {
            "name": name,
            "pid": pid,
            "state": state,
            "connections": None if told is None else told.connections,
            "cpu_s": None if usage is None else round(usage.cpu_seconds, 2),
            "rss_bytes": None if usage is None else usage.rss_bytes,
            "restarts": self._told.get(name, (0, 0))[1],
        }

    def _pid_of(self, name: str) -> int:
        if name == MODELS:
            return os.getpid()
        if name in self._told:
            return self._told[name][0]
        if name == PARENT:
            return os.getppid()
        known = self._reports.get(_number(name))
        return 0 if known is None else known.pid

    def _on_linked(self, number: int) -> None:
        self._waits_for.discard(number)
        # A front may have those of a model process before this one.
        self._telling.add(task := self._task(self._spread_log_settings()))
        task.add_done_callback(self._telling.discard)

    async def _spread_log_settings(self) -> None:
        order = marshal.dumps((report.LOG, log_settings.read()))
        await self._links.query(order, ANSWER_SECONDS)

    def _task(self, work: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(work, context=contextvars.Context())


class ProcessesCollector(Collector):
    """Collects which processes are up, and how often they were started again."""

    def __init__(self, processes: ServerProcesses) -> None:
        self._processes = processes

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering must not collect."""
        return ()

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "penstock_process_up", "1 if a process of the server answers.", labels=["process"]
        )
        restarts = CounterMetricFamily(
            "penstock_process_restarts",
            "Times that a process of the server ended and was started again.",
            labels=["process"],
        )
        for process in self._processes.described():
            up.add_metric([process["name"]], float(process["state"] == "up"))
            restarts.add_metric([process["name"]], process["restarts"])
        return iter((up, restarts))


def merge_processes(
    app: FastAPI,
    connections: Connections,
    log: Log,
    links: Links,
    fronts: int,
) -> ServerProcesses:
    """Let the answers of an app that `make_app` made tell of all processes of the server.

    `fronts`: how many front processes there are to be.
    """
    repository, metrics = app.state.penstock, app.state.metrics
    repository.others = processes = ServerProcesses(repository, links, fronts)
    # The connections of this process are tunnels, whose clients' connections the fronts count.
    for collector in (
        log,
        ConnectionCollector(connections, tunnels=True),
        ProcessesCollector(processes),
    ):
        metrics.registry.register(collector)
    metrics.merge = processes.merged
    return processes


def _number(name: str) -> int:
    """Return the number of a front; 0 for other processes."""
    return int(name.rpartition(" ")[2]) if name not in (PARENT, MODELS) else 0
