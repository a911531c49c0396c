"""The command line: `serve`, `check`, `graph` and `backends`; the longer commands are beside it.

Only `penstock.app.cli` imports Typer and rich. A command imports what it runs when it runs, so that
`penstock --help` stays quick.
"""

from __future__ import annotations

import asyncio
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import penstock
from penstock.backends.errors import ConfigError, PenstockError, Problem

from ..settings import Settings
from .bench import bench_command
from .build import build_command, encrypt_command
from .call import call_command
from .options import Labels, Source, with_settings
from .output import fail

if TYPE_CHECKING:
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


def serve(path: Source, *, labels: Labels = None, settings: Settings) -> None:
    """Serve pipelines over HTTP until SIGTERM or Ctrl-C.

    Requests in flight at that time are still answered, for --drain-timeout at most. A pipeline of a
    directory that can't be read or loaded is logged and left out; --strict refuses to start then.
    """
    from penstock.pipelines.repository import Repository

    from ..server.serve import serve as run

    try:
        repository = Repository.read(path, labels=labels, strict=settings.strict)
    except ConfigError as error:
        fail(*map(str, error.problems))
    raise typer.Exit(run(repository, settings))


def check(
    path: Source,
    *,
    labels: Labels = None,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Load the models too, and say which of them run each item alone, and where "
            "measured nodes run. Nothing is served.",
        ),
    ] = False,
) -> None:
    """Check pipeline files and list their nodes. Without --load nothing is run.

    Prints all problems and exits with 1 if there are any.
    """
    from penstock.pipelines.repository import Repository

    from .tables import print_loaded, print_pipelines

    try:
        repository = Repository.read(path, labels=labels)
    except ConfigError as error:
        fail(*map(str, error.problems))
    for config in repository.all_configs:
        for warning in config.warnings:
            typer.echo(f"warning: {warning}", err=True)
    print_pipelines(repository.all_configs)
    if repository.unread:  # the others could be served
        fail(*map(str, repository.problems))
    if load:
        try:
            print_loaded(asyncio.run(_notes_of_load(repository)))
        except PenstockError as error:
            fail(str(error))


async def _notes_of_load(repository: Repository) -> Sequence[str]:
    """Load all pipelines. Note where measured nodes run, and which models were not found to keep
    rows apart.
    """
    notes = []
    try:
        await repository.start()
        for pipeline in repository.served:
            for node in pipeline.nodes:
                place = f"{pipeline.name}: [{node.name}]"
                if pipeline.config.nodes[node.name].executor == "auto":
                    where = "the event loop" if node.config.executor == "auto" else "a thread"
                    notes.append(f"{place} runs on {where}, as measured")
                if any(executor.undecided for executor in node.executors):
                    notes.append(
                        f"{place} can't be probed at load: its first items decide whether items "
                        "share runs"
                    )
                elif node.signature is not None and node.counted is None:
                    notes.append(f"{place} runs each item alone")
        return notes
    finally:
        await repository.close()


def graph(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A pipeline file (.toml), a directory of them, an image classifier (.onnx), "
            "or - for a pipeline file on standard input.",
        ),
    ],
    *,
    labels: Labels = None,
) -> None:
    """Draw pipelines as a Mermaid flowchart. Nothing is run.

    GitHub, GitLab and many editors show Mermaid.
    """
    from penstock.pipelines.repository import Repository

    from .mermaid import flowchart

    try:
        repository = Repository.read(_standard_input() if str(path) == "-" else path, labels=labels)
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


def _standard_input() -> dict[str, Any]:
    """Read a pipeline file from standard input; its paths are relative to the working directory."""
    try:
        return tomllib.loads(sys.stdin.buffer.read().decode())
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError([Problem(f"not valid TOML: {error}", "standard input")]) from None


COMMANDS: dict[str, Callable[..., None]] = {
    "serve": with_settings(serve),
    "check": check,
    "graph": graph,
    "call": call_command,
    "backends": backends,
    "bench": bench_command,
    "build": build_command,
    "encrypt": encrypt_command,
}
"""Every command, in the order of `penstock --help`."""

for _name, _command in COMMANDS.items():
    command_line.command(_name)(_command)
