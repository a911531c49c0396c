"""Decides what a path is, and writes what its conversion makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.backends.errors import ConfigError, Problem
from penstock.pipelines.directory import sources_in

from .to_triton import convert_pipelines
from .torchserve import convert_archive, is_archive
from .triton_models import convert_models, is_triton
from .written import Converted


@dataclass(frozen=True, slots=True)
class Written:
    """The files that a conversion wrote, notes for the person who converts, and what to do next."""

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    next: str
    problems: tuple[Problem, ...] = ()
    """The reasons why some models of a repository were left out."""


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
    if path.is_dir() and path.resolve() in (output.resolve(), *output.resolve().parents):
        message = f"it is {path} or in it: expected another folder"
        raise ConfigError([Problem(message, str(output))])
    if is_triton(path):
        ends = f"penstock check {output}, penstock serve {output}"
        return _written(convert_models(path), output, ends, force=force)
    if path.suffix == ".toml" or (path.is_dir() and any(sources_in(path))):
        ends = f"tritonserver --model-repository {output}"
        return _written(convert_pipelines(path), output, ends, force=force)
    message = (
        "expected a model repository of Triton's, the folder of one of its models, an archive of "
        "TorchServe (.mar), or pipeline files (.toml) for a repository of Triton's"
    )
    raise ConfigError([Problem(message, str(path))])


def _written(
    outcome: tuple[list[Converted], list[ConfigError]], output: Path, ends: str, *, force: bool
) -> Written:
    """Write what could be converted. Raises ConfigError if nothing could."""
    converted, errors = outcome
    problems = tuple(problem for error in errors for problem in error.problems)
    if not converted:
        raise ConfigError(problems)
    for one in converted:
        one.write(output, force=force)
    return Written(
        tuple(output / name for one in converted for name in one.texts),
        tuple(note for one in converted for note in one.notes),
        ends,
        problems,
    )
