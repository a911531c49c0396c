"""The command line: `serve`, `graph` and `backends`; the longer commands are beside it.

Only `penstock.app.cli` imports Typer and rich. A command imports what it runs when it runs, so that
`penstock --help` stays quick.
"""

from __future__ import annotations

import socket
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import penstock
from penstock.backends.errors import ConfigError, Problem
from penstock.pipelines.config.presets import ImageOptions

from ..settings import Settings
from .bench import bench_command
from .build import build_command, encrypt_command
from .call import call_command
from .check import check_command
from .convert import convert_command
from .init import init_command
from .options import Labels, Source, read_repository, with_image, with_settings
from .output import fail
from .reload import reload_command
from .shadow import shadow_command
from .signals import hold_signals_back
from .why import why_command

if TYPE_CHECKING:  # imported when a command runs
    from penstock.pipelines.repository import Repository

command_line = typer.Typer(
    name="penstock",
    help="Penstock serves deep-learning pipelines over HTTP.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut long names off ("PENSTOCK_ALLOW_M…")
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
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
    """Take the options that come before a command's name."""


def serve(
    path: Source,
    *,
    labels: Labels = None,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload",
            help="For development: start again when pipelines, models, labels or code change in "
            "PATH's folder or the working directory. Needs penstock-serve[reload].",
        ),
    ] = False,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="With --reload: another folder to watch. May be repeated.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    process: Annotated[
        str | None,
        typer.Option(metavar="NAME", hidden=True, help="What the parent process starts this as."),
    ] = None,
    image: ImageOptions,
    settings: Settings,
) -> None:
    """Serve pipelines over HTTP until SIGTERM or Ctrl-C.

    A bare .onnx model of images needs no file: say how they are prepared by --preset, or by --mean,
    --std, --color and --size.

    Requests in flight at that time are still answered, for --drain-timeout at most. A pipeline of a
    directory that can't be read or loaded is logged and left out; --strict refuses to start then.
    """
    from ..processes.count import front_count
    from ..server.listeners import inherited

    if reload_dir and not reload and not inherited:
        raise typer.BadParameter("--reload-dir needs --reload")
    if process is None and front_count(settings) > 1:
        raise typer.Exit(_serve_processes(settings, reload=reload or bool(inherited)))
    if reload:
        from ..server.reload import serve_and_reload

        raise typer.Exit(serve_and_reload(serve_again, path, reload_dir or (), settings))

    def read() -> Repository:
        return read_repository(path, labels, image, strict=settings.strict)

    if process is not None:
        raise typer.Exit(_serve_child(process, read, settings))
    from ..server.serve import serve as run

    try:
        raise typer.Exit(run(read(), settings))
    except ConfigError as error:
        fail(*map(str, error.problems))


def _serve_processes(settings: Settings, *, reload: bool) -> int:
    from ..processes.count import is_supported

    if not is_supported():
        raise typer.BadParameter("--processes needs Linux: elsewhere, one process serves")
    if reload:
        raise typer.BadParameter("--processes and --reload do not go together: leave out one")
    from ..processes.parent.serve import serve_processes

    return serve_processes(settings)


def _serve_child(name: str, read: Callable[[], Repository], settings: Settings) -> int:
    from ..processes.entry import NoParentError, run_child

    try:
        return run_child(name, read, settings)
    except NoParentError:
        raise typer.BadParameter("--process is for processes that the server starts") from None


def serve_again(arguments: Sequence[str], listeners: Sequence[socket.socket]) -> None:
    """Run `penstock` in a process that `penstock serve --reload` has started after a change.

    `listeners`: sockets that listen already.
    """
    from ..server.listeners import inherited

    hold_signals_back(serves=True)
    inherited[:] = listeners
    sys.argv = ["penstock", *arguments]
    main()


def graph(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A pipeline file (.toml), a directory of them, an image model (.onnx), "
            "or - for a pipeline file on standard input.",
        ),
    ],
    *,
    labels: Labels = None,
    image: ImageOptions,
) -> None:
    """Draw pipelines as a Mermaid flowchart. Nothing is run.

    GitHub, GitLab and many editors show Mermaid.
    """
    from penstock.pipelines.repository import Repository

    from .mermaid import flowchart

    try:
        repository = (
            Repository.read(_standard_input())
            if str(path) == "-"
            else read_repository(path, labels, image)
        )
    except ConfigError as error:
        fail(*map(str, error.problems))
    typer.echo(flowchart(repository.configs.values()))
    if repository.unread:
        fail(*map(str, repository.problems))


def backends(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A backend, to describe it and its parameters."),
    ] = None,
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
        fail(*map(str, error.problems))


def schema() -> None:
    """Print a JSON Schema of pipeline files, for editors.

    Save it, and name it in the first line of a file: #:schema ./penstock.schema.json
    """
    import json

    from penstock.pipelines.config.file_schema import file_schema

    typer.echo(json.dumps(file_schema(), indent=1, ensure_ascii=False))


def _standard_input() -> dict[str, Any]:
    """Read a pipeline file from standard input; its paths are relative to the working directory."""
    try:
        return tomllib.loads(sys.stdin.buffer.read().decode())
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError([Problem(f"not valid TOML: {error}", "standard input")]) from None


COMMANDS: dict[str, Callable[..., None]] = {
    "serve": with_settings(with_image(serve)),
    "reload": reload_command,
    "shadow": with_settings(with_image(shadow_command)),
    "check": with_image(check_command),
    "graph": with_image(graph),
    "schema": schema,
    "init": with_image(init_command),
    "convert": convert_command,
    "call": with_image(call_command),
    "why": why_command,
    "backends": backends,
    "bench": bench_command,
    "build": build_command,
    "encrypt": encrypt_command,
}
"""Every command, in the order of `penstock --help`."""

for _name, _command in COMMANDS.items():
    command_line.command(_name)(_command)
