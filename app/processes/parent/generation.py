"""One model process and its fronts, which were started together."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from ..control import Control, Role
from .child import Child
from .children import Children

logger = logging.getLogger("penstock.serve")

SHORT_LIFE_SECONDS = 10.0
"""A process that ends sooner counts as one that died while it started."""

MAX_PAUSE_SECONDS = 30.0
"""The longest pause before a process that dies again and again is restarted."""

END_SECONDS = 5.0
"""So much longer than it was told a process may take to end before it is killed."""


class Generation:
    """One model process and `count` fronts, of one release.

    `started` becomes "" once all of them are ready, or the reason why that failed. After that, one
    that dies is restarted. `on_change` is called after each change of one of them.
    """

    def __init__(
        self,
        children: Children,
        count: int,
        on_change: Callable[[Generation], None],
        on_models: Callable[[Generation], None],
    ) -> None:
        """`on_models` is called with each model process that was started, before anything else."""
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[str] = loop.create_future()
        self.restarts: dict[Role, int] = {Role(number): 0 for number in range(count + 1)}
        self.problems: list[str] = []
        """The problems in files, if it failed for them."""
        self.fronts: list[Child] = []
        """Front 1, front 2, …: also those that have died and not been restarted yet."""
        self.may_lack: set[str] | None = None
        """The pipelines that may be left out of a new release; None: any."""
        self._models: list[Child] = []  # the model process, once it was started
        self._children = children
        self._count = count
        self._on_change = on_change
        self._on_models = on_models
        self._loop = loop
        self._serial = 0
        self._pauses: dict[Role, float] = {}
        self._restarting: set[Role] = set()
        self._ending = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Generation of {len(self.fronts)} fronts>"

    @property
    def models(self) -> Child:
        """The model process, which was started: perhaps it has died."""
        return self._models[0]

    @property
    def all(self) -> list[Child]:
        return [*self._models, *self.fronts]

    def start(self) -> None:
        """Start all processes."""
        try:
            self._start_models()
            for number in range(1, self._count + 1):
                self.fronts.append(self._start(Role(number)))
                self._link(self.fronts[-1])
        except OSError as error:
            self.fail(f"a process can't be started: {error.strerror}")

    def fail(self, reason: str) -> None:
        """Give up, if not all of them are ready yet."""
        if not self.started.done():
            self._ending = True
            self.started.set_result(reason)

    async def retire(self, seconds: float) -> None:
        """End the fronts once their last connection has, but after `seconds` at most; then the
        model process.
        """
        self._ending = True
        self.models.send(Control.RETIRE, seconds)
        for front in self.fronts:
            front.send(Control.RETIRE, seconds)
        await self._wait_for_end(self.fronts, seconds)
        await self.end_models(1)

    async def drain(self, seconds: float) -> None:
        """Finish the requests in flight, in so many seconds at most. The fronts go on listening."""
        self._ending = True
        for child in self.all:
            child.send(Control.DRAIN)
        await self._wait(lambda: self.models.drained or not self.models.alive, seconds + 1)

    async def end_fronts(self, seconds: float) -> None:
        await self._end(self.fronts, seconds)

    async def end_models(self, seconds: float) -> None:
        await self._end(self._models, seconds)

    async def end(self, seconds: float) -> None:
        """End all processes, the model process after its fronts."""
        await self.end_fronts(seconds)
        await self.end_models(1)

    async def abandon(self) -> None:
        """End all processes of a generation that serves no client."""
        self._ending = True
        for front in self.fronts:
            front.kill()
        await self.end(0)

    async def _end(self, children: list[Child], seconds: float) -> None:
        self._ending = True
        for child in children:
            child.send(Control.END, seconds)
        await self._wait_for_end(children, seconds)

    async def _wait_for_end(self, children: list[Child], seconds: float) -> None:
        def all_ended() -> bool:
            return not any(child.alive for child in children)

        await self._wait(all_ended, seconds + END_SECONDS)
        for child in children:
            if child.alive:
                logger.warning("%s did not end in time: it is killed", child.role)
                child.kill()
        await self._wait(all_ended, None)

    async def _wait(self, condition: Callable[[], bool], seconds: float | None) -> None:
        """Wait until a condition holds, at most so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    def _start(self, role: Role) -> Child:
        child = self._children.start(role)
        child.on_change = self._child_changed
        return child

    def _start_models(self) -> None:
        self._models = [self._start(Role(0))]
        self._on_models(self)

    def _link(self, front: Child) -> None:
        """Connect a front and the model process."""
        self._serial += 1
        front.link = self._serial
        front.linked = front.prepared = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            front.send(Control.LINK, self._serial, descriptors=[ours.fileno()])
            self.models.send(Control.LINK, front.role.number, descriptors=[theirs.fileno()])

    def _child_changed(self, child: Child) -> None:
        if not child.alive:
            if child is self.models:
                for front in self.fronts:
                    front.linked = front.prepared = False
            if not self._ending:
                self._restart_later(child)
        elif child.ready and (child.prepared or child is self.models):
            self._child_serves(child)
        self._changed.set()
        self._on_change(self)

    def _child_serves(self, child: Child) -> None:
        if child.role in self._restarting:
            self._restarting.discard(child.role)
            logger.info("%s (process %d): ready again", child.role, child.pid)
        if self.may_lack is not None:
            lacks = [
                f"{name}: {why}"
                for name, why in self.models.left_out.items()
                if name not in self.may_lack
            ]
            if lacks:
                self.fail("; ".join(lacks))
        if not self.started.done() and all(
            child.ready and (child.prepared or child is self.models) for child in self.all
        ):
            self.started.set_result("")

    def _restart_later(self, child: Child) -> None:
        if not self.started.done():
            self.problems = child.problems
            told = child.failure or child.problems
            self.fail(child.end if told else f"{child.role}: {child.end}")
            return
        before = self._pauses.get(child.role, -1.0)
        pause = 0.0
        if time.monotonic() - child.started_at < SHORT_LIFE_SECONDS and before >= 0:
            pause = min(max(1.0, 2 * before), MAX_PAUSE_SECONDS)
        self._pauses[child.role] = pause
        when = f"in {pause:g} s" if pause else "at once"
        logger.error("%s (process %d): %s; restarting %s", child.role, child.pid, child.end, when)
        self._loop.call_later(pause, self._restart, child.role)

    def _restart(self, role: Role) -> None:
        if self._ending:
            return
        self.restarts[role] += 1
        self._restarting.add(role)
        try:
            if role.number:
                front = self.fronts[role.number - 1] = self._start(role)
                if self.models.alive:
                    self._link(front)
            else:
                self._start_models()
                for front in self.fronts:
                    if front.alive:
                        self._link(front)
        except OSError as error:
            logger.error("%s can't be restarted: %s", role, error.strerror)
            child = self.fronts[role.number - 1] if role.number else self.models
            if child.alive:  # it could not be linked
                child.kill()  # and is restarted when it has ended
            else:
                self._loop.call_later(MAX_PAUSE_SECONDS, self._restart, role)
            return
        self._on_change(self)
