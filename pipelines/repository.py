"""Which pipelines there are, by name: loading, unloading and replacing them while the others serve. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from penstock.backends.errors import ConfigError, NotFound, NotReady, Problem
from penstock.backends.suggestions import did_you_mean

from .config.load import PipelineConfig, from_model, load, load_directory
from .config.source import name_of
from .pipeline import Pipeline

logger = logging.getLogger("penstock.repository")

DRAIN_TIMEOUT = 30.0
"""Seconds that requests inside a pipeline get when it is replaced or taken away."""


class Repository:
    """Named pipelines. Serves between `start` and `close`, on one event loop at a time; may be started again after `close`.

    `pipelines` holds those that are loaded, `models` their exposed nodes too; both may be read directly on that loop. `generation` changes
    whenever what they hold does.
    """

    def __init__(
        self, configs: Iterable[PipelineConfig] = (), *, directory: Path | None = None
    ) -> None:
        """`directory`: where pipelines lie that may be loaded later by name alone. Raises ConfigError if two have one name."""
        self.configs: dict[str, PipelineConfig] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.models: dict[str, Pipeline] = {}
        self.generation = 0
        self.state = "created"  # then loading, ready, draining, closed
        self.directory = directory
        self.on_change: Callable[[], None] = lambda: None
        """Called after every change of `generation`."""
        self._loading: dict[str, Pipeline] = {}
        self._failed: dict[
            str, str
        ] = {}  # why the last attempt failed, of those that are not loaded
        self._draining: set[asyncio.Task[None]] = set()
        self._unloading: set[Pipeline] = set()  # those taken away in which something is inside
        self._locks: dict[str, asyncio.Lock] = {}
        self._closing: asyncio.Future[None] | None = None
        for config in configs:
            if config.name in self.configs:
                raise _taken(config, config.name)
            self._check_names(config)
            self.configs[config.name] = config

    @classmethod
    def read(cls, source: Any = None, *, labels: str | os.PathLike[str] | None = None) -> Self:
        """The pipelines of whatever describes some: a TOML file, a directory of such, an `.onnx` classifier (with `labels`), a dict,
        an expression, a `PipelineConfig`, several of these in a list, or None.

        Nothing is loaded. Raises ConfigError with all problems, TypeError for another type.
        """
        if source is None:
            return cls()
        if isinstance(source, (list, tuple)):
            return cls([config for each in source for config in _configs(each, labels)])
        directory = (
            Path(source)
            if isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
            else None
        )
        return cls(_configs(source, labels), directory=directory)

    def __repr__(self) -> str:
        return f"<Repository {self.state}: {', '.join(f'{name} {state}' for name, state in self.states().items()) or 'empty'}>"

    # reading

    def get(self, name: str) -> Pipeline:
        """A loaded pipeline. Raises `NotReady` for one that is not loaded yet or failed to, `NotFound` for others."""
        found = self.pipelines.get(name)
        if found is not None:
            return found
        if name in self._loading:
            raise NotReady(self._loading[name].not_ready)
        if name in self._failed:
            raise NotReady(
                f"pipeline {name!r} could not be loaded"
            )  # why is for the log and the administrator
        if name in self.configs and self.state != "ready":
            raise NotReady(f"pipeline {name!r} is not loaded: {self.not_ready}")
        raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, self.pipelines)}")

    @property
    def not_ready(self) -> str:
        """Why requests should not come here now; empty if they should.

        Waits for the pipelines of `start`. One that is loaded or replaced later says so in `states`, and costs the others nothing.
        """
        if self.state == "created":
            return "the pipelines have not been started (did the app's lifespan run?)"
        if self.state == "loading":
            return (
                "; ".join(pipeline.not_ready for _, pipeline in sorted(self._loading.items()))
                or "loading"
            )
        if self.state != "ready":
            return f"the server is {self.state}"
        return "; ".join(
            reason for pipeline in list(self.pipelines.values()) if (reason := pipeline.not_ready)
        )

    def states(self) -> dict[str, str]:
        """Every known pipeline by name: `ready`, `loading`, `reloading`, `unloading`, `unloaded`, or `failed: …`, `not ready: …` with the
        reason.
        """
        return {
            name: self._state_of(name)
            for name in sorted({*self.configs, *self.pipelines, *self._loading, *self._failed})
        }

    def _state_of(self, name: str) -> str:
        pipeline = self.pipelines.get(name)
        if name in self._loading:
            return "loading" if pipeline is None else "reloading"
        if pipeline is not None:
            return f"not ready: {reason}" if (reason := pipeline.not_ready) else "ready"
        if any(each.name == name for each in self._unloading):
            return "unloading"
        return f"failed: {self._failed[name]}" if name in self._failed else "unloaded"

    # life

    async def start(self) -> None:
        """Load all pipelines, at the same time. If one can't be, none stays, and its `BackendError` is raised."""
        if self.state not in ("created", "closed"):
            raise RuntimeError(
                f"the repository is {self.state}; it starts once, until it is closed"
            )
        self.state = "loading"
        self._closing = None
        self._locks.clear()  # they belong to the loop that used them
        starting = [asyncio.ensure_future(self.load(config)) for config in self.configs.values()]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            if starting:
                await asyncio.wait(starting)
            await self.close(0)
            raise
        if self.state == "loading":  # not closed meanwhile
            self.state = "ready"

    async def load(self, config: PipelineConfig) -> Pipeline:
        """Start a pipeline, then publish it; the one that has its name serves until then, and is drained in the background.

        Raises `BackendError`, `ConfigError` for a name that is taken (nothing has changed then), `NotReady` while closing.
        """
        name = config.name
        async with self._lock(name):
            self._check_open()
            self._check_names(config)
            pipeline = Pipeline(config)
            pipeline.others = self.get
            self._loading[name] = pipeline
            self._failed.pop(name, None)
            try:
                await pipeline.start()
            except Exception as error:
                if name not in self.pipelines:
                    self._failed[name] = str(error)
                raise
            finally:
                del self._loading[name]
            if self.state in ("draining", "closed"):
                await pipeline.close(0)
                raise NotReady(f"pipeline {name!r} was loaded while the server was closing")
            old = self.pipelines.get(name)
            self.configs[name] = config
            self.pipelines[name] = pipeline
            self._changed()
            logger.info(
                "pipeline %s is %s",
                name,
                "loaded" if old is None else "replaced",
                extra={"pipeline": name},
            )
            if old is not None:
                self._drain(old, DRAIN_TIMEOUT)
        return pipeline

    async def reload(self, name: str) -> Pipeline:
        """Read a pipeline's file again, and load what it says now. Also loads one that is not loaded, if its file is known.

        Raises `NotFound`, `ConfigError`, and what `load` raises.
        """
        return await self.load(self._read_again(name))

    async def unload(self, name: str, timeout: float = DRAIN_TIMEOUT) -> None:
        """Take a pipeline away: new requests get `NotFound`, those inside may end within `timeout` seconds. Raises `NotFound`."""
        async with self._lock(name):
            self._check_open()
            if self._failed.pop(name, None) is not None:
                return
            if name not in self.pipelines:
                raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, self.pipelines)}")
            pipeline = self.pipelines.pop(name)
            self._changed()
            logger.info("pipeline %s is unloaded", name, extra={"pipeline": name})
        self._unloading.add(pipeline)
        draining = self._drain(pipeline, timeout)
        draining.add_done_callback(lambda _: self._unloading.discard(pipeline))
        await asyncio.shield(draining)

    async def close(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Take nothing more in, let what is inside end within `timeout` seconds, fail the rest. Idempotent: a second call waits too."""
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        if self.state in ("created", "closed"):
            return
        self._closing = asyncio.ensure_future(self._close(timeout))
        await asyncio.shield(self._closing)

    async def _close(self, timeout: float) -> None:
        self.state = "draining"
        # still published: whoever comes now is told that it is draining, not that it never was
        for pipeline in self.pipelines.values():
            self._drain(pipeline, timeout)
        try:
            await asyncio.gather(*self._draining)
        finally:
            self.pipelines.clear()
            self.state = "closed"
            self._changed()

    def _check_names(self, config: PipelineConfig) -> None:
        """Raise `ConfigError` if another pipeline, or a node that it exposes, has a name of this one or of its exposed nodes."""
        others = {
            name
            for other in self.configs.values()
            if other.name != config.name
            for name in other.names
        }
        for name in config.names:
            if name in others:
                raise _taken(config, name)

    def _changed(self) -> None:
        self.models = {
            each.name: each
            for pipeline in self.pipelines.values()
            for each in (pipeline, *pipeline.exposed)
        }
        self.generation += 1
        self.on_change()

    def _drain(self, pipeline: Pipeline, timeout: float) -> asyncio.Task[None]:
        """A task of its own: whoever asked for it may leave, and what is inside still gets its time."""
        task = asyncio.create_task(pipeline.close(timeout), context=contextvars.Context())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        return task

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _check_open(self) -> None:
        if self.state not in ("loading", "ready"):
            raise NotReady(f"the server is {self.state}")

    def _read_again(self, name: str) -> PipelineConfig:
        config = self.configs.get(name)
        if config is not None:
            return load(config.source, name=name) if config.source.endswith(".toml") else config
        known = set(self.configs)
        for file in sorted(self.directory.glob("*.toml")) if self.directory is not None else ():
            try:
                found = load(file)
            except ConfigError:
                if name_of(file) == name:
                    raise
                continue  # another one's mistake
            if found.name == name:
                return found
            known.add(found.name)
        raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, known)}")


def _taken(config: PipelineConfig, name: str) -> ConfigError:
    return ConfigError(
        [
            Problem(
                f"the name {name!r} is that of another pipeline too",
                config.source,
                "pipeline",
                "name",
            )
        ]
    )


def _configs(source: Any, labels: str | os.PathLike[str] | None) -> list[PipelineConfig]:
    if isinstance(source, PipelineConfig):
        return [source]
    if (
        isinstance(source, Mapping)
        and source
        and all(isinstance(value, PipelineConfig) for value in source.values())
    ):
        return list(source.values())
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix == ".onnx":
            return [from_model(path, labels)]
        if path.is_dir():
            found = load_directory(path)
            if not found:
                raise ConfigError(
                    [Problem("the directory has no pipeline: expected *.toml", str(path))]
                )
            return list(found.values())
    if labels is not None:
        raise ConfigError(
            [
                Problem(
                    "labels are for a bare .onnx model; a pipeline file names its own", str(labels)
                )
            ]
        )
    return [load(source)]
