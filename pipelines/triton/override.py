"""Reads a Triton model with another configuration than that of its file: a load brings it along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from penstock.backends.errors import ConfigError, Problem

from ..config.definition import PipelineConfig
from .folders import ModelFolder
from .messages import ModelConfig
from .read import read_version, served_versions, written_config

CODE_PARAMETERS = ("EXECUTION_ENV_PATH",)
"""The parameters of backends that name code outside of the model's folder."""


def read_override(config: ModelConfig, folder: ModelFolder, file: str) -> list[PipelineConfig]:
    """Return the pipelines of the model in `folder` with `config` in place of its own.

    `file` stands for the configuration's file in messages. Raises `ConfigError`, also for a
    configuration that names code or a file outside of the folder: a client that may load models
    may not read or run any file.
    """
    if config.name not in ("", folder.name):
        message = f"found {config.name!r}: expected {folder.name!r}, or no name"
        raise ConfigError([Problem(message, file, key="name")])
    return [
        read_given(config, folder, version, file) for version in served_versions(config, folder)
    ]


def read_given(config: ModelConfig, folder: ModelFolder, version: str, file: str) -> PipelineConfig:
    """Return the pipeline of one version, as `read_override` does."""
    problems = [
        Problem(f"found {path!r}: expected the name of a file in the model's folder", file, key=key)
        for key, path in _paths(config)
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts
    ]
    problems += _foreign_code(config, folder, file)
    if problems:
        raise ConfigError(problems)
    return read_version(config, folder, version, file)


def _paths(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield the fields that name files, with their values."""
    yield "default_model_filename", config.default_model_filename
    for file in config.cc_model_filenames.values():
        yield "cc_model_filenames", file
    for tensor in config.output:
        yield "output.label_filename", tensor.label_filename
    for sample in config.model_warmup:
        for given in sample.inputs.values():
            yield "model_warmup.inputs.input_data_file", given.input_data_file
    for state in config.sequence_batching.state:
        for initial in state.initial_state:
            yield "sequence_batching.state.initial_state.data_file", initial.data_file


def _foreign_code(config: ModelConfig, folder: ModelFolder, file: str) -> Iterator[Problem]:
    """Yield what names code, unless the model's own configuration names the same."""
    given = [name for name in CODE_PARAMETERS if name in config.parameters]
    libraries = config.HasField("model_operations")
    if not given and not libraries:
        return
    own = written_config(folder)
    changed = [
        f"parameters.{name}"
        for name in given
        if name not in own.parameters
        or own.parameters[name].string_value != config.parameters[name].string_value
    ]
    if libraries and config.model_operations != own.model_operations:
        changed.append("model_operations")
    for key in changed:
        message = "it names code, so it can't be changed by a load: expected the model's own"
        yield Problem(message, file, key=key)
