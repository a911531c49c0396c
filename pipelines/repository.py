"""The pipelines of a server, by name: they load, unload and replace while the others serve.

A pipeline may have several versions, which serve side by side. A name alone means the newest that
serves. Loading and unloading are of all versions of a name. Nothing here knows about HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from penstock.backends.errors import (
    BackendError,
    ConfigError,
    InvalidRequest,
    NotFound,
    NotReady,
    PenstockError,
    Problem,
)
from penstock.backends.server import ModelOrder, Response
from penstock.backends.suggestions import did_you_mean
from penstock.backends.text import message_of

from .cache.responses import ResponseCache
from .composites.called_models import joined, models_of
from .config.definition import PipelineConfig
from .config.versions import version_key
from .directory import (
    Read,
    choose_versions,
    other_versions,
    read_again,
    read_source,
    taken,
)
from .other_processes import OtherProcesses
from .pipeline import Pipeline

logger = logging.getLogger("penstock.repository")

Value = TypeVar("Value")

DRAIN_TIMEOUT_SECONDS = 30.0
"""The seconds that requests in flight get to end when a pipeline is replaced or unloaded."""


VERSION_SEPARATOR = "/versions/"
"""What stands between a pipeline's name and a version, as in `digits/versions/2`."""


class Repository:
    """Named pipelines.

    A repository serves between `start` and `close`, on one event loop at a time, and may be started
    again after `close`.

    `pipelines` holds the newest loaded version of each pipeline, `models` these and their exposed
    nodes, `versions` all loaded versions of all these, the oldest first. They may be read directly
    on the loop. `generation` changes whenever their contents do.
    """

    def __init__(
        self,
        configs: Iterable[PipelineConfig] = (),
        *,
        directory: Path | None = None,
        unread: Mapping[tuple[str, str], ConfigError] | None = None,
        strict: bool | None = None,
    ) -> None:
        """Raises `ConfigError` if two pipelines have the same name and version.

        `directory`: the folder of the files of pipelines that may be loaded later, by name alone.
        `unread`: the versions, by name and version, whose files could not be read. `strict` says
        what ends `start`: True: anything that can't be loaded. None: a pipeline none of whose
        versions can. False: only that no pipeline can; the rest is served.
        """
        self.pipelines: dict[str, Pipeline] = {}
        self.models: dict[str, Pipeline] = {}
        self.versions: dict[str, dict[str, Pipeline]] = {}
        self.generation = 0
        self.state = "created"  # then loading, ready, draining, closed
        self.directory = directory
        self._strict = strict
        self.responses = ResponseCache()
        """Where pipelines that have a cache keep their answers. Set it before `start`."""
        self._notes_batches = False
        self.on_change: Callable[[], None] = lambda: None
        """Called after every change of `generation`."""
        self.on_pressure: Callable[[str, bool], None] = lambda token, on: None
        """Called with the token of a pipeline whenever its pressure begins or ends."""
        self.load_override: Callable[[str, str, Mapping[str, bytes]], Awaitable[None]] | None = None
        """Loads a model with another configuration, and other files, for a backend."""
        self.on_close: set[Callable[[], None]] = set()
        """Each is called when `close` begins."""
        self.others = OtherProcesses()
        """The other processes of the server, which may run nodes too."""
        # All that follows is by name and then version, in order, or by both.
        self._configs: dict[str, dict[str, PipelineConfig]] = {}
        self._served: dict[str, dict[str, Pipeline]] = {}
        self._loading: dict[tuple[str, str], Pipeline] = {}
        # For versions that are not loaded: why the last attempt failed.
        self._failed: dict[tuple[str, str], str] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._ending: set[Pipeline] = set()  # those that are drained
        self._unloading: set[Pipeline] = set()  # unloaded, with requests still in flight
        self._locks: dict[str, asyncio.Lock] = {}
        # By the name of an ensemble that is reloaded: the model that is loaded before it just now.
        self._waits_for: dict[str, str] = {}
        # The names that serve an override, with the repository's own configurations of each. Then
        # `_configs` has the override.
        self._overrides: dict[str, list[PipelineConfig]] = {}
        self._closing: asyncio.Future[None] | None = None
        self._reading: set[asyncio.Future[Any]] = set()
        found = choose_versions(Read(list(configs), dict(unread or {})))
        self.unread = found.unread
        for config in found.configs:
            self._check_names(config)
            self._configs.setdefault(config.name, {})[config.version] = config

    @classmethod
    def read(
        cls,
        source: Any = None,
        *,
        labels: str | os.PathLike[str] | None = None,
        strict: bool = False,
    ) -> Self:
        """Read the pipelines that `source` describes. Nothing is loaded.

        `source`: a TOML file, a directory of them and of folders of versions, an `.onnx` classifier
        (with `labels`), a dict, an expression, a `PipelineConfig`, a list of several of these, or
        None. Raises `ConfigError` with all problems, and TypeError for another type.

        What can't be read of a directory is in `unread`, and the rest is served, unless `strict`:
        then it is a `ConfigError` too. If no file can be read, it always is.
        """
        if source is None:
            return cls()
        directory = (
            Path(source)
            if isinstance(source, (str, os.PathLike)) and Path(source).is_dir()
            else None
        )
        found = Read()
        for one in source if isinstance(source, (list, tuple)) else [source]:
            part = read_source(one, labels)
            found.configs += part.configs
            found.unread |= part.unread
        if strict and found.unread:
            raise ConfigError(found.problems)
        return cls(
            found.configs,
            directory=directory,
            unread=found.unread,
            strict=True if strict else False if directory is not None else None,
        )

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {state}" for name, state in self.states().items())
        return f"<Repository {self.state}: {states or 'empty'}>"

    def note_batches(self) -> None:
        """Let all pipelines, those to come too, note what explains a request afterwards."""
        self._notes_batches = True
        for pipeline in (*self.served, *self._loading.values()):
            pipeline.note_batches()

    # reading

    @property
    def configs(self) -> dict[str, PipelineConfig]:
        """The configuration of the newest version of each known pipeline, by name."""
        return {name: [*versions.values()][-1] for name, versions in self._configs.items()}

    @property
    def all_configs(self) -> list[PipelineConfig]:
        """The configuration of every version of every known pipeline, the oldest version first."""
        return [config for versions in self._configs.values() for config in versions.values()]

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the files that could not be read."""
        return [problem for error in self.unread.values() for problem in error.problems]

    @property
    def served(self) -> list[Pipeline]:
        """Every loaded version of every pipeline."""
        return [pipeline for versions in self._served.values() for pipeline in versions.values()]

    @property
    def loading(self) -> dict[tuple[str, str], Pipeline]:
        """The pipelines that load now, by name and version. Others of these may serve meanwhile."""
        return self._loading.copy()

    def pipeline_of(self, token: str) -> Pipeline | None:
        """Return the loaded pipeline with this token, also one that drains; None if it has gone."""
        pipelines = (*self.served, *self._ending)
        return next((pipeline for pipeline in pipelines if pipeline.token == token), None)

    def get(self, name: str, version: str = "") -> Pipeline:
        """Return a loaded pipeline, the newest version unless one is named.

        `name` may have the version too: `NAME/versions/VERSION`. Raises `NotReady` for one that is
        still loading or could not be loaded, `NotFound` for a name or version that is not known.
        """
        pipeline = self.pipelines.get(name)
        if pipeline is not None and not version:
            return pipeline
        if not version:
            name, _, version = name.partition(VERSION_SEPARATOR)
        served = self._served.get(name, {})
        if version in served:
            return served[version]
        which = f"pipeline {name!r}" + (f" (version {version})" if version else "")
        for key, pipeline in self._loading.items():
            if key[0] == name and version in {"", key[1]}:
                raise NotReady(pipeline.not_ready)
        for key in self._failed:  # the reason is for the log and the administrator
            if key[0] == name and version in {"", key[1]}:
                raise NotReady(f"{which} could not be loaded")
        known = self._configs.get(name, {})
        if (version in known if version else known) and self.state != "ready":
            raise NotReady(f"{which} is not loaded: {self.not_ready}")
        if version and served:
            raise NotFound(
                f"pipeline {name!r} has no version {version!r} here: expected one of "
                f"{', '.join(served)}"
            )
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
        if self.others.not_ready:
            return self.others.not_ready
        pipelines = self.served
        reasons = [reason for pipeline in pipelines if (reason := pipeline.not_ready)]
        return "" if when == "any" and len(reasons) < len(pipelines) else "; ".join(reasons)

    def states(self) -> dict[str, str]:
        """Return the state of every known pipeline: that of its newest version that serves.

        One of `ready`, `loading`, `reloading`, `unloading`, `unloaded`, and with a reason
        `failed: …` and `not ready: …`. If no version serves, it is that of the newest.
        """
        return {
            name: states[
                self.pipelines[name].config.version if name in self.pipelines else [*states][-1]
            ]
            for name, states in self.version_states().items()
        }

    def version_states(self) -> dict[str, dict[str, str]]:
        """Return the state of every version of every known pipeline, the oldest version first."""
        known: set[tuple[str, str]] = {*self._loading, *self._failed}
        for by_name in (self._configs, self._served):
            known |= {(name, version) for name, versions in by_name.items() for version in versions}
        states: dict[str, dict[str, str]] = {}
        for name, version in sorted(known, key=lambda key: (key[0], version_key(key[1]))):
            states.setdefault(name, {})[version] = self._state_of(name, version)
        return states

    def config_of(self, name: str, version: str) -> PipelineConfig | None:
        """Return the configuration of a version; None for one that was never read."""
        pipeline = self._served.get(name, {}).get(version)
        return self._configs.get(name, {}).get(version) if pipeline is None else pipeline.config

    def _state_of(self, name: str, version: str) -> str:
        pipeline = self._served.get(name, {}).get(version)
        if (name, version) in self._loading:
            return "loading" if pipeline is None else "reloading"
        if pipeline is not None:
            return f"not ready: {reason}" if (reason := pipeline.not_ready) else "ready"
        if any(
            unloading.name == name and unloading.config.version == version
            for unloading in self._unloading
        ):
            return "unloading"
        failed = self._failed.get((name, version))
        return "unloaded" if failed is None else f"failed: {failed}"

    # life

    async def start(self) -> None:
        """Load all pipelines at the same time.

        If one can't be loaded, all are closed and its `BackendError` is raised. One of several
        versions that can't is logged, and the others serve; so is a pipeline of a directory, unless
        `strict`. It has failed then, until a load mends that.
        """
        if self.state not in ("created", "closed"):
            raise RuntimeError(
                f"the repository is {self.state}: it can be started again once it is closed"
            )
        self.state = "loading"
        self._closing = None
        self._locks.clear()  # they belong to the loop that used them
        names = [*self._configs]
        tasks: dict[str, asyncio.Future[None]] = {}
        for name in names:
            tasks[name] = asyncio.ensure_future(self._start(name, tasks))
        starting = [*tasks.values()]
        try:
            errors = await asyncio.gather(*starting, return_exceptions=self._strict is False)
            self._leave_out(
                {name: error for name, error in zip(names, errors, strict=True) if error}
            )
        except BaseException:
            for task in starting:
                task.cancel()
            if starting:
                await asyncio.wait(starting)
            await self.close(0)
            raise
        if self.state == "loading":  # not closed meanwhile
            self.state = "ready"

    def _leave_out(self, errors: Mapping[str, BaseException]) -> None:
        """Log the pipelines that could not be loaded or read. Raises the first error if none could
        be loaded, or for another reason than its own.
        """
        for error in errors.values():
            if self.state != "loading" or not self._served or not isinstance(error, Exception):
                raise error
        failed = {
            name: f"{self.configs[name].source}: {message_of(error)}"
            for name, error in errors.items()
        }
        for (name, version), unread in self.unread.items():
            if name not in self._configs:
                self._failed[name, version] = failed[name] = message_of(unread)
        for name, reason in failed.items():
            message = "pipeline %s can't be loaded and is left out: %s"
            logger.error(message, name, reason, extra={"pipeline": name})

    async def _start(self, name: str, tasks: Mapping[str, asyncio.Future[None]]) -> None:
        """Load a pipeline that the repository has: its own, or an override from before `close`.

        An ensemble comes after the models that it calls, which `tasks` load.
        """
        async with self._lock(name):
            for config in self._configs[name].values():
                # Where models call each other in a circle, they would wait for each other.
                if models := models_of(config) if self._joined(config) is not None else []:
                    await asyncio.wait([tasks[model] for model in models])
            unread = {version: error for (of, version), error in self.unread.items() if of == name}
            try:
                await self._load(name, [*self._configs[name].values()], unread=unread)
            except Exception:
                if name not in self.pipelines or self._strict:
                    raise  # otherwise `_load` has logged why a version fails

    async def load(self, config: PipelineConfig) -> Pipeline:
        """Start a pipeline, then publish it.

        One that has its name and version already serves until then. After that it is drained in
        the background. Other versions go on serving. Raises `BackendError`, `ConfigError` for a
        name that is taken (nothing has changed then), `NotReady` while the server closes.
        """
        async with self._lock(config.name):
            pipeline = await self._load(config.name, [config], keep=True)
            self._overrides.pop(config.name, None)
            return pipeline

    async def reload(self, name: str, *, keep_override: bool = True) -> Pipeline:
        """Read the files of a pipeline again, and load the versions whose files have changed; all
        of them if none has. Return the newest version.

        A pipeline that is not loaded yet is loaded if its file is known. Versions whose files are
        new are loaded too, and those whose files are gone are drained. An override ends once the
        files' pipeline serves. An override of a name that has no file is loaded again, or, without
        `keep_override`, there is nothing to load. Raises `NotFound`, `ConfigError`, and what `load`
        raises; if only some versions fail, the others have been loaded. The models that an ensemble
        calls are loaded before it if they are not.
        """
        # Reading imports the modules that the file names: code of the user, which may take
        # seconds. The loop serves meanwhile. The lock keeps reloads of one name in order.
        async with self._lock(name):
            own = self._own(name)
            if not own and keep_override and name in self._overrides:
                return await self._load(name, [*self._configs[name].values()])
            found = await self._read_again(name, own)
            found.configs = [self._joined(config) or config for config in found.configs]
            for model in {model for config in found.configs for model in models_of(config)}:
                # In a circle, one would wait for the other. It is refused when it loads.
                if model not in self._served and not self._waits(model, name):
                    self._waits_for[name] = model
                    try:
                        with contextlib.suppress(NotFound):  # the ensemble is refused, and says so
                            await self.reload(model)
                    finally:
                        del self._waits_for[name]
            unread = {version: error for (_, version), error in found.unread.items()}
            unchanged = await self._unchanged(name, found)
            changed = [config for config in found.configs if config.version not in unchanged]
            for config in found.configs:
                if config.version in unchanged:
                    self._release(config)
            try:
                return await self._load(name, changed, unread=unread, unchanged=unchanged)
            finally:
                if any(
                    pipeline.config is config
                    for pipeline in self._served.get(name, {}).values()
                    for config in found.configs
                ):
                    self._overrides.pop(name, None)

    def _waits(self, model: str | None, name: str) -> bool:
        """Return whether a model is `name`, or its reload waits for that of `name`."""
        while model is not None and model != name:
            model = self._waits_for.get(model)
        return model is not None

    async def _unchanged(self, name: str, found: Read) -> set[str]:
        """Return the versions that serve with the files that were just read. None of them if
        nothing has changed: then a load is wanted all the same.
        """
        served = {} if name in self._overrides else self._served.get(name, {})
        configs = found.configs
        same = [
            config.version
            for config in configs
            if config.version in served and served[config.version].config.source == config.source
        ]
        unchanged = await asyncio.to_thread(
            lambda: {version for version in same if not served[version].changed_files()}
        )
        return unchanged if found.unread or unchanged != served.keys() else set()

    async def reload_changed(self) -> None:
        """Load the pipelines again whose files have changed, and log how that went.

        One that can't be loaded leaves the running one in its place. One that has failed before is
        tried again. Pipelines that an override stands in for are left alone.
        """
        if self.state != "ready":
            logger.warning("no pipeline is loaded again: the server is %s", self.state)
            return
        known = dict.fromkeys([*self.pipelines, *(name for name, _ in self._failed)])
        names = [name for name in known if name not in self._overrides]
        reloaded = await asyncio.gather(*[self._reload_if_changed(name) for name in names])
        if not any(reloaded):
            logger.info("no pipeline is loaded again: their files have not changed")

    async def _reload_if_changed(self, name: str) -> bool:
        extra = {"pipeline": name}
        versions = list(self._served.get(name, {}).values())
        files = await asyncio.to_thread(_changed_files, versions)
        if versions and not files:
            return False
        reason = f"{', '.join(map(str, files))} changed" if versions else "it failed before"
        logger.info("pipeline %s is loaded again: %s", name, reason, extra=extra)
        try:
            await self.reload(name)
        except PenstockError as error:
            logger.error(
                "pipeline %s can't be loaded again%s: %s",
                name,
                ", and the running one goes on" if versions else "",
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
        make: Callable[[list[PipelineConfig]], Awaitable[list[PipelineConfig]]],
        check: Callable[[Pipeline], None],
    ) -> Pipeline:
        """Load other configurations in place of the repository's own, until the next load of its
        own or an unload.

        `make` gets the own configuration of each version of the name (there may be none) and
        returns the other ones. `check` is called with each pipeline before it serves, and may
        raise. If one fails nothing has changed. Raises what they and `load` raise.
        """
        async with self._lock(name):
            own = self._own(name)
            pipeline = await self._load(name, await make(own), check, all_or_none=True)
            self._overrides[name] = own
            return pipeline

    def _joined(self, config: PipelineConfig) -> PipelineConfig | None:
        """Return an ensemble joined with the models that it calls. None if they don't fit."""
        try:
            return joined(config, self._find_config)
        except ConfigError:
            return None

    def _check_called(self, config: PipelineConfig) -> None:
        """Raise `ConfigError` if a model is not loaded that an ensemble calls."""
        for model in models_of(config):
            if model not in self._served:
                message = (
                    f"ensemble {config.name!r} depends on {model!r} which has no loaded version"
                )
                raise ConfigError(
                    [Problem(message, config.source, next(iter(config.nodes)), "steps")]
                )

    def _find_config(self, name: str, version: str) -> PipelineConfig | None:
        versions = self._configs.get(name, {})
        return versions.get(version) if version else next(reversed(versions.values()), None)

    def _own(self, name: str) -> list[PipelineConfig]:
        """Return the repository's own configurations of a name, not those of an override."""
        if name in self._overrides:
            return self._overrides[name]
        return [*self._configs.get(name, {}).values()]

    async def _read_again(self, name: str, own: list[PipelineConfig]) -> Read:
        """Read the versions of a pipeline from their files, on a thread of its own.

        `own` are those that it has now; other files are looked for in `directory`. Raises
        `NotFound`, `ConfigError`, and `NotReady` if the repository closes meanwhile.
        """
        known = set(self._configs)
        return await self.read_aside(name, lambda: read_again(name, own, known, self.directory))

    async def read_aside(self, name: str, read_now: Callable[[], Value]) -> Value:
        """Read a pipeline by a function that may import modules of the user, which may never end.

        Raises what it raises, and `NotReady` if the repository closes meanwhile.
        """
        # A daemon thread keeps neither the process alive nor one of the helper threads that
        # requests need.
        self._check_open()
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[Any] = loop.create_future()

        def report(result: Any, error: BaseException | None) -> None:
            if reading.done():
                return
            if error is not None:
                reading.set_exception(error)
            else:
                reading.set_result(result)

        def read() -> None:
            result, error = None, None
            try:
                result = read_now()
            except Exception as raised:
                error = raised
            except BaseException as raised:  # SystemExit of a module ends this thread alone
                error = ConfigError([Problem(f"reading it raised {type(raised).__name__}")])
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(report, result, error)

        self._reading.add(reading)
        threading.Thread(target=read, name=f"reading {name}", daemon=True).start()
        try:
            result: Value = await reading
            return result
        finally:
            self._reading.discard(reading)

    async def _load(
        self,
        name: str,
        configs: Sequence[PipelineConfig],
        check: Callable[[Pipeline], None] = lambda _: None,
        *,
        unread: Mapping[str, ConfigError] | None = None,
        unchanged: Collection[str] = (),
        keep: bool = False,
        all_or_none: bool = False,
    ) -> Pipeline:
        """Start versions of a pipeline at the same time, then publish them. Return the newest.

        The caller holds the lock of the name. `unread` are versions that fail because they could
        not be read. `unchanged` versions go on serving. `keep`: so do all others that are not
        among `configs`; otherwise they are drained. If some versions fail, the others are published
        before this raises, unless `all_or_none`.
        """
        started: list[Pipeline] = []
        failed: dict[str, Exception] = dict(unread or {})

        async def start(pipeline: Pipeline) -> None:
            try:
                await pipeline.start()
                check(pipeline)
            except Exception as error:
                failed[pipeline.config.version] = error

        try:
            self._check_open()
            for config in configs:
                self._check_names(config)
            for config in configs:
                pipeline = Pipeline(joined(config, self._find_config))
                self._check_called(pipeline.config)
                pipeline.others = self.get
                pipeline.orders = self.carry_out
                pipeline.responses = self.responses
                pipeline.note_pressure(partial(self._pressed, pipeline.token))
                if self._notes_batches:
                    pipeline.note_batches()
                started.append(pipeline)
            for pipeline in started:
                self._loading[name, pipeline.config.version] = pipeline
                self._failed.pop((name, pipeline.config.version), None)
            try:
                async with asyncio.TaskGroup() as group:
                    for pipeline in started:
                        group.create_task(start(pipeline))
            finally:
                for pipeline in started:
                    del self._loading[name, pipeline.config.version]
            if self.state in ("draining", "closed"):
                raise NotReady(f"pipeline {name!r} was loaded while the server was closing")
            none = not unchanged and all(one.config.version in failed for one in started)
            if none or (failed and all_or_none):
                if name not in self._served:
                    self._note(name, failed)
                raise _failure(name, failed, all_or_none or len(failed) == 1)
        except BaseException:
            for pipeline in started:
                await pipeline.close(0)
            for config in configs:
                self._release(config)
            raise
        if unread is not None:
            self.unread = {key: error for key, error in self.unread.items() if key[0] != name} | {
                (name, version): error for version, error in unread.items()
            }
        new = self._publish(name, started, failed, unchanged, keep)
        if failed:
            raise _failure(name, failed)
        return new

    def _publish(
        self,
        name: str,
        started: Sequence[Pipeline],
        failed: Mapping[str, Exception],
        unchanged: Collection[str],
        keep: bool,
    ) -> Pipeline:
        """Serve the versions that have started. Return the newest of them and the unchanged."""
        old, known = self._served.get(name, {}), self._configs.get(name, {})
        new = {
            pipeline.config.version: pipeline
            for pipeline in started
            if pipeline.config.version not in failed
        }
        loaded = {version: old[version] for version in old if version in unchanged} | new
        kept = {version: old[version] for version in old if keep or version in failed} | loaded
        configs = {version: known[version] for version in known if keep or version in kept} | {
            one.config.version: one.config for one in started if one.config.version not in failed
        }
        for pipeline in started:
            if pipeline.config.version in failed:
                configs.setdefault(pipeline.config.version, pipeline.config)
                self._drain(pipeline, 0)
        self._served[name] = _in_order(kept)
        self._configs[name] = _in_order(configs)
        for key in [key for key in self._failed if key[0] == name]:
            if key[1] in new or not keep:
                del self._failed[key]
        self._note(name, failed)
        self._changed()
        versions = f" (versions {', '.join(kept)})" if len(kept) > 1 else ""
        logger.info(
            "pipeline %s is %s%s",
            name,
            "replaced" if old else "loaded",
            versions,
            extra={"pipeline": name},
        )
        for version, error in failed.items():
            logger.error(
                "pipeline %s: version %s can't be loaded: %s",
                name,
                version,
                message_of(error),
                extra={"pipeline": name},
            )
        for version, pipeline in old.items():
            if kept.get(version) is not pipeline:
                self._drain(pipeline, DRAIN_TIMEOUT_SECONDS)
        return [*_in_order(loaded).values()][-1]

    def _note(self, name: str, failed: Mapping[str, Exception]) -> None:
        """Remember why versions failed, unless an older load of them serves."""
        for version, error in failed.items():
            if version not in self._served.get(name, {}):
                self._failed[name, version] = message_of(error)

    async def carry_out(self, order: ModelOrder) -> Response:
        """Carry out what a backend orders: to load or unload a model, or to say if it is ready.

        An unload returns when the model gets no more requests: one of those that it still answers
        may be the one that ordered it. Raises what `reload` and `unload` raise.
        """
        if order.action == "ready":
            try:
                ready = not self.get(order.model, order.version).not_ready
            except (NotFound, NotReady):
                ready = False
            return Response({"ready": ready})
        if order.action == "unload":
            names = [order.model]
            if order.unload_dependents:
                names += self.called_alone_by(order.model)
            for name in names:
                with contextlib.suppress(NotFound):  # as in Triton
                    await self.unload(name, waits=False)
        elif order.config or order.files:
            if self.load_override is None:
                raise InvalidRequest("load_model takes no config and no files here: no app serves")
            await self.load_override(order.model, order.config, order.files)
        else:
            await self.reload(order.model, keep_override=False)
        return Response({})

    async def unload(
        self, name: str, timeout: float = DRAIN_TIMEOUT_SECONDS, *, waits: bool = True
    ) -> None:
        """Unload all versions of a pipeline, and return when their requests have ended.

        New requests get `NotFound`, those in flight get `timeout` seconds; without `waits` it
        returns before they have ended. An override ends. Raises `NotFound`.
        """
        async with self._lock(name):
            self._check_open()
            failed = [key for key in self._failed if key[0] == name]
            for key in failed:
                del self._failed[key]
            if name not in self._served:
                if failed:
                    return
                raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, self.pipelines)}")
            pipelines = self._served.pop(name).values()
            if name in self._overrides:  # it ends
                own = self._overrides.pop(name)
                if own:
                    self._configs[name] = {config.version: config for config in own}
                else:
                    del self._configs[name]
            self._changed()
            logger.info("pipeline %s is unloaded", name, extra={"pipeline": name})
        self._unloading.update(pipelines)
        draining = asyncio.gather(*[self._drain(pipeline, timeout) for pipeline in pipelines])
        if waits:
            await asyncio.shield(draining)

    def called_alone_by(self, name: str) -> list[str]:
        """Return the loaded models that a loaded ensemble calls, and that no other one does."""
        models = {
            served: {model for one in versions.values() for model in models_of(one.config)}
            for served, versions in self._served.items()
        }
        own = models.pop(name, set())
        return sorted(own.intersection(self._served).difference(*models.values()))

    async def wait_idle(self) -> None:
        """Wait for a moment in which no request is in flight and no pipeline is drained."""
        while True:
            if self._draining:
                await asyncio.wait(self._draining)
            elif busy := [pipeline for pipeline in self.served if pipeline.in_flight]:
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
        for callback in tuple(self.on_close):
            callback()
        for reading in self._reading:
            if not reading.done():
                reading.set_exception(NotReady("the server is draining"))
        # The pipelines stay published, so that a new request learns that the server is draining,
        # and not that there is no such pipeline.
        # Those that load have no requests. Closing them ends what waits for their start.
        for pipeline in self._loading.values():
            self._drain(pipeline, timeout)
        # A request may call another pipeline: all stay open for calls until none is in flight.
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        for pipeline in self.served:
            pipeline.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                while busy := [pipeline for pipeline in self.served if pipeline.in_flight]:
                    await asyncio.wait([busy[0].wait_empty()])
        timeout = max(ends - loop.time(), 0)
        for pipeline in self.served:
            self._drain(pipeline, timeout)
        try:
            await asyncio.gather(*self._draining)
        finally:
            self._served.clear()
            self.state = "closed"
            await self.responses.close()
            self._changed()

    def _check_names(self, config: PipelineConfig) -> None:
        """Raise `ConfigError` if a name of this pipeline or of a node that it exposes is taken."""
        others = {
            name for other in self.all_configs if other.name != config.name for name in other.names
        }
        for name in config.names:
            if name in others:
                raise taken(config, name)

    def _changed(self) -> None:
        self.versions = {}
        for pipeline in self.served:
            for model in (pipeline, *pipeline.exposed):
                self.versions.setdefault(model.name, {})[model.config.version] = model
        self.models = {name: [*versions.values()][-1] for name, versions in self.versions.items()}
        self.pipelines = {name: self.models[name] for name in self._served}
        self.generation += 1
        self.on_change()

    def _pressed(self, token: str, on: bool) -> None:
        self.on_pressure(token, on)

    def _drain(self, pipeline: Pipeline, timeout: float) -> asyncio.Task[None]:
        """Close a pipeline in a task of its own: it goes on if the caller is cancelled."""
        task = asyncio.create_task(self._end(pipeline, timeout), context=contextvars.Context())
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)
        self._ending.add(pipeline)
        return task

    async def _end(self, pipeline: Pipeline, timeout: float) -> None:
        try:
            await pipeline.close(timeout)
        finally:
            self._ending.discard(pipeline)
            self._unloading.discard(pipeline)
            self._release(pipeline.config)

    def _release(self, config: PipelineConfig) -> None:
        """Let go of what a configuration holds, unless a pipeline of it serves or loads."""
        pipelines = (*self.served, *self._loading.values())
        if all(pipeline.config is not config for pipeline in pipelines):
            config.release()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _check_open(self) -> None:
        if self.state not in ("loading", "ready"):
            raise NotReady(f"the server is {self.state}")


def _changed_files(versions: Sequence[Pipeline]) -> list[Path]:
    """Return the files of a pipeline's versions that have changed. Blocks.

    Its folder is one of them if other versions are in it than those that serve.
    """
    configs = [pipeline.config for pipeline in versions]
    files = {file for pipeline in versions for file in pipeline.changed_files()}
    return sorted(files | other_versions(configs))


def _in_order(versions: Mapping[str, Value]) -> dict[str, Value]:
    return {version: versions[version] for version in sorted(versions, key=version_key)}


def _failure(name: str, failed: Mapping[str, Exception], alone: bool = False) -> Exception:
    """Return the error for versions that failed. `alone`: that of the newest, as it is."""
    ordered = _in_order(failed)
    if alone:
        return [*ordered.values()][-1]
    if all(isinstance(error, ConfigError) for error in failed.values()):
        problems = [
            problem
            for error in ordered.values()
            if isinstance(error, ConfigError)
            for problem in error.problems
        ]
        return ConfigError(problems)
    reasons = (f"version {version}: {message_of(error)}" for version, error in ordered.items())
    return BackendError(f"pipeline {name!r} can't be loaded in whole: {'; '.join(reasons)}")
