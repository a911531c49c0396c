"""The pipelines of a server, by name: they load, unload and replace while the others serve.

Nothing here knows about HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from penstock.backends.errors import ConfigError, NotFound, NotReady, PenstockError, Problem
from penstock.backends.suggestions import did_you_mean
from penstock.backends.text import message_of

from .config.load import PipelineConfig, from_model, load, load_directory
from .config.source import name_of
from .pipeline import Pipeline

logger = logging.getLogger("penstock.repository")

DRAIN_TIMEOUT_SECONDS = 30.0
"""The seconds that requests in flight get to end when a pipeline is replaced or unloaded."""


class Repository:
    """Named pipelines.

    A repository serves between `start` and `close`, on one event loop at a time, and may be started
    again after `close`.

    `pipelines` holds the loaded pipelines, `models` these and their exposed nodes; both may be read
    directly on the loop. `generation` changes whenever their contents do.
    """

    def __init__(
        self, configs: Iterable[PipelineConfig] = (), *, directory: Path | None = None
    ) -> None:
        """Raises `ConfigError` if two pipelines have the same name.

        `directory`: the folder of the files of pipelines that may be loaded later, by name alone.
        """
        self.configs: dict[str, PipelineConfig] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.models: dict[str, Pipeline] = {}
        self.generation = 0
        self.state = "created"  # then loading, ready, draining, closed
        self.directory = directory
        self.on_change: Callable[[], None] = lambda: None
        """Called after every change of `generation`."""
        self._loading: dict[str, Pipeline] = {}
        # For pipelines that are not loaded: why the last attempt failed.
        self._failed: dict[str, str] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._unloading: set[Pipeline] = set()  # unloaded, with requests still in flight
        self._locks: dict[str, asyncio.Lock] = {}
        # The names that serve an override, with the repository's own configuration of each (None:
        # there is none). `configs` has the override.
        self._overrides: dict[str, PipelineConfig | None] = {}
        self._closing: asyncio.Future[None] | None = None
        self._reading: set[asyncio.Future[PipelineConfig]] = set()
        for config in configs:
            if config.name in self.configs:
                raise _taken(config, config.name)
            self._check_names(config)
            self.configs[config.name] = config

    @classmethod
    def read(cls, source: Any = None, *, labels: str | os.PathLike[str] | None = None) -> Self:
        """Read the pipelines that `source` describes. Nothing is loaded.

        `source`: a TOML file, a directory of them, an `.onnx` classifier (with `labels`), a dict,
        an expression, a `PipelineConfig`, a list of several of these, or None. Raises
        `ConfigError` with all problems, and TypeError for another type.
        """
        if source is None:
            return cls()
        if isinstance(source, (list, tuple)):
            return cls([config for one in source for config in _configs(one, labels)])
        directory = (
            Path(source)
            if isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
            else None
        )
        return cls(_configs(source, labels), directory=directory)

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {state}" for name, state in self.states().items())
        return f"<Repository {self.state}: {states or 'empty'}>"

    # reading

    def get(self, name: str) -> Pipeline:
        """Return a loaded pipeline.

        Raises `NotReady` for one that is still loading or could not be loaded, `NotFound` for a
        name that is not known.
        """
        pipeline = self.pipelines.get(name)
        if pipeline is not None:
            return pipeline
        if name in self._loading:
            raise NotReady(self._loading[name].not_ready)
        if name in self._failed:  # the reason is for the log and the administrator
            raise NotReady(f"pipeline {name!r} could not be loaded")
        if name in self.configs and self.state != "ready":
            raise NotReady(f"pipeline {name!r} is not loaded: {self.not_ready}")
        raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, self.pipelines)}")

    @property
    def not_ready(self) -> str:
        """The reason why requests should not come here now; empty if they should.

        The pipelines of `start` count. One that is loaded or replaced later has its state in
        `states` and does not make the others unready.
        """
        return self.why_not_ready("all")

    def why_not_ready(self, when: Literal["all", "any"]) -> str:
        """Return the reason of `not_ready`. With `any`, one pipeline that is ready is enough.

        Until all pipelines of `start` are loaded the repository is not ready either way: one that
        can't be loaded ends it.
        """
        if self.state == "created":
            return "the pipelines have not been started (did the app's lifespan run?)"
        if self.state == "loading":
            reasons = [pipeline.not_ready for _, pipeline in sorted(self._loading.items())]
            return "; ".join(reasons) or "loading"
        if self.state != "ready":
            return f"the server is {self.state}"
        pipelines = list(self.pipelines.values())
        reasons = [reason for pipeline in pipelines if (reason := pipeline.not_ready)]
        return "" if when == "any" and len(reasons) < len(pipelines) else "; ".join(reasons)

    def states(self) -> dict[str, str]:
        """Return the state of every known pipeline.

        One of `ready`, `loading`, `reloading`, `unloading`, `unloaded`, and with a reason
        `failed: …` and `not ready: …`.
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
        if any(unloading.name == name for unloading in self._unloading):
            return "unloading"
        return f"failed: {self._failed[name]}" if name in self._failed else "unloaded"

    # life

    async def start(self) -> None:
        """Load all pipelines at the same time.

        If one can't be loaded, all are closed and its `BackendError` is raised.
        """
        if self.state not in ("created", "closed"):
            raise RuntimeError(
                f"the repository is {self.state}: it can be started again once it is closed"
            )
        self.state = "loading"
        self._closing = None
        self._locks.clear()  # they belong to the loop that used them
        starting = [asyncio.ensure_future(self._start(config)) for config in self.configs.values()]
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

    async def _start(self, config: PipelineConfig) -> Pipeline:
        """Load a pipeline that the repository has: its own, or an override from before `close`."""
        async with self._lock(config.name):
            return await self._load(config)

    async def load(self, config: PipelineConfig) -> Pipeline:
        """Start a pipeline, then publish it.

        A pipeline that has the name already serves until then. After that it is drained in the
        background. Raises `BackendError`, `ConfigError` for a name that is taken (nothing has
        changed then), `NotReady` while the server closes.
        """
        async with self._lock(config.name):
            pipeline = await self._load(config)
            self._overrides.pop(config.name, None)
            return pipeline

    async def reload(self, name: str, *, keep_override: bool = True) -> Pipeline:
        """Read the file of a pipeline again and load the pipeline.

        A pipeline that is not loaded yet is loaded if its file is known. An override ends once the
        file's pipeline serves. An override of a name that has no file is loaded again, or, without
        `keep_override`, there is nothing to load. Raises `NotFound`, `ConfigError`, and what `load`
        raises.
        """
        # Reading imports the modules that the file names: code of the user, which may take
        # seconds. The loop serves meanwhile. The lock keeps reloads of one name in order.
        async with self._lock(name):
            own = self._own(name)
            if own is None and keep_override and name in self._overrides:
                return await self._load(self.configs[name])
            pipeline = await self._load(await self._read_again(name, own))
            self._overrides.pop(name, None)
            return pipeline

    async def reload_changed(self) -> None:
        """Load the pipelines again whose files have changed, and log how that went.

        One that can't be loaded leaves the running one in its place. Pipelines that an override
        stands in for are left alone.
        """
        if self.state != "ready":
            logger.warning("no pipeline is loaded again: the server is %s", self.state)
            return
        names = [name for name in self.pipelines if name not in self._overrides]
        reloaded = await asyncio.gather(*[self._reload_if_changed(name) for name in names])
        if not any(reloaded):
            logger.info("no pipeline is loaded again: their files have not changed")

    async def _reload_if_changed(self, name: str) -> bool:
        extra = {"pipeline": name}
        files = await asyncio.to_thread(self.pipelines[name].changed_files)
        if not files:
            return False
        logger.info(
            "pipeline %s is loaded again: %s changed", name, ", ".join(map(str, files)), extra=extra
        )
        try:
            await self.reload(name)
        except PenstockError as error:
            logger.error(
                "pipeline %s can't be loaded again, and the running one goes on: %s",
                name,
                message_of(error),
                extra=extra,
            )
        except Exception:
            logger.exception(
                "pipeline %s can't be loaded again, and the running one goes on", name, extra=extra
            )
        return True

    async def override(
        self,
        name: str,
        make: Callable[[PipelineConfig | None], Awaitable[PipelineConfig]],
        check: Callable[[Pipeline], None],
    ) -> Pipeline:
        """Load another configuration in place of the repository's own, until the next load of its
        own or an unload.

        `make` gets the own configuration of the name (None: there is none) and returns the other
        one. `check` is called with the pipeline before it serves, and may raise. Raises what they
        and `load` raise.
        """
        async with self._lock(name):
            own = self._own(name)
            pipeline = await self._load(await make(own), check)
            self._overrides[name] = own
            return pipeline

    def _own(self, name: str) -> PipelineConfig | None:
        """Return the repository's own configuration of a name, not that of an override."""
        return self._overrides[name] if name in self._overrides else self.configs.get(name)

    async def _read_again(self, name: str, config: PipelineConfig | None) -> PipelineConfig:
        """Read the configuration of a pipeline from its file, on a thread of its own.

        `config` is the one that it has now; without one its file is looked for in `directory`.
        Raises `NotFound`, `ConfigError`, and `NotReady` if the repository closes meanwhile.
        """
        # The file imports modules of the user, which may never end. A daemon thread keeps neither
        # the process alive nor one of the helper threads that requests need.
        self._check_open()
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[PipelineConfig] = loop.create_future()
        known = set(self.configs)

        def report(result: PipelineConfig | None, error: BaseException | None) -> None:
            if reading.done():
                return
            if error is not None:
                reading.set_exception(error)
            elif result is not None:
                reading.set_result(result)

        def read() -> None:
            result, error = None, None
            try:
                result = _read(name, config, known, self.directory)
            except Exception as raised:
                error = raised
            except BaseException as raised:  # SystemExit of a module ends this thread alone
                error = ConfigError([Problem(f"reading it raised {type(raised).__name__}")])
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(report, result, error)

        self._reading.add(reading)
        threading.Thread(target=read, name=f"reading {name}", daemon=True).start()
        try:
            return await reading
        finally:
            self._reading.discard(reading)

    async def _load(
        self, config: PipelineConfig, check: Callable[[Pipeline], None] = lambda _: None
    ) -> Pipeline:
        """Start and publish a pipeline. The caller holds the lock of its name."""
        name = config.name
        pipeline: Pipeline | None = None
        try:
            self._check_open()
            self._check_names(config)
            pipeline = Pipeline(config)
            pipeline.others = self.get
            self._loading[name] = pipeline
            self._failed.pop(name, None)
            try:
                await pipeline.start()
                check(pipeline)
            except Exception as error:
                if name not in self.pipelines:
                    self._failed[name] = message_of(error)
                raise
            finally:
                del self._loading[name]
            if self.state in ("draining", "closed"):
                raise NotReady(f"pipeline {name!r} was loaded while the server was closing")
        except BaseException:
            if pipeline is not None:
                await pipeline.close(0)
            self._release(config)
            raise
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
            self._drain(old, DRAIN_TIMEOUT_SECONDS)
        return pipeline

    async def unload(self, name: str, timeout: float = DRAIN_TIMEOUT_SECONDS) -> None:
        """Unload a pipeline, and return when its requests have ended.

        New requests get `NotFound`, those in flight get `timeout` seconds. An override ends.
        Raises `NotFound`.
        """
        async with self._lock(name):
            self._check_open()
            if self._failed.pop(name, None) is not None:
                return
            if name not in self.pipelines:
                raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, self.pipelines)}")
            pipeline = self.pipelines.pop(name)
            if name in self._overrides:  # it ends
                own = self._overrides.pop(name)
                if own is None:
                    del self.configs[name]
                else:
                    self.configs[name] = own
            self._changed()
            logger.info("pipeline %s is unloaded", name, extra={"pipeline": name})
        self._unloading.add(pipeline)
        draining = self._drain(pipeline, timeout)
        draining.add_done_callback(lambda _: self._unloading.discard(pipeline))
        await asyncio.shield(draining)

    async def wait_idle(self) -> None:
        """Wait for a moment in which no request is in flight and no pipeline is drained."""
        while True:
            if self._draining:
                await asyncio.wait(self._draining)
            elif busy := [pipeline for pipeline in self.pipelines.values() if pipeline.in_flight]:
                await asyncio.wait([busy[0].wait_empty()])
            else:
                return

    async def close(self, timeout: float = DRAIN_TIMEOUT_SECONDS) -> None:
        """Refuse new requests, give those in flight `timeout` seconds to end, fail the rest.

        Idempotent: a second call waits for the first.
        """
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        if self.state in ("created", "closed"):
            return
        self._closing = asyncio.ensure_future(self._close(timeout))
        await asyncio.shield(self._closing)

    async def _close(self, timeout: float) -> None:
        self.state = "draining"
        for reading in self._reading:
            if not reading.done():
                reading.set_exception(NotReady("the server is draining"))
        # The pipelines stay published, so that a new request learns that the server is draining,
        # and not that there is no such pipeline.
        # Those that load have no requests. Closing them ends what waits for their start.
        for pipeline in (*self.pipelines.values(), *self._loading.values()):
            self._drain(pipeline, timeout)
        try:
            await asyncio.gather(*self._draining)
        finally:
            self.pipelines.clear()
            self.state = "closed"
            self._changed()

    def _check_names(self, config: PipelineConfig) -> None:
        """Raise `ConfigError` if a name of this pipeline or of a node that it exposes is taken."""
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
            model.name: model
            for pipeline in self.pipelines.values()
            for model in (pipeline, *pipeline.exposed)
        }
        self.generation += 1
        self.on_change()

    def _drain(self, pipeline: Pipeline, timeout: float) -> asyncio.Task[None]:
        """Close a pipeline in a task of its own: it goes on if the caller is cancelled."""
        task = asyncio.create_task(self._end(pipeline, timeout), context=contextvars.Context())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        return task

    async def _end(self, pipeline: Pipeline, timeout: float) -> None:
        try:
            await pipeline.close(timeout)
        finally:
            self._release(pipeline.config)

    def _release(self, config: PipelineConfig) -> None:
        """Let go of what a configuration holds, unless a pipeline of it serves or loads."""
        pipelines = (*self.pipelines.values(), *self._loading.values())
        if all(pipeline.config is not config for pipeline in pipelines):
            config.release()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _check_open(self) -> None:
        if self.state not in ("loading", "ready"):
            raise NotReady(f"the server is {self.state}")


def _read(
    name: str, config: PipelineConfig | None, known: set[str], directory: Path | None
) -> PipelineConfig:
    """Read the configuration of a pipeline from its file. Blocks.

    `config` is the one that it has now; without one its file is looked for in `directory`. `known`
    are the names for suggestions.
    """
    if config is not None:
        return load(config.source, name=name) if config.source.endswith(".toml") else config
    for file in sorted(directory.glob("*.toml")) if directory is not None else ():
        try:
            other = load(file)
        except ConfigError:
            if name_of(file) == name:
                raise
            continue  # a mistake in another pipeline's file
        if other.name == name:
            return other
        known.add(other.name)
    raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, known)}")


def _taken(config: PipelineConfig, name: str) -> ConfigError:
    message = f"another pipeline has the name {name!r}: expected a name of its own"
    return ConfigError([Problem(message, config.source, "pipeline", "name")])


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
            configs = load_directory(path)
            if not configs:
                message = "there is no pipeline in this directory: expected *.toml files"
                raise ConfigError([Problem(message, str(path))])
            return list(configs.values())
    if labels is not None:
        message = "labels go with a bare .onnx model only: a pipeline file names its own"
        raise ConfigError([Problem(message, str(labels))])
    return [load(source)]
