"""`penstock convert`: models of other servers become pipeline files, and these Triton's models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import fail, file_error


def convert_command(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A model repository of Triton's or the folder of one of its models; an archive of "
            "TorchServe (.mar, .tar.gz, or its folder); or a pipeline file (.toml) or a directory "
            "of them, for a repository of Triton's.",
            exists=True,
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder to write into; made if it is missing."
        ),
    ] = Path("converted"),
    force: Annotated[
        bool, typer.Option("--force", help="Write over files that are there.")
    ] = False,
) -> None:
    """Convert models of other servers into pipeline files, or pipeline files into Triton's models.

    Prints what it has written, and what differs from before. The files that it reads stay as they
    are.
    """
    from penstock.backends.errors import ConfigError

    from ..convert.convert import convert

    try:
        written = convert(path, output, force=force)
    except ConfigError as error:
        fail(*map(str, error.problems))
    except OSError as error:
        fail(file_error(Path(error.filename or output), error))
    for note in written.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"wrote {', '.join(map(str, written.files))}; next: {written.next}")
    if written.problems:
        fail(*map(str, written.problems))
