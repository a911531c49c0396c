"""`penstock bench`: the options, and how the report is printed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:  # at run time only when it is called: the other commands need none of it
    from penstock.backends.timeline import Recording

    from ..bench.measure import Load

T = TypeVar("T")


def bench_command(
    target: Annotated[
        str,
        typer.Argument(
            help="Address of a pipeline of a running server, http://127.0.0.1:8000/predict/digits; or a pipeline FILE."
        ),
    ],
    *,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images, or one image, to send. Else JPEGs of 640×427, about 100 kB.",
            exists=True,
        ),
    ] = None,
    clients: Annotated[
        int, typer.Option(min=1, help="Closed loop: clients, each waiting for its answer.")
    ] = 16,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests in all.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, help="How long; 10 s if neither is given.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Open loop: arrivals a second (Poisson), whether or not earlier ones were answered.",
        ),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Each request's deadline; the report counts what was in time."
        ),
    ] = None,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before, not counted.")] = 16,
    header: Annotated[
        list[str] | None, typer.Option(help="Header to send, 'Name: value'; may be repeated.")
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option(
            help="Process of the server, if it is not the one that listens on this machine's port."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="For the arrivals of an open loop.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Of a FILE: write a timeline of its batches (open it at https://ui.perfetto.dev).",
            dir_okay=False,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check instead that an image has one result per batch size (10,000 requests unless given).",
        ),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(help="With --verify: write all results to this file.", dir_okay=False),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="With --verify: compare with the results in this file.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Measure a running server, or a pipeline file in this process: rate, latency, outcomes, CPU, memory, GPU.

    With --verify, see whether concurrency changes results; exits with 1 if it does.
    """
    import orjson

    from penstock.backends.errors import PenstockError
    from penstock.backends.timeline import Recording

    from ..bench.images import read_folder, synthetic_jpegs
    from ..bench.measure import Load, NotAnswering, bench_file, bench_url

    if requests is not None and seconds is not None:
        raise typer.BadParameter("give either --requests or --seconds")
    if not verify and (store or compare):
        raise typer.BadParameter("--store and --compare belong to --verify")
    if verify and (seconds is not None or rate is not None or deadline_ms is not None or as_json):
        raise typer.BadParameter(
            "--verify takes --requests and --clients, not --seconds, --rate, --deadline-ms or --json"
        )
    headers = dict(_header(text) for text in header or ())
    is_url = target.startswith(("http://", "https://"))
    if not is_url and (headers or pid is not None):
        raise typer.BadParameter(
            "--header and --pid are for a running server, and the target is a file"
        )
    if profile is not None:
        _check_profile(profile, is_url, verify)
    recording = Recording() if profile is not None else None
    try:
        bodies = read_folder(images) if images is not None else synthetic_jpegs()
        load = Load(
            bodies, clients, requests, seconds, rate, None if deadline_ms is None else deadline_ms / 1000, warm_up, seed, headers
        )  # fmt: skip
        if verify:
            _verify(target, is_url, load, store, compare)
            return
        report = run(
            bench_url(target, load, pid or _server_of(target))
            if is_url
            else bench_file(target, load, recording)
        )
    except (PenstockError, NotAnswering, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(
        orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2).decode()
        if as_json
        else str(report)
    )
    if profile is not None and recording is not None:
        _write(recording, profile)


def _check_profile(path: Path, is_url: bool, verify: bool) -> None:
    if is_url:
        raise typer.BadParameter(
            "--profile is a timeline of a pipeline in this process: give its FILE instead of a server's address"
        )
    if verify:
        raise typer.BadParameter("--profile and --verify don't go together")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"--profile: there is no directory {path.parent}")


def _write(recording: Recording, path: Path) -> None:
    import orjson

    try:
        path.write_bytes(orjson.dumps(recording.trace()))
    except OSError as error:
        typer.echo(f"--profile: {path} can't be written: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"timeline: {path}, for https://ui.perfetto.dev", err=True)
    if recording.missing:
        spans = f"the first {recording.limit} spans; {recording.missing} later ones"
        typer.echo(
            f"timeline: it has only {spans} did not fit: give fewer --requests or --seconds",
            err=True,
        )


def _verify(
    target: str, is_url: bool, load: Load, store: Path | None, compare: Path | None
) -> None:
    from ..bench.verify import lines, read_results, verify_file, verify_url

    before = read_results(compare) if compare is not None else None
    found = run(verify_url(target, load) if is_url else verify_file(target, load))
    if store is not None:
        found.store(store)
    text, good = lines(found, found.compared(before) if before is not None else None)
    for line in text:
        typer.echo(line)
    if not good:
        raise typer.Exit(1)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise typer.BadParameter(f"{text!r} is no header: expected 'Name: value'")
    return name.strip(), value.strip()


def _server_of(url: str) -> int | None:
    """The server's process, where it is on this machine."""
    from urllib.parse import urlsplit

    from ..bench.usage import listener

    parts = urlsplit(url)
    return (
        listener(parts.port or 80) if parts.hostname in ("127.0.0.1", "localhost", "::1") else None
    )


def run(work: Coroutine[Any, Any, T]) -> T:
    """On the event loop that `penstock serve` has."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(work)
    return uvloop.run(work)
