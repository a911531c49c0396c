"""Reads many pipelines: the files of a directory, the versions of each pipeline, and the models of
a Triton repository.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, NotFound, Problem
from penstock.backends.suggestions import did_you_mean

from .config.definition import PipelineConfig
from .config.load import build, from_model, load
from .config.source import fit_name, name_of, read
from .config.versions import DEFAULT_VERSION, VersionPolicy, version_files, version_key
from .triton.folders import CONFIG_FILE, ModelFolder, model_folder, own_name
from .triton.read import read_version, served_versions, written_config

READERS = 4
"""So many models are read at the same time."""


@dataclass(slots=True)
class Read:
    """Pipelines that were read, and those that could not be, by name and version.

    A file that can't be read keeps no other of its directory from being served.
    """

    configs: list[PipelineConfig] = field(default_factory=list)
    unread: dict[tuple[str, str], ConfigError] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the files that could not be read."""
        return [problem for error in self.unread.values() for problem in error.problems]


def read_directory(directory: Path) -> Read:
    """Read every pipeline of a directory: `*.toml`, folders of versions (`NAME/1/…`), and Triton's
    models (`NAME/config.pbtxt`).

    The directory may itself be the folder of one pipeline's versions. A file that can't be read, or
    that takes the name of an earlier one, is in `unread`. Raises `ConfigError` with the problems of
    all files if none can be read.
    """
    if not directory.is_dir():
        raise ConfigError([Problem("there is no such directory", str(directory))])
    found = Read()
    unread: list[tuple[tuple[str, str], str, ConfigError]] = []  # with the file, for its own key
    for file in sorted(directory.glob("*.toml")):
        try:
            config = load(file)
        except ConfigError as error:
            unread.append((_name_and_version(file), file.name, error))
        else:
            unread += _add(config, file.name, found)
    folders = _folders(directory)
    for folder, versions in zip(folders, _read_folders(folders), strict=True):
        for config in versions.configs:
            unread += _add(config, f"{folder.name}/{config.version}", found)
        for key, wrong in versions.unread.items():
            unread.append((key, f"{folder.name}/{key[1]}", wrong))
    known = {(config.name, config.version) for config in found.configs}
    for key, file_name, wrong in unread:
        own_key = (file_name, DEFAULT_VERSION)
        found.unread[own_key if key in known or key in found.unread else key] = wrong
    for name in dict.fromkeys(config.name for config in found.configs):
        own = [config for config in found.configs if config.name == name]
        own_unread = {key: error for key, error in found.unread.items() if key[0] == name}
        try:
            choose_versions(Read(own, own_unread))
        except ConfigError as error:
            found.configs = [config for config in found.configs if config.name != name]
            found.unread |= {(name, config.version): error for config in own}
    if found.unread and not found.configs:
        raise ConfigError(list(dict.fromkeys(found.problems)))
    return found


def _add(
    config: PipelineConfig, file_name: str, found: Read
) -> list[tuple[tuple[str, str], str, ConfigError]]:
    """Add a pipeline of a directory. Return it as unread if another one has its name."""
    for other in found.configs:
        if other.name == config.name and other.version != config.version:
            continue
        for name in config.names:
            if name in other.names:
                return [((config.name, config.version), file_name, taken(config, name, other))]
    found.configs.append(config)
    return []


def _name_and_version(file: Path) -> tuple[str, str]:
    """Return what a file, which may be wrong, says of its pipeline, as far as it can be read."""
    table = _pipeline_table(file) or {}
    name, version = table.get("name"), table.get("version", DEFAULT_VERSION)
    return name if isinstance(name, str) else name_of(file), str(version)


