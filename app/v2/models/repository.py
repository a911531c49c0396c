"""The model repository: its index, loading and unloading. The pipelines' own repository does the work (pipelines/repository.py).

Names are looked up, never made into paths. Loading and unloading take what our own routes for it take; what a load brings along
(overrides.py) must be allowed besides.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.backends.errors import BackendError, ConfigError, InvalidRequest, NotFound
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.config.source import name_of
from penstock.pipelines.repository import Repository

from ...http.auth import check_admin
from ...http.errors import Forbidden
from ...settings import Settings
from ..call import ProtocolCall, ProtocolError, Route
from ..json_text import kind_of
from .model import Model
from .model_config import maxima_of
from .overrides import Override

STATES = {"ready": "READY", "reloading": "READY", "loading": "LOADING", "unloading": "UNLOADING"}
"""Of ours that are not UNAVAILABLE. One that is loaded anew serves until then."""

REASONS = {
    "unloading": "requests are inside",
    "unloaded": "unloaded",
    "failed": "it could not be loaded; the server's log says why",
}


class Replaced(NamedTuple):
    """What an override stands in for. It is over when the repository has another configuration of that name than `override`."""

    override: PipelineConfig
    own: PipelineConfig | None
    """The repository's; None: there was nothing of that name."""


class RepositoryRoutes:
    """`/v2/repository`."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._replaced: dict[str, Replaced] = {}

    @property
    def routes(self) -> tuple[Route, ...]:
        group = "model-repository"
        return (
            Route("POST", "/v2/repository/index", group, self.index),
            Route("POST", "/v2/repository/models/{model}/load", group, self.load),
            Route("POST", "/v2/repository/models/{model}/unload", group, self.unload),
            Route("POST", "/v2/repository/{repository}/index", group, _no_other),
            Route("POST", "/v2/repository/{repository}/models/{model}/load", group, _no_other),
            Route("POST", "/v2/repository/{repository}/models/{model}/unload", group, _no_other),
        )

    async def index(self, call: ProtocolCall) -> Any:
        """Every known model, a pipeline's exposed nodes after it; those whose files were never loaded by name only."""
        ready = (await call.json()).get("ready", False)
        if type(ready) is not bool:
            raise InvalidRequest(f"'ready' is a JSON {kind_of(ready)}, expected a boolean")
        found = [
            entry
            for name, state in self._repository.states().items()
            for entry in self._entries(name, state)
        ]
        if ready:
            return [entry for entry in found if entry["state"] == "READY"]
        known = {entry["name"] for entry in found}
        return [
            *found,
            *(
                {"name": name}
                for name in await asyncio.to_thread(self._never_loaded)
                if name not in known
            ),
        ]

    def _entries(self, name: str, state: str) -> list[dict[str, Any]]:
        kind, _, reason = state.partition(": ")
        pipeline = self._repository.pipelines.get(name)
        config = pipeline.config if pipeline is not None else self._repository.configs.get(name)
        told = REASONS.get(
            kind, reason if kind == "not ready" else ""
        )  # why a load failed names files and code
        version = "1" if config is None else config.version
        names = (name,) if config is None else config.names
        return [
            {
                "name": each,
                "version": version,
                "state": STATES.get(kind, "UNAVAILABLE"),
                "reason": told,
            }
            for each in names
        ]

    def _never_loaded(self) -> list[str]:
        """What the files of the directory are called, as far as they can be read."""
        found = []
        for file in (
            sorted(self._repository.directory.glob("*.toml"))
            if self._repository.directory is not None
            else ()
        ):
            try:
                table = tomllib.loads(file.read_text()).get("pipeline")
            except (OSError, ValueError, RecursionError):
                continue
            name = table.get("name") if isinstance(table, dict) else None
            found.append(name if isinstance(name, str) else name_of(file))
        return found

    async def load(self, call: ProtocolCall) -> None:
        name = self._check(call)
        parameters = _parameters(await call.json())
        try:
            if parameters:
                await self._load_with(name, parameters)
            else:
                await self._load(name)
        except NotFound:
            raise ProtocolError(
                404, f"failed to load '{name}', failed to poll from model repository"
            ) from None
        except ConfigError as error:
            raise ProtocolError(400, f"failed to load '{name}', {error}") from error
        except BackendError as error:  # told in full: it is the administrator who asks
            raise ProtocolError(
                400 if parameters else 500, f"failed to load '{name}', {error}"
            ) from error

    async def _load(self, name: str) -> None:
        """As the repository has it, whatever an earlier load brought along."""
        own = self._own(name)
        self._replaced.pop(name, None)
        if own is not None:
            self._repository.configs[name] = own
        else:
            self._repository.configs.pop(name, None)
        await self._repository.reload(name)

    def _own(self, name: str) -> PipelineConfig | None:
        """The repository's configuration of that name, without what a load brought along."""
        config = self._repository.configs.get(name)
        replaced = self._replaced.get(name)
        return replaced.own if replaced is not None and replaced.override is config else config

    async def _load_with(self, name: str, parameters: Mapping[str, Any]) -> None:
        if not self._settings.allow_model_overrides:
            raise Forbidden("overrides are off; PENSTOCK_ALLOW_MODEL_OVERRIDES=true turns them on")
        override = Override.read(name, parameters, self._settings.max_json_depth)
        own = self._own(name)
        if override.files:
            made = await asyncio.to_thread(override.materialise)
            try:
                pipeline = await self._repository.load(made.config)
            except BaseException:
                made.remove()
                raise
            made.remove_after(pipeline)
        elif own is None:
            raise NotFound(name)
        else:
            pipeline = await self._repository.load(override.applied_to(own, self._told(name, own)))
        self._replaced[name] = Replaced(pipeline.config, own)

    def _told(self, name: str, own: PipelineConfig) -> int:
        """The `max_batch_size` that the model tells, where it follows from the repository's own configuration; else 0."""
        pipeline = self._repository.pipelines.get(name)
        if pipeline is None or maxima_of(pipeline.config) != maxima_of(own):
            return 0
        return Model(pipeline).max_batch_size

    async def unload(self, call: ProtocolCall) -> None:
        """Answers when what was inside has ended. The nodes of a pipeline are part of it: `unload_dependents` has nothing left to do."""
        name = self._check(call)
        dependents = _parameters(await call.json()).get("unload_dependents", False)
        if type(dependents) is not bool:
            raise InvalidRequest(
                f"'unload_dependents' is a JSON {kind_of(dependents)}, expected a boolean"
            )
        try:
            await self._repository.unload(name, self._settings.drain_timeout)
        except NotFound:
            return  # nothing of that name is loaded, which is what was asked for

    def _check(self, call: ProtocolCall) -> str:
        check_admin(call.scope, self._settings)
        name = call.names["model"]
        if name == "." or ".." in name or "\\" in name or "\0" in name:
            raise InvalidRequest("model name must not contain path traversal characters")
        if name in self._repository.models and name not in self._repository.pipelines:
            raise InvalidRequest(
                f"model '{name}' is a node of a pipeline, which is loaded and unloaded as a whole"
            )
        return name


async def _no_other(call: ProtocolCall) -> None:
    raise ProtocolError(501, "'repository_name' specification is not supported")


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    found = document.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidRequest(f"'parameters' is a JSON {kind_of(found)}, expected an object")
    return found
