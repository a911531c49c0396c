"""Decides what a path is, and writes what its conversion makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.backends.errors import ConfigError, Problem

from .torchserve import convert_archive, is_archive
from .triton_models import convert_models, is_triton


@dataclass(frozen=True, slots=True)
class Written:
    """What a conversion wrote: its files, notes for who converts, and what to do next."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    next: str
    problems: tuple[Problem, ...] = ()
    """Why some models of a repository were left out."""


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
    if is_triton(path):
        return _convert_repository(path, output, force=force)
    message = (
        "expected a model repository of Triton's, the folder of one of its models, or an archive "
        "of TorchServe (.mar)"
    )
    raise ConfigError([Problem(message, str(path))])


def _convert_repository(path: Path, output: Path, *, force: bool) -> Written:
    if output.resolve() == path.resolve() or path.resolve() in output.resolve().parents:
        message = "it is in the repository itself: expected another folder"
        raise ConfigError([Problem(message, str(output))])
    converted, errors = convert_models(path)
    problems = tuple(problem for error in errors for problem in error.problems)
    if not converted:
        raise ConfigError(problems)
    for one in converted:
        one.write(output, force=force)
    return Written(
        tuple(output / name for one in converted for name in one.texts),
        tuple(note for one in converted for note in one.notes),
        f"penstock check {output}, penstock serve {output}",
        problems,
    )
