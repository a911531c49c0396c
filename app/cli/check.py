"""`penstock check`: does what `penstock serve` would, short of running anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.pipelines.config.presets import ImageOptions

from .options import Labels, Source, read_repository
from .output import fail

if TYPE_CHECKING:  # imported when it runs: other commands need none of it
    from penstock.pipelines.repository import Repository


def check_command(
    path: Source,
    *,
    labels: Labels = None,
    image: ImageOptions,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Load the models too, and say which of them run each item alone, and where "
            "measured nodes run. Nothing is served.",
        ),
    ] = False,
    effective: Annotated[
        bool,
        typer.Option(
            "--effective",
            help="Print the configuration as TOML, with every default filled in, and nothing else.",
        ),
    ] = False,
) -> None:
    """Check pipeline files, their models and labels. Without --load nothing is run but the
    auto_complete_config of Triton's Python models.

    Prints the nodes, what /predict and /v2 take and answer, and all problems. Exits with 1 if there
    are any; warnings alone don't count. Of a Triton model repository, and of a config.pbtxt by
    itself, it prints what is done with each field.
    """
    from penstock.backends.errors import ConfigError, PenstockError
    from penstock.pipelines.checking.check import check_pipelines
    from penstock.pipelines.triton.fields.report import is_config_file

    from .check_tables import print_loaded, print_pipelines, print_summary
    from .effective import effective_toml

    if is_config_file(path):
        _check_fields(path)
        return
    if path.is_dir() and not effective:
        _print_fields(path)
    try:
        repository = read_repository(path, labels, image)
    except ConfigError as error:
        fail(*map(str, error.problems))
    configs = repository.all_configs
    if effective:
        typer.echo("\n".join(map(effective_toml, configs)), nl=False)
        if repository.problems:
            fail(*map(str, repository.problems))
        return
    checked = check_pipelines(configs, whole=Path(path).is_dir())
    warnings = [warning for config in configs for warning in config.warnings]
    problems: list[str] = []
    for opened in checked:
        for finding in opened.findings:
            (warnings if finding.warning else problems).append(str(finding.problem))
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    print_pipelines(checked)
    if len(checked) + len(repository.unread) > 1:
        print_summary(checked, repository.unread)
    problems += map(str, repository.problems)  # the others could be served
    if problems:
        fail(*problems)
    if load:
        try:
            print_loaded(asyncio.run(_notes_of_load(repository)))
        except PenstockError as error:
            fail(str(error))


def _print_fields(directory: Path) -> None:
    """Print what is done with the fields that the configurations of Triton's models set."""
    from penstock.pipelines.triton.fields.report import reports_of

    from .check_triton import print_reports

    print_reports(reports_of(directory))


def _check_fields(file: Path) -> None:
    """Check the fields of a `config.pbtxt` alone: without its folder there is no model."""
    from penstock.backends.errors import ConfigError
    from penstock.pipelines.triton.fields.classify import refusals
    from penstock.pipelines.triton.fields.report import report_of

    from .check_triton import print_reports

    try:
        report = report_of(file)
    except ConfigError as error:
        fail(*map(str, error.problems))
    print_reports([report])
    if problems := refusals(report.fields, str(file)):
        fail(*map(str, problems))


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
                elif (
                    node.signature is not None and node.counted is None and node.scheduler.max == 1
                ):
                    notes.append(f"{place} runs each item alone")
        return notes
    finally:
        await repository.close()
