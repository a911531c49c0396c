"""A second level of the cache: a Redis or Valkey server that several processes share.

It may only help. A look-up that takes longer than 5 ms is given up and the request runs; a server
that fails or is slow is left alone for a while. What it holds is not trusted (`wire.py`). One task
asks for all keys that came meanwhile in one round trip, another one writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any

from penstock.backends.errors import ConfigError, Problem

logger = logging.getLogger("penstock.cache")

LOOK_SECONDS = 0.005
"""The longest that a request waits for a look-up."""

COMMAND_SECONDS = 1.0
"""The longest that a round trip may take, and the making of a connection."""

KEY_PREFIX = b"penstock:1:"
"""The beginning of each key. The number is the version of the format of keys and values."""

MAX_VALUE_BYTES = 1 << 20
"""Larger answers are neither written nor read."""

DEFAULT_SECONDS = 24 * 3600
"""How long an answer stays there if its pipeline does not say."""

MAX_KEYS = 64
"""So many keys are asked for in one round trip."""

MAX_WRITING_BYTES = 8 << 20
"""Answers that wait to be written hold so much at most; more are not written."""

WRITE_BYTES = 256
"""Each of these takes about so many bytes more than its own."""

FAILURES = 5
"""After so many failures one after another the server is left alone."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0

Found = Callable[[bytes | None], None]


