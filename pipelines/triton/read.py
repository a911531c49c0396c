"""Reads the models of a Triton repository as pipelines."""

from __future__ import annotations

from dataclasses import replace

from penstock.backends.errors import ConfigError, Problem

from ..config.definition import PipelineConfig
from ..config.load import build
from .folders import ModelFolder
from .messages import ModelConfig, new_config
from .reading import read_config


def written_config(folder: ModelFolder) -> ModelConfig:
    """Read the configuration of a model, as it is written. Raises `ConfigError`."""
    if not folder.has_config:
        return new_config()
    config = read_config(folder.config_file)
    if config.name not in ("", folder.name):
        message = f"found {config.name!r}: expected {folder.name!r}, as the folder says, or no name"
        raise ConfigError([Problem(message, str(folder.config_file), key="name")])
    return config


def served_versions(config: ModelConfig, folder: ModelFolder) -> list[str]:
    """Return the versions that the policy of a model chooses, the oldest first.

    Those that it names and that are not there are left out, as in Triton. Raises `ConfigError` if
    none is left.
    """
    policy = config.version_policy
    versions = [*folder.versions]
    missing: list[str] = []
    if policy.HasField("specific"):
        named = [str(version) for version in dict.fromkeys(policy.specific.versions)]
        missing = [version for version in named if version not in versions]
        versions = [version for version in versions if version in named]
    elif not policy.HasField("all"):
        versions = versions[-(policy.latest.num_versions or 1) :]
    if not versions:
        if missing:
            message = f"no version that version_policy names is there: {', '.join(missing)}"
        else:
            message = "there is no version: expected a folder with a number, as 1"
        raise ConfigError([Problem(message, str(folder.path), key="version_policy")])
    return versions


def read_version(
    written: ModelConfig, folder: ModelFolder, version: str, file: str = ""
) -> PipelineConfig:
    """Make the pipeline of one version of a model. Raises `ConfigError`."""
    # Only here: it needs NumPy, which takes 12 MB and 0.1 s of a server without Triton's models.
    from .translation.translate import translate

    config = build(translate(written, folder.path, version, file))
    return replace(config, versions_folder=folder.path)
