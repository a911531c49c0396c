"""`penstock bench`: its options, and how its report is printed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .options import Headers, headers_of
from .output import fail

if TYPE_CHECKING:  # imported when it runs: other commands need none of it
    from penstock.backends.timeline import Recording

    from ..bench.load import Record
    from ..bench.measure import Load, Watch
    from ..bench.report import Report

T = TypeVar("T")

EXIT_INTERRUPTED = 130
"""The exit status after Ctrl-C, by the convention of shells: 128 + SIGINT."""


def bench_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="URL of a pipeline on a running server, such as "
            "http://127.0.0.1:8000/predict/digits; or a pipeline FILE to run in this process.",
        ),
    ],
    *,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Image, or folder of images, to send. Default: generated JPEGs of 640×427 "
            "pixels, about 100 kB each.",
            exists=True,
        ),
    ] = None,
    clients: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Closed loop: clients that each wait for an answer."),
    ] = 16,
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of requests to send.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=0.01,
            help="How long to send requests; 10 if --requests is not given either.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            min=0.001,
            help="Open loop: arrivals per second (Poisson), without waiting for answers.",
        ),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            min=0.001,
            help="Deadline of each request; the report counts the answers in time.",
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests to send first, not counted.")
    ] = 16,
    header: Headers = None,
    pid: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Process of the server, to measure its CPU and memory. Default: the process on "
            "this machine that listens on the URL's port.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="Seed of the arrivals with --rate, of the order with --verify."
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a page (.html) with a histogram of the latencies and a timeline.",
            dir_okay=False,
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a pipeline FILE: write a timeline of its batches here, to open at "
            "https://ui.perfetto.dev.",
            dir_okay=False,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Don't measure, but check that an image has one result per batch size. Sends "
            "10,000 requests unless --requests is given.",
        ),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --verify: write all results to FILE.", dir_okay=False
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --verify: compare with the results that --store wrote.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Measure a running server, or a pipeline in this process.

    Reports the rate, latencies and outcomes, and the use of CPU, memory and GPU. With --verify,
    checks instead whether concurrency changes results, and exits with 1 if it does. Ctrl-C ends the
    load, and the report is of the answers until then. Clients wait as long as a Retry-After says.
    """
    import orjson

    from penstock.backends.errors import PenstockError
    from penstock.backends.timeline import Recording

    from ..bench.images import read_folder, synthetic_jpegs
    from ..bench.measure import Load, NotAnswering, Watch, bench_file, bench_url

    if requests is not None and seconds is not None:
        raise typer.BadParameter("give either --requests or --seconds, not both")
    if not verify and (store or compare):
        raise typer.BadParameter("--store and --compare need --verify")
    if verify and (seconds is not None or rate is not None or deadline_ms is not None or as_json):
        raise typer.BadParameter(
            "--verify takes --requests and --clients, "
            "not --seconds, --rate, --deadline-ms or --json"
        )
    if verify and plot is not None:
        raise typer.BadParameter("--plot and --verify exclude each other")
    headers = headers_of(header)
    is_url = target.startswith(("http://", "https://"))
    if not is_url and Path(target).is_dir():
        raise typer.BadParameter(f"{target} is a directory: expected one pipeline file, or a URL")
    if not is_url and (headers or pid is not None):
        raise typer.BadParameter("--header and --pid are for a running server, not for a file")
    if plot is not None and not plot.parent.is_dir():
        raise typer.BadParameter(f"--plot: the directory {plot.parent} does not exist")
    if profile is not None:
        _check_profile(profile, is_url, verify)
    recording = Recording() if profile is not None else None
    try:
        load = Load(
            bodies=read_folder(images) if images is not None else synthetic_jpegs(),
            clients=clients,
            requests=requests,
            seconds=seconds,
            rate=rate,
            deadline=None if deadline_ms is None else deadline_ms / 1000,
            warm_up=warm_up,
            seed=seed,
            headers=headers,
        )
        if verify:
            _verify(target, is_url, load, store, compare)
            return
        watch = Watch()
        report = _run(
            bench_url(target, load, pid or _server_of(target), watch)
            if is_url
            else bench_file(target, load, recording, watch),
            watch,
            load,
        )
    except (PenstockError, NotAnswering, ValueError) as error:
        fail(str(error))
    typer.echo(
        orjson.dumps(
            report.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
        ).decode()
        if as_json
        else str(report)
    )
    if plot is not None:
        _write_plot(target, report, watch.record, plot)
    if profile is not None and recording is not None:
        _write_timeline(recording, profile)
    if watch.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _write_plot(target: str, report: Report, record: Record, path: Path) -> None:
    from ..bench.plot import page

    try:
        path.write_text(page(target, report, record), encoding="utf-8")
    except OSError as error:
        fail(f"--plot: {path} can't be written: {error.strerror}")
    typer.echo(f"plot: {path}", err=True)


