"""The model repository: its index, and loading and unloading.

The pipelines' own repository does the work (`pipelines/repository.py`). Names are looked up and
never become part of a path. Loading and unloading require what our own routes for it require; what
a load brings along (`overrides.py`) has to be allowed in addition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.backends.errors import BackendError, ConfigError, InvalidRequest, NotFound
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.directory import sources_in
from penstock.pipelines.repository import Repository
from penstock.pipelines.triton.folders import model_folder

from ...http.auth import check_admin
from ...http.errors import Forbidden
from ...http.helper_thread import on_helper_thread
from ...http.json_text import JsonLimits, check_boolean, kind_of
from ...settings import Settings
from ..call import ProtocolCall, ProtocolError, Route
from .model import Model
from .model_config import maxima_of
from .overrides import Override

PROTOCOL_STATES = {
    "ready": "READY",
    "reloading": "READY",
    "loading": "LOADING",
    "unloading": "UNLOADING",
}
"""The protocol's names of our states; the others are UNAVAILABLE. A reloading pipeline serves."""

STATE_REASONS = {
    "unloading": "requests are in flight",
    "unloaded": "unloaded",
    "failed": "it could not be loaded; the server's log says why",
}


class RepositoryRoutes:
    """The routes of `/v2/repository`."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        repository.load_override = self._load_ordered

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

    async def index(self, call: ProtocolCall) -> list[dict[str, Any]]:
        """List every version of every known model, each pipeline's exposed nodes after it.

        Models whose files were never loaded are listed by name only.
        """
        only_ready = check_boolean((await call.json()).get("ready", False), "'ready'")
        models = [
            model
            for name, versions in self._repository.version_states().items()
            for version, state in versions.items()
            for model in self._models_of(name, version, state)
        ]
        if only_ready:
            return [model for model in models if model["state"] == "READY"]
        known = {model["name"] for model in models}
        in_files = await asyncio.to_thread(self._names_in_files)
        return [*models, *({"name": name} for name in in_files if name not in known)]

    def _models_of(self, name: str, version: str, state: str) -> list[dict[str, Any]]:
        kind, _, reason = state.partition(": ")
        config = self._repository.config_of(name, version)
        if kind != "not ready":
            # The reason for a failed load names files and code, so it is for the log alone.
            reason = STATE_REASONS.get(kind, "")
        names = (name,) if config is None else config.names
        return [
            {
                "name": name,
                "version": version,
                "state": PROTOCOL_STATES.get(kind, "UNAVAILABLE"),
                "reason": reason,
            }
            for name in names
        ]

    def _names_in_files(self) -> list[str]:
        """Return the names of the pipelines in the directory, for the files that can be read."""
        directory = self._repository.directory
        if directory is None:
            return []
        return list(dict.fromkeys(name for name, _ in sources_in(directory)))

    async def load(self, call: ProtocolCall) -> None:
        """Load a model, with an override if the call has parameters.

        If that fails, whatever served before goes on serving.
        """
        name = self._check(call)
        parameters = _parameters(await call.json())
        if parameters and not self._settings.allow_model_overrides:
            raise Forbidden("overrides are off; PENSTOCK_ALLOW_MODEL_OVERRIDES=true turns them on")
        try:
            if parameters:
                await self._load_override(name, parameters, call)
            else:
                await self._repository.reload(name, keep_override=False)
        except NotFound:
            raise ProtocolError(
                404, f"failed to load '{name}', failed to poll from model repository"
            ) from None
        except ConfigError as error:
            raise ProtocolError(400, f"failed to load '{name}', {error}") from error
        except BackendError as error:  # in full, because the client is the administrator
            raise ProtocolError(
                400 if parameters else 500, f"failed to load '{name}', {error}"
            ) from error

    async def _load_override(
        self, name: str, parameters: Mapping[str, Any], call: ProtocolCall
    ) -> None:
        # The files, and the model that is parsed from them to be checked.
        call.memory.resize(3 * call.memory.size, "files of a model")
        await self._apply(await on_helper_thread(Override.read, name, parameters, call.json_limits))

    async def _load_ordered(self, name: str, config: str, files: Mapping[str, bytes]) -> None:
        """Load a model as the code of another one orders, which may do more than clients."""
        parameters = {"config": config, **files} if config else dict(files)
        limits = JsonLimits(self._settings.max_json_depth, self._settings.max_json_values)
        await self._apply(await on_helper_thread(Override.read, name, parameters, limits))

    async def _apply(self, override: Override) -> None:
        name = override.name

        async def make(own: list[PipelineConfig]) -> list[PipelineConfig]:
            if override.files:
                return await on_helper_thread(override.materialise)
            folder = await asyncio.to_thread(self._model_folder, name, own)
            if folder is not None:
                return await self._repository.read_aside(name, lambda: override.of_model(folder))
            if not own:
                raise NotFound(name)
            return [override.applied_to(one, self._reported_batch(one)) for one in own]

        await self._repository.override(name, make, override.check_tensors)

    def _model_folder(self, name: str, own: list[PipelineConfig]) -> Path | None:
        """Return the folder of a Triton model of the repository; None if it has no such model.

        One that could not be loaded has no configuration of its own.
        """
        for config in own:
            return config.versions_folder if config.model_config is not None else None
        directory = self._repository.directory
        sources = () if directory is None else sources_in(directory)
        folders = (source for other, source in sources if other == name and source.is_dir())
        return next((folder for folder in folders if model_folder(folder) is not None), None)

    def _reported_batch(self, own: PipelineConfig) -> int:
        """Return the `max_batch_size` that the model reports; 0 unless it follows from `own`."""
        pipeline = self._repository.versions.get(own.name, {}).get(own.version)
        if pipeline is None or maxima_of(pipeline.config) != maxima_of(own):
            return 0
        return Model(pipeline).max_batch_size

    async def unload(self, call: ProtocolCall) -> None:
        """Unload a model, and answer when its requests have ended.

        An override ends with it. With `unload_dependents`, the models go too that no ensemble but
        this one calls. A pipeline's nodes are part of it.
        """
        name = self._check(call)
        parameters = _parameters(await call.json())
        names = [name]
        if check_boolean(parameters.get("unload_dependents", False), "'unload_dependents'"):
            names += self._repository.called_alone_by(name)
        for unloaded in names:
            with suppress(NotFound):  # none of that name is loaded, which is what the call asks for
                await self._repository.unload(unloaded, self._settings.drain_timeout)

    def _check(self, call: ProtocolCall) -> str:
        """Return the name of the model to load or unload.

        Raises `Forbidden` and `Unauthorized` for clients that may not do so, and `InvalidRequest`
        for a name that can't be loaded or unloaded.
        """
        check_admin(call.scope, self._settings)
        name = call.names["model"]
        if name == "." or ".." in name or any(letter in name for letter in "/\\\0"):
            raise InvalidRequest("model name must not contain path traversal characters")
        if name in self._repository.models and name not in self._repository.pipelines:
            raise InvalidRequest(
                f"model '{name}' is a node of a pipeline, which is loaded and unloaded as a whole"
            )
        return name


async def _no_other(call: ProtocolCall) -> None:
    raise ProtocolError(501, "'repository_name' specification is not supported")


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"'parameters' is a JSON {kind_of(parameters)}, expected an object")
    return parameters
