"""Triton's models (`config.pbtxt`) become pipeline files: the tables that serving them makes, as
text.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError
from penstock.backends.triton_python.config_defaults import without_defaults
from penstock.pipelines.config.load import build
from penstock.pipelines.config.source import Tables
from penstock.pipelines.config.toml_text import WIDTH, pipeline_toml
from penstock.pipelines.config.versions import VERSION_FILE
from penstock.pipelines.triton.fields.classify import classify
from penstock.pipelines.triton.fields.treatments import Treatment
from penstock.pipelines.triton.folders import CONFIG_FILE, ModelFolder, model_folders
from penstock.pipelines.triton.messages import ModelConfig
from penstock.pipelines.triton.read import served_versions, written_config
from penstock.pipelines.triton.translation.translate import translate

from .written import Converted

FILE_KEYS = frozenset({"model", "labels", "warm_up", "data", "initial"})
"""Keys of a pipeline file that may name a file, relative to it."""


def is_triton(path: Path) -> bool:
    """Return whether a path is a repository of Triton's, or the folder of one of its models."""
    return path.is_dir() and bool(model_folders(path))


def convert_models(path: Path) -> tuple[list[Converted], list[ConfigError]]:
    """Convert all models of a repository, or that of one folder.

    Returns those that could be converted, and the errors of the others.
    """
    converted: list[Converted] = []
    errors: list[ConfigError] = []
    for folder in model_folders(path):
        try:
            converted.append(_convert(folder))
        except ConfigError as error:
            errors.append(error)
    return converted, errors


def _convert(folder: ModelFolder) -> Converted:
    written = written_config(folder)
    versions = served_versions(written, folder)
    result = Converted(folder.name)
    for file in sorted(folder.path.iterdir()):
        if file.name != CONFIG_FILE and (file.name not in folder.versions or file.name in versions):
            result.copies[f"{folder.name}/{file.name}"] = file
    for version in versions:
        tables = translate(written, folder.path, version)
        build(tables)  # raises ConfigError with what is wrong
        moved = _seen_from(tables, folder.path / version)
        name = f"{folder.name}/{version}/{VERSION_FILE}"
        heading = [f"{folder.name}, version {version}: converted from {_source(folder)}."]
        result.texts[name] = pipeline_toml(moved, [*heading, *_differences(written)])
    return result


def _source(folder: ModelFolder) -> str:
    return f"{folder.name}/{CONFIG_FILE}" if folder.has_config else f"{folder.name}/"


def _differences(written: ModelConfig) -> list[str]:
    """Return a comment with the fields that do not have the effect that they have in Triton."""
    lines: list[str] = []
    for one in classify(written):
        if one.treatment in (Treatment.APPROXIMATED, Treatment.IGNORED):
            text = f"{one.path}: {one.treatment}: {one.words}"
            lines += textwrap.wrap(text, WIDTH - 2, subsequent_indent="  ")
    return lines


def _seen_from(tables: Tables, folder: Path) -> Tables:
    """Return the tables for a file in `folder`: the paths of files are relative to it."""
    start = folder.resolve()

    def moved(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            if key == "model_config":  # Triton's own, which names files of the model's folder
                return without_defaults(value)
            return {name: moved(str(name), inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [moved(key, inner) for inner in value]
        if key in FILE_KEYS and isinstance(value, str) and (tables.directory / value).is_file():
            return os.path.relpath(tables.directory / value, start)
        return value

    nodes = {
        node: {key: keys[key] for key in ("backend", "model") if key in keys} | keys
        for node, keys in moved("", tables.nodes).items()
    }
    return Tables(tables.name, nodes, tables.defaults, moved("", tables.pipeline))
