"""`Shadow`: all that `penstock shadow` adds to a server."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from penstock.pipelines.repository import Repository

from ..settings import Settings
from ..v2.routes import ProtocolApp
from .comparisons import Comparisons
from .forwarding import ForwardingRules
from .front import HttpFront
from .memory import Memory
from .options import ShadowOptions
from .report import summary
from .switch import Switch
from .upstream import Upstream, UpstreamError

if TYPE_CHECKING:  # it needs an extra
    from ..grpc.server import MakeFront

logger = logging.getLogger("penstock.shadow")

PROBE_SECONDS = 5.0
PROBE_BYTES = 1 << 16
REPORT_EVERY_SECONDS = 60.0
LAST_SECONDS = 5.0
"""So long the comparisons that run may go on when the server ends."""


class Shadow:
    """The shadow of one Triton. Make it before the event loop that serves; `start` it there."""

    def __init__(self, repository: Repository, options: ShadowOptions, settings: Settings) -> None:
        self.options = options
        self.switch = Switch(repository, options)
        self.comparisons = Comparisons(options, self.switch.compared, self.switch.end_here)
        self.final: dict[str, Any] | None = None
        """The report when the server ended, once it has."""
        self._repository = repository
        self._settings = settings
        self._upstream = None if options.http is None else Upstream(options.http, options.timeout)
        self._front: HttpFront | None = None
        self._memory = Memory(options)
        self._began = time.time()
        self._tasks: list[asyncio.Task[None]] = []

    def front(self, protocol: ProtocolApp) -> ASGIApp:
        """Return what answers the paths below /v2 instead of the protocol's own app."""
        rules = ForwardingRules(
            protocol, self._upstream, self.switch, self.comparisons, self._settings
        )
        self._front = HttpFront(rules)
        return self._front

    def grpc_front(self) -> MakeFront | None:
        """Return what makes the front of the gRPC server, once `front` has been called."""
        front = self._front
        if self.options.grpc is None or front is None:
            return None
        from .rpc import GrpcFront
        from .rpc_forwarding import RpcRules

        rules = RpcRules(
            front.protocol,
            self.options,
            self.switch,
            self.comparisons,
            self._settings,
            front.not_repeated.append,
        )
        return partial(GrpcFront, rules)

    def start(self) -> None:
        """Look at Triton, and log reports from time to time."""
        for work in (self._probe(), self._log_reports(), self.switch.watch()):
            self._tasks.append(asyncio.create_task(work, context=contextvars.Context()))

    async def end(self) -> None:
        """Compare what has been answered, and make the final report."""
        for task in self._tasks:
            task.cancel()
        await self.comparisons.finish(LAST_SECONDS)
        self.final = await self.report()
        if self._upstream is not None:
            self._upstream.close()

    async def report(self) -> dict[str, Any]:
        """Return what `GET /shadow` answers."""
        options, switch = self.options, self.switch
        return {
            "seconds": round(time.time() - self._began, 1),
            "from": {
                "http": None if options.http is None else str(options.http),
                "grpc": options.grpc,
            },
            "tolerance": options.tolerance._asdict(),
            "switch": {
                "after": options.switch_after,
                "done": switch.is_done,
                "nothing_left_at_triton": switch.is_done and not switch.is_left,
                "in_the_way": [] if switch.is_done else switch.why_not(),
            },
            "held": {"requests": self.comparisons.count, "bytes": self.comparisons.bytes},
            "not_repeated": [] if self._front is None else list(self._front.not_repeated),
            "memory": await self._memory.read(),
            "models": {name: model.describe() for name, model in sorted(switch.models.items())},
        }

    async def _probe(self) -> None:
        """Say at the start whether Triton answers. If it does not yet, requests fail until then."""
        upstream = self._upstream
        if upstream is None:
            return
        try:
            status, _ = await upstream.fetch(b"/v2/health/ready", PROBE_SECONDS, PROBE_BYTES)
        except UpstreamError as error:
            logger.error(
                "Triton at %s can't be reached: %s; requests are answered with 502 until it can",
                upstream.place,
                error,
            )
        else:
            ready = "is ready" if status == 200 else f"is not ready yet (status {status})"
            logger.info("shadowing Triton at %s, which %s", upstream.place, ready)

    async def _log_reports(self) -> None:
        compared = 0
        while True:
            await asyncio.sleep(REPORT_EVERY_SECONDS)
            now = sum(model.compared for model in self.switch.models.values())
            if now != compared:
                compared = now
                for line in summary(await self.report()):
                    logger.info("%s", line)