def _pipeline_table(file: Path) -> dict[str, Any] | None:
    """Return the `[pipeline]` of a file, which may be empty. None if the file is not TOML."""
    try:
        table = tomllib.loads(file.read_bytes().decode("utf-8-sig")).get("pipeline")
    except (OSError, ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else {}


def read_versions(folder: Path) -> Read:
    """Read the versions in a pipeline's folder. Raises `ConfigError` if none can be read."""
    found = _read_folder(folder)
    if not found.configs:
        raise ConfigError(found.problems)
    return found


def _read_folders(folders: Sequence[Path]) -> Iterator[Read]:
    """Yield what the folders hold. Models are read side by side: some take a process each."""
    with ThreadPoolExecutor(READERS) as pool:
        reading = {
            folder: pool.submit(_read_folder, folder)
            for folder in folders
            if not version_files(folder)
        }
        for folder in folders:
            yield reading[folder].result() if folder in reading else _read_folder(folder)


def _read_folder(folder: Path) -> Read:
    name = name_of_folder(folder)
    found = Read()
    files = version_files(folder)
    if not files and (model := model_folder(folder)) is not None:
        return _read_model(model, name)
    if not files:
        raise ConfigError([Problem("there is no version: expected 1/pipeline.toml", str(folder))])
    for file in files:
        version = file.parent.name
        try:
            found.configs.append(_read_version(file, folder, name, version))
        except ConfigError as error:
            found.unread[name, version] = error
    return found


def _read_model(folder: ModelFolder, name: str) -> Read:
    """Read the versions of a Triton model that its policy chooses."""
    found = Read()
    try:
        written = written_config(folder)
        versions = served_versions(written, folder)
    except ConfigError as error:
        found.unread[name, (*folder.versions, DEFAULT_VERSION)[-1]] = error
        return found
    for version in versions:
        try:
            found.configs.append(read_version(written, folder, version))
        except ConfigError as error:
            found.unread[name, version] = error
    return found


def _read_version(file: Path, folder: Path, name: str, version: str) -> PipelineConfig:
    tables = read(file)
    if isinstance(tables.pipeline, dict):
        for key, expected in (("name", name), ("version", version)):
            given = tables.pipeline.get(key, expected)
            if str(given) != expected:
                tables.problems.append(
                    Problem(
                        f"found {given!r}: expected {expected!r}, as the folder says, or no such "
                        "key",
                        str(file),
                        "pipeline",
                        key,
                    )
                )
        tables.pipeline |= {"name": name, "version": version}
    return replace(build(tables), versions_folder=folder)


def sources_in(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name of each pipeline of a directory with its file or its folder of versions.

    The files are not checked. One that is not TOML is left out.
    """
    for file in sorted(directory.glob("*.toml")):
        if _pipeline_table(file) is not None:
            yield _name_and_version(file)[0], file
    for folder in _folders(directory):
        yield name_of_folder(folder), folder


def name_of_folder(folder: Path) -> str:
    """Return the name of the pipeline whose versions are in a folder."""
    return fit_name(own_name(folder))


def read_again(
    name: str, own: list[PipelineConfig], known: set[str], directory: Path | None
) -> Read:
    """Read the versions of a pipeline from their files. Blocks.

    `own` are those that it has now; other files are looked for in `directory`. `known` are the
    names for suggestions.
    """
    sources = [
        config.versions_folder or Path(config.source) for config in own if _is_of_files(config)
    ]
    for other, source in sources_in(directory) if directory is not None else ():
        known.add(other)
        if other == name:
            sources.append(source)
    if not sources and directory is not None:  # one that is not TOML: the error says so
        sources = [file for file in directory.glob("*.toml") if name_of(file) == name]
    sources = list(dict.fromkeys(sources))
    # The file of one of several versions may have gone.
    sources = [source for source in sources if source.exists()] or sources[:1]
    found = Read([config for config in own if not _is_of_files(config)])
    for source in sources:
        if source.is_dir():
            versions = read_versions(source)
            found.configs += versions.configs
            found.unread |= versions.unread
        else:
            found.configs.append(load(source, name=name))
    if not found.configs:
        raise NotFound(f"there is no pipeline {name!r}{did_you_mean(name, known)}")
    return choose_versions(found)


def other_versions(configs: Iterable[PipelineConfig]) -> set[Path]:
    """Return the folders of the versions that serve, if others are to be served from there now."""
    served: dict[Path, set[str]] = {}
    changed: set[Path] = set()
    for config in configs:
        folder = config.versions_folder
        if folder is not None:
            served.setdefault(folder, set()).add(config.version)
            if config.source == str(folder) and (folder / CONFIG_FILE).is_file():
                changed.add(folder)  # it had no configuration when it was read
    return changed | {folder for folder in served if _versions_now(folder) != served[folder]}


def _versions_now(folder: Path) -> set[str] | None:
    """Return the versions to serve from a folder; None if that can't be said."""
    try:
        files = version_files(folder)
        if not files:
            model = model_folder(folder)
            return None if model is None else {*served_versions(written_config(model), model)}
        versions = [file.parent.name for file in files]
        declared = [
            table.get("version_policy") for file in files if (table := _pipeline_table(file))
        ]
        policy = next((value for value in declared if value is not None), "all")
        return {*VersionPolicy.read(policy).choose(versions)}
    except (ConfigError, ValueError):
        return None


def _is_of_files(config: PipelineConfig) -> bool:
    """Return whether a pipeline can be read again from its file or its folder."""
    return config.source.endswith(".toml") or config.versions_folder is not None


def read_source(source: Any, labels: str | os.PathLike[str] | None = None) -> Read:
    """Read the pipelines that `source` describes, as `Repository.read` does."""
    if isinstance(source, PipelineConfig):
        return Read([source])
    if (
        isinstance(source, Mapping)
        and source
        and all(isinstance(value, PipelineConfig) for value in source.values())
    ):
        return Read(list(source.values()))
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix == ".onnx":
            return Read([from_model(path, labels)])
        if path.name == CONFIG_FILE:
            return read_versions(path.parent)
        if path.is_dir():
            found = read_directory(path)
            if not found.configs:
                message = (
                    "there is no pipeline in this directory: expected *.toml files, folders of "
                    "versions (NAME/1/pipeline.toml), or Triton's models (NAME/config.pbtxt)"
                )
                raise ConfigError([Problem(message, str(path))])
            return found
    if labels is not None:
        message = "labels go with a bare .onnx model only: a pipeline file names its own"
        raise ConfigError([Problem(message, str(labels))])
    return Read([load(source)])


def _folders(directory: Path) -> list[Path]:
    """Return the folders of versions: in a directory, and the directory itself if it is one.

    A model without `config.pbtxt` counts only where no TOML file is: in a directory of pipelines it
    is one of their models.
    """
    inside = [folder for folder in sorted(directory.iterdir()) if folder.is_dir()]
    bare = next(directory.glob("*.toml"), None) is None
    folders = []
    for folder in (directory, *inside):
        model = None if version_files(folder) else model_folder(folder)
        if version_files(folder) or (model is not None and (model.has_config or bare)):
            folders.append(folder)
    return folders


def choose_versions(found: Read) -> Read:
    """Return the versions that are to be served, in order: by name, each's oldest first.

    Raises `ConfigError` if two pipelines have the same name and version, and if version policies
    of one name differ or choose none.
    """
    configs: dict[str, dict[str, PipelineConfig]] = {}
    for config in found.configs:
        if config.version in configs.setdefault(config.name, {}):
            raise taken(config, config.name)
        configs[config.name][config.version] = config
    chosen = Read(
        unread={key: error for key, error in found.unread.items() if key[0] not in configs}
    )
    for name, versions in configs.items():
        unread = {version: error for (of, version), error in found.unread.items() if of == name}
        ordered = sorted({*versions, *unread}, key=version_key)
        policy = _policy_of(versions.values(), several=len(ordered) > 1)
        if policy is not None:
            try:
                ordered = policy.choose(ordered)
            except ValueError as error:
                declaring = next(one for one in versions.values() if one.version_policy)
                raise _wrong_policy(declaring, str(error)) from None
        if not any(version in versions for version in ordered):
            raise ConfigError(
                [problem for version in ordered for problem in unread[version].problems]
            )
        for version in ordered:
            if version in unread:
                chosen.unread[name, version] = unread[version]
            else:
                config = versions[version]
                chosen.configs.append(
                    config
                    if config.version_policy == policy
                    else replace(config, version_policy=policy)
                )
    return chosen


def _policy_of(configs: Iterable[PipelineConfig], several: bool) -> VersionPolicy | None:
    """Return the policy that the versions of a name declare; all of them if none does."""
    declared: PipelineConfig | None = None
    for config in configs:
        several = several or config.versions_folder is not None
        if config.version_policy is None:
            continue
        if declared is not None and declared.version_policy != config.version_policy:
            raise _wrong_policy(
                config,
                f"found {config.version_policy}, but version {declared.version} has "
                f"{declared.version_policy}: expected the same in all versions that have the key",
            )
        declared = config
    if declared is not None:
        return declared.version_policy
    return VersionPolicy() if several else None


def _wrong_policy(config: PipelineConfig, message: str) -> ConfigError:
    return ConfigError([Problem(message, config.source, "pipeline", "version_policy")])


def taken(config: PipelineConfig, name: str, other: PipelineConfig | None = None) -> ConfigError:
    """Return the error for a name that another pipeline has."""
    place = f" ({other.source})" if other is not None and other.source else ""
    message = f"another pipeline{place} has the name {name!r}: expected a name of its own"
    if name == config.name:
        message += f", or another version than {config.version!r}"
    return ConfigError([Problem(message, config.source, "pipeline", "name")])
