"""Completes the configuration of a Python model by its own `auto_complete_config`."""

from __future__ import annotations

from pathlib import Path

from penstock.backends.triton_python import auto_complete

from ..messages import ModelConfig, as_json
from ..reading import parse_json_config


def complete(config: ModelConfig, version: Path) -> None:
    """Let the model complete its configuration, in a process of its own.

    Triton asks every model that has the function, also one whose file says all. Raises
    `ConfigError`.
    """
    file = version / config.default_model_filename
    if not _may_complete(file):
        return
    config.CopyFrom(parse_json_config(auto_complete.complete(file, as_json(config)), str(file)))


def _may_complete(file: Path) -> bool:
    """Return whether the function is named in the file. Starting a process takes a second."""
    try:
        return b"auto_complete_config" in file.read_bytes()
    except OSError:  # what runs the model says so
        return False
