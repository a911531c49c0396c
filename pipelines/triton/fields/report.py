"""Reports the fields that Triton's configurations set, for `penstock check`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.backends.errors import ConfigError

from ..completion.normalise import set_backend
from ..folders import CONFIG_FILE, model_folders
from ..messages import ModelConfig
from ..reading import read_config
from .classify import Classified, classify


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of one file, each with what is done with it."""

    file: Path
    backend: str
    """Empty if neither the file nor the model's folder shows it."""
    fields: tuple[Classified, ...]


def reports_of(directory: Path) -> Iterator[Report]:
    """Yield the reports of a repository's configurations, or of that of one model's folder.

    Files that can't be read are left out.
    """
    for folder in model_folders(directory):
        if not folder.has_config:
            continue
        try:
            config = read_config(folder.config_file)
        except ConfigError:
            continue
        versions = folder.versions or ("1",)
        yield _report(folder.config_file, config, folder.path / versions[-1])


def report_of(file: Path) -> Report:
    """Return the report of one file. Raises `ConfigError` if it can't be read."""
    return _report(file, read_config(file), file.parent)


def _report(file: Path, config: ModelConfig, version: Path) -> Report:
    completed = type(config)()
    completed.CopyFrom(config)
    set_backend(completed, version.parent.name, version)
    backend = completed.backend or completed.platform
    return Report(file, backend, tuple(classify(config, backend)))


def is_config_file(path: Path) -> bool:
    """Return whether a path is a configuration by itself: `config.pbtxt`, another `.pbtxt`, or a
    template of one (`config.pbtxt.template`).
    """
    return Path(CONFIG_FILE).suffix in path.suffixes
