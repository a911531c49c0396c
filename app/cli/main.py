"""The command line: `penstock serve`, `check`, `graph`, `call`, `backends`, `bench`. Typer and rich are imported here only."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import penstock
from penstock.backends.errors import ConfigError, Problem

from ..settings import Settings
from .bench import bench_command
from .build import build_command, encrypt_command
from .call import call_command
from .options import with_settings

command_line = typer.Typer(
    name="penstock",
    help="Penstock serves deep-learning pipelines over HTTP.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut long names off ("PENSTOCK_ALLOW_M…")
    add_completion=False,
    pretty_exceptions_enable=False,
)
command_line.command("bench")(bench_command)
command_line.command("build")(build_command)
command_line.command("call")(call_command)
command_line.command("encrypt")(encrypt_command)

Source = Annotated[
    Path,
    typer.Argument(
        help="A pipeline file (.toml), a directory of such, or an image classifier (.onnx)."
    ),
]


def main() -> None:
    """The entry point of the package."""
    command_line()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {penstock.__version__}")
        raise typer.Exit


@command_line.callback()
def _every_command(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What comes before the command's name."""


def serve(
    path: Source,
    *,
    labels: Annotated[
        Path | None, typer.Option(help="For a bare .onnx model: its classes' names, one per line.")
    ] = None,
    settings: Settings,
) -> None:
    """Serve pipelines over HTTP until SIGTERM or Ctrl-C; what is inside then ends first."""
    from penstock.pipelines.repository import Repository

    from ..server.serve import serve as run

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
    labels: Annotated[
        Path | None, typer.Option(help="For a bare .onnx model: its classes' names, one per line.")
    ] = None,
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
def graph(
    path: Annotated[
        Path,
        typer.Argument(
            help="A pipeline file (.toml), a directory of such, an image classifier (.onnx), or -: a file on standard input."
        ),
    ],
    *,
    labels: Annotated[
        Path | None, typer.Option(help="For a bare .onnx model: its classes' names, one per line.")
    ] = None,
) -> None:
    """Draw pipelines as a Mermaid flowchart, which GitHub and many editors show. Nothing is run."""
    from penstock.pipelines.repository import Repository

    from .mermaid import flowchart

    try:
        repository = Repository.read(_standard_input() if str(path) == "-" else path, labels=labels)
    except ConfigError as error:
        _fail(error)
    typer.echo(flowchart(repository.configs.values()))


@command_line.command()
def backends(
    name: Annotated[str | None, typer.Argument(help="One backend, to see its parameters.")] = None,
) -> None:
    """List the backends that expressions may name, or describe one."""
    from penstock.backends.expressions.registry import describe, describe_all

    from .tables import print_backend, print_backends

    try:
        if name is None:
            print_backends(describe_all())
        else:
            print_backend(describe(name))
    except ConfigError as error:
        _fail(error)


def _standard_input() -> dict[str, Any]:
    """A pipeline file that comes on it; paths in it are relative to the working directory."""
    try:
        return tomllib.loads(sys.stdin.buffer.read().decode())
    except ValueError as error:  # no UTF-8, or no TOML
        raise ConfigError([Problem(f"no TOML: {error}", "standard input")]) from None


def _fail(error: ConfigError) -> NoReturn:
    """Every problem on a line of its own, and exit code 1."""
    for problem in error.problems:
        typer.echo(str(problem), err=True)
    sys.exit(1)
