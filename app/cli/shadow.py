"""`penstock shadow`: serve beside a running Triton, compare the answers, and take over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.backends.errors import ConfigError
from penstock.pipelines.config.presets import ImageOptions

from ..settings import Settings
from .options import Labels, Source, read_repository
from .output import fail, file_error

SWITCH_AFTER = 1000


def shadow_command(
    path: Source,
    *,
    labels: Labels = None,
    origins: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="URL",
            help="The running Triton: http://HOST:PORT, and grpc://HOST:PORT if its clients use "
            "gRPC (repeat the option; https and grpcs are TLS).",
        ),
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            "--from-metrics",
            metavar="URL",
            help="Triton's metrics, for its memory: http://HOST:8002/metrics.",
        ),
    ] = None,
    switch: Annotated[
        bool,
        typer.Option(
            "--switch",
            help="Answer a model here, once enough of its requests in a row have agreed "
            "(--switch-after). Without it only POST /shadow/switch does.",
        ),
    ] = False,
    switch_after: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --switch: so many compared requests in a row must agree. "
            f"Default: {SWITCH_AFTER}.",
        ),
    ] = None,
    rtol: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            min=0,
            help="Floats agree if they differ by at most --atol + --rtol × Triton's value.",
        ),
    ] = 1e-3,
    atol: Annotated[
        float, typer.Option(metavar="NUMBER", min=0, help="The absolute part of that bound.")
    ] = 1e-5,
    max_compared: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="The most requests that are held to be compared. More are forwarded all the same.",
        ),
    ] = 256,
    max_compared_bytes: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="The most bytes of requests and answers that are held for it."
        ),
    ] = 256 << 20,
    from_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            help="A request is answered with 504 if Triton sends nothing for so long.",
        ),
    ] = 300.0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the report to this file, too, when it ends."
        ),
    ] = None,
    image: ImageOptions,
    settings: Settings,
) -> None:
    """Serve beside a running Triton: forward its requests, compare the answers, take over.

    Every request below /v2, and every call by gRPC (--grpc-port), goes to Triton and is answered by
    it. Infer requests then run here too, and their outputs are compared. GET /shadow says how they
    agree; so does the report at the end (SIGTERM or Ctrl-C).
    """
    from penstock.pipelines.repository import Repository

    from ..server.serve import serve
    from ..shadow.options import ShadowOptions, Tolerance, http_place, options_of
    from ..shadow.report import full
    from ..shadow.shadow import Shadow

    if settings.processes != 1:
        raise typer.BadParameter("--processes is for penstock serve: a shadow is one process")
    if switch_after is not None and not switch:
        raise typer.BadParameter("--switch-after needs --switch")
    try:
        http, grpc, grpc_tls = options_of(origins)
        if metrics is not None:
            http_place(metrics)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if settings.grpc_port is not None and grpc is None:
        raise typer.BadParameter(
            "--grpc-port: where does Triton listen for gRPC? Expected --from grpc://HOST:PORT too"
        )
    if grpc is not None and settings.grpc_port is None:
        raise typer.BadParameter(
            f"--from grpc://{grpc}: at which port do clients find this server? Expected --grpc-port"
        )
    if report is not None and not report.absolute().parent.is_dir():
        fail(file_error(report, FileNotFoundError()))
    options = ShadowOptions(
        http=http,
        grpc=grpc,
        grpc_tls=grpc_tls,
        metrics=metrics,
        tolerance=Tolerance(rtol, atol),
        switch_after=(switch_after or SWITCH_AFTER) if switch else None,
        max_compared=max_compared,
        max_compared_bytes=max_compared_bytes,
        timeout=from_timeout,
    )
    try:
        repository = read_repository(path, labels, image, strict=settings.strict)
    except ConfigError as error:
        fail(*map(str, error.problems))
    shadows: list[Shadow] = []

    def make(repository: Repository, settings: Settings) -> Shadow:
        shadows.append(Shadow(repository, options, settings))
        return shadows[0]

    code = serve(repository, settings, make)
    final = shadows[0].final if shadows else None
    if final is not None:
        for line in full(final):
            typer.echo(line)
        if report is not None:
            import orjson

            try:
                report.write_bytes(orjson.dumps(final, option=orjson.OPT_INDENT_2))
            except OSError as error:
                fail(file_error(report, error))
    raise typer.Exit(code)
