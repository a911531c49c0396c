"""The command line: `penstock serve`, `check`, `call`, `backends`, `bench`. Typer and rich are imported here and nowhere in the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from penstock.backends.errors import ConfigError

from .bench_cli import bench_command
from .call_cli import call_command
from .cli_options import with_settings
from .settings import Settings

command_line = typer.Typer(
    name="penstock",
    help="Penstock serves deep-learning pipelines over HTTP.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut long names off ("PENSTOCK_ALLOW_M…")
    add_completion=False,
    pretty_exceptions_enable=False,
)
command_line.command("bench")(bench_command)
command_line.command("call")(call_command)

Source = Annotated[Path, typer.Argument(help="A pipeline file (.toml), a directory of such, or an image classifier (.onnx).")]


def main() -> None:
    """The entry point of the package."""
    command_line()


def serve(
    path: Source,
    *,
    labels: Annotated[Path | None, typer.Option(help="For a bare .onnx model: its classes' names, one per line.")] = None,
    settings: Settings,
) -> None:
    """Serve pipelines over HTTP until SIGTERM or Ctrl-C; what is inside then ends first."""
    from penstock.pipelines.repository import Repository

    from .serve import serve as run

    try:
        repository = Repository.read(path, labels=labels)
    except ConfigError as error:
        _fail(error)
    raise typer.Exit(run(repository, settings))


command_line.command("serve")(with_settings(serve))


@command_line.command()
def check(
    path: Source,
    *,
    labels: Annotated[Path | None, typer.Option(help="For a bare .onnx model: its classes' names, one per line.")] = None,
) -> None:
    """Check pipeline files without running anything, and print what they say. Prints every problem and exits with 1 if there is one."""
    from penstock.pipelines.repository import Repository

    from .tables import print_pipelines

    try:
        repository = Repository.read(path, labels=labels)
    except ConfigError as error:
        _fail(error)
    for config in repository.configs.values():
        for warning in config.warnings:
            typer.echo(f"warning: {warning}", err=True)
    print_pipelines(repository.configs.values())


@command_line.command()
def backends(name: Annotated[str | None, typer.Argument(help="One backend, to see its parameters.")] = None) -> None:
    """List the backends that expressions may name, or describe one."""
    from penstock.backends.registry import PLANNED, describe, describe_all

    from .tables import print_backend, print_backends

    try:
        if name is None:
            print_backends(describe_all(), PLANNED)
        else:
            print_backend(describe(name))
    except ConfigError as error:
        _fail(error)


def _fail(error: ConfigError) -> NoReturn:
    """Every problem on a line of its own, and exit code 1."""
    for problem in error.problems:
        typer.echo(str(problem), err=True)
    sys.exit(1)
