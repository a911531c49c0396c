"""Decides what a path is, and writes what its conversion makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.backends.errors import ConfigError, Problem

from .torchserve import convert_archive, is_archive


@dataclass(frozen=True, slots=True)
class Written:
    """What a conversion wrote: its files, notes for who converts, and what to do next."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    next: str


def convert(path: Path, output: Path, *, force: bool = False) -> Written:
    """Convert what is at a path, and write it below `output`.

    Raises ConfigError for what can't be converted, and for files that are there unless `force`.
    Raises OSError.
    """
    if is_archive(path):
        with convert_archive(path) as converted:
            converted.write(output, force=force)
        file = output / f"{converted.name}.toml"
        return Written(
            (file,), tuple(converted.notes), f"penstock check {file}, penstock serve {output}"
        )
    message = "expected an archive of TorchServe (.mar)"
    raise ConfigError([Problem(message, str(path))])