def _check_profile(path: Path, is_url: bool, verify: bool) -> None:
    if is_url:
        raise typer.BadParameter(
            "--profile records a pipeline in this process: give its FILE, not a server's URL"
        )
    if verify:
        raise typer.BadParameter("--profile and --verify exclude each other")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"--profile: the directory {path.parent} does not exist")


def _write_timeline(recording: Recording, path: Path) -> None:
    import orjson

    try:
        path.write_bytes(orjson.dumps(recording.trace()))
    except OSError as error:
        fail(f"--profile: {path} can't be written: {error.strerror}")
    typer.echo(f"timeline: {path}, for https://ui.perfetto.dev", err=True)
    if recording.missing:
        typer.echo(
            f"timeline: only the first {recording.limit} spans are in it, {recording.missing} "
            "later ones are not: give fewer --requests or --seconds",
            err=True,
        )


def _verify(
    target: str, is_url: bool, load: Load, store: Path | None, compare: Path | None
) -> None:
    from ..bench.verify import read_results, verification_lines, verify_file, verify_url

    stored = read_results(compare) if compare is not None else None
    verification = _run(verify_url(target, load) if is_url else verify_file(target, load))
    if store is not None:
        verification.store(store)
    comparison = verification.compared(stored) if stored is not None else None
    lines, verified = verification_lines(verification, comparison)
    for line in lines:
        typer.echo(line)
    if not verified:
        raise typer.Exit(1)


def _server_of(url: str) -> int | None:
    """Return the process id of the server, if it runs on this machine."""
    from urllib.parse import urlsplit

    from ..bench.usage import listener

    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    return listener(parts.port or 80) if local else None


def _run(
    coroutine: Coroutine[Any, Any, T], watch: Watch | None = None, load: Load | None = None
) -> T:
    """Run a coroutine on the event loop that `penstock serve` uses.

    Ctrl-C ends the load that `watch` sees, or the command if none has begun. A second one ends the
    process at once. `load`: its progress is shown on standard error.
    """
    run: Callable[[Coroutine[Any, Any, T]], T] = asyncio.run
    with contextlib.suppress(ImportError):  # Windows
        import uvloop

        run = uvloop.run
    try:
        return run(_interruptible(coroutine, watch, load))
    except asyncio.CancelledError:
        typer.echo("interrupted before anything was measured", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


async def _interruptible(
    coroutine: Coroutine[Any, Any, T], watch: Watch | None, load: Load | None
) -> T:
    from ..bench.progress import show_progress

    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)

    def interrupt() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if watch is not None and watch.begun:
            watch.interrupt()
        else:
            task.cancel()

    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        # Not on Windows, nor on a thread that is not the main one.
        loop.add_signal_handler(signal.SIGINT, interrupt)
    shown = None
    if watch is not None and load is not None:
        shown = loop.create_task(show_progress(watch.record, load, sys.stderr))
    try:
        return await task
    finally:
        if shown is not None:
            shown.cancel()
            await asyncio.wait([shown])