class RedisLevel:
    """Answers in a Redis or Valkey server. A `SecondLevel`. Use it on one event loop."""

    def __init__(self, url: str, server: str) -> None:
        """`url`: `redis://user:password@host:6379/0`, `rediss://…` for TLS, `unix:///path`.
        `server`: the same for the log, without a password.

        Raises `ConfigError` if the client is not installed.
        """
        try:
            import redis.asyncio
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigError(
                [
                    Problem(
                        "cache_redis needs the client of Redis, which is not installed: "
                        "pip install 'penstock-serve[redis]'"
                    )
                ]
            ) from None
        self.server = server
        # Two clients of one connection each, so that a large write holds up no look-up.
        self._reads, self._writes_to = (
            redis.asyncio.Redis.from_url(
                url,
                socket_timeout=COMMAND_SECONDS,
                socket_connect_timeout=COMMAND_SECONDS,
                retry=Retry(NoBackoff(), 0),
                max_connections=1,
            )
            for _ in range(2)
        )
        self.hits = 0
        self.misses = 0
        self.failures = 0
        self.late = 0  # look-ups that were given up
        self.dropped = 0  # answers that were not written
        self._failed = 0  # one after another
        self._pause = FIRST_PAUSE_SECONDS
        self.is_up = False
        """False while the server is left alone: it has not answered yet, or it failed."""
        self._probe: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._asked: deque[_Look] = deque()
        self._writes: deque[tuple[bytes, bytes, int]] = deque()
        self._writing_bytes = 0
        self._asked_at: float | None = None  # when the present round trip began
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<RedisLevel {self.server}: {'up' if self.is_up else 'left alone'}>"

    async def connect(self) -> None:
        """Connect, within a second. If that fails, it is tried again in the background.

        So no look-up pays for the connection.
        """
        async with self._connecting:  # pipelines load side by side
            if self._probe is None and not self.is_up:
                await self._ping()

    async def _ping(self) -> None:
        answers = [await self._try(client.ping()) for client in (self._reads, self._writes_to)]
        if all(answers):
            self.is_up, self._failed, self._pause = True, 0, FIRST_PAUSE_SECONDS
        elif self._probe is None:
            self._leave_alone("it does not answer")

    async def _probe_again(self) -> None:
        while not self.is_up:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            await self._ping()
        self._probe = None
        logger.info("the cache in Redis at %s is used again", self.server)

    def status(self) -> dict[str, Any]:
        return {
            "up": self.is_up,
            "hits": self.hits,
            "misses": self.misses,
            "failures": self.failures,
            "late": self.late,
            "dropped": self.dropped,
        }

    def look(self, key: bytes, found: Found) -> bool:
        now = monotonic()
        if not self.is_up:
            return False
        if self._asked_at is not None and now - self._asked_at > LOOK_SECONDS:
            self.late += 1  # the one before it is late already
            return False
        loop = asyncio.get_running_loop()
        look = _Look(KEY_PREFIX + key, found)
        look.timer = loop.call_later(LOOK_SECONDS, self._give_up, look)
        self._asked.append(look)
        if self._reader is None:
            self._reader = loop.create_task(self._guarded(self._read))
        return True

    def _give_up(self, look: _Look) -> None:
        self.late += 1
        look.answer(None)

    def keep(self, key: bytes, content: bytes, seconds: float | None) -> None:
        held = len(content) + WRITE_BYTES
        if (
            len(content) > MAX_VALUE_BYTES
            or self._writing_bytes + held > MAX_WRITING_BYTES
            or not self.is_up
        ):
            self.dropped += 1
            return
        milliseconds = max(1, round(1000 * (DEFAULT_SECONDS if seconds is None else seconds)))
        self._writing_bytes += held
        self._writes.append((KEY_PREFIX + key, content, milliseconds))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._guarded(self._write))

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception:
            logger.exception("the cache in Redis at %s", self.server)
            self._leave_alone("an error of this program")

    async def _read(self) -> None:
        try:
            while self._asked:
                looks = [self._asked.popleft() for _ in range(min(MAX_KEYS, len(self._asked)))]
                pipeline = self._reads.pipeline(transaction=False)
                for look in looks:
                    # Not GET, so that no value is read that is too large. One byte more tells.
                    pipeline.getrange(look.key, 0, MAX_VALUE_BYTES)
                self._asked_at = began = monotonic()
                values = await self._try(pipeline.execute())
                self._asked_at = None
                if values is not None:
                    if monotonic() - began > LOOK_SECONDS:
                        self._fail("it answers slowly")
                    else:
                        self._failed, self._pause = 0, FIRST_PAUSE_SECONDS
                for look, value in zip(looks, values or [None] * len(looks), strict=True):
                    content = value if value and len(value) <= MAX_VALUE_BYTES else None
                    self.hits += content is not None
                    self.misses += content is None
                    look.answer(content)
        finally:
            self._asked_at = self._reader = None
            while self._asked:
                self._asked.popleft().answer(None)

    async def _write(self) -> None:
        try:
            while self._writes:
                key, content, milliseconds = self._writes.popleft()
                self._writing_bytes -= len(content) + WRITE_BYTES
                if (
                    not self.is_up
                    or await self._try(self._writes_to.set(key, content, px=milliseconds)) is None
                ):
                    self.dropped += 1
        finally:
            self._writer = None

    async def _try(self, command: Awaitable[Any]) -> Any:
        """Return what a command returns; None if it failed."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(type(error).__name__)
            return None

    def _fail(self, reason: str) -> None:
        self.failures += 1
        self._failed += 1
        if self._failed >= FAILURES and self.is_up:
            self._leave_alone(reason)

    def _leave_alone(self, reason: str) -> None:
        """Use the server no more until it answers again, which is tried in the background."""
        self.is_up = False
        logger.warning(
            "the cache in Redis at %s is not used until it answers again: %s", self.server, reason
        )
        if self._probe is None:
            self._probe = asyncio.get_running_loop().create_task(self._probe_again())

    async def close(self) -> None:
        """Close the connections. What was not written yet is not."""
        tasks = [task for task in (self._reader, self._writer, self._probe) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writes.clear()
        await self._reads.aclose()
        await self._writes_to.aclose()


class _Look:
    """A look-up. It is answered once: by what was found, or because it took too long."""

    __slots__ = ("_found", "key", "timer")

    def __init__(self, key: bytes, found: Found) -> None:
        self.key = key
        self._found: Found | None = found
        self.timer: asyncio.TimerHandle

    def answer(self, content: bytes | None) -> None:
        found, self._found = self._found, None
        if found is not None:
            self.timer.cancel()
            found(content)
