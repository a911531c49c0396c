"""`penstock init`: writes a pipeline file for a model, or a folder for a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import penstock
from penstock.pipelines.config.presets import ImageOptions

from .options import Labels
from .output import fail, file_error


def init_command(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]", help="An ONNX model (.onnx); with --project the folder to make."
        ),
    ] = None,
    *,
    labels: Labels = None,
    image: ImageOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE",
            help="File to write; - is standard output. Default: the model's name with .toml, "
            "beside the model.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are there.")
    ] = False,
    project: Annotated[
        bool,
        typer.Option(
            "--project",
            help="Make a folder with a pipeline, a backend of your own, a test and a Dockerfile. "
            "Default of PATH: penstock_project.",
        ),
    ] = False,
) -> None:  # fmt: skip
    """Write a pipeline file for an ONNX model, with comments, from what the model says of itself.

    A model of images gets the nodes that decode and prepare them: name a --preset, or --mean,
    --std, --color and --size. Any other model gets its tensors as they are.
    """
    from penstock.backends.errors import ConfigError
    from penstock.pipelines.config.written import pipeline_file

    if project:
        _write_project(path or Path("penstock_project"), force)
        return
    if path is None:
        raise typer.BadParameter("give an ONNX model (.onnx), or --project for a folder")
    target = output or path.parent / f"{path.stem}.toml"
    to_stdout = str(target) == "-"
    directory = Path() if to_stdout else target.parent
    try:
        written = pipeline_file(path, labels, image, directory)
    except ConfigError as error:
        fail(*map(str, error.problems))
    for warning in written.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if to_stdout:
        typer.echo(written.text, nl=False)
        return
    _write({target: written.text}, force)
    typer.echo(f"wrote {target}; next: penstock check {target}, penstock serve {target}")


def _write_project(folder: Path, force: bool) -> None:
    from .project import project_files

    name = folder.resolve().name
    files = {
        folder / file: text for file, text in project_files(name, penstock.__version__).items()
    }
    _write(files, force)
    typer.echo(
        f"wrote {', '.join(str(file) for file in files)}\n"
        f"next: cd {folder}; python -m pytest; penstock serve pipeline.toml"
    )


def _write(files: dict[Path, str], force: bool) -> None:
    """Write files, all or none: not over those that are there, unless `force`."""
    for file in files:
        if file.exists() and not force:
            fail(f"{file}: there is such a file: give --force to write over it, or another name")
    for file, text in files.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            fail(file_error(file, error))
