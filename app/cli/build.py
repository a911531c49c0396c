"""`penstock build`: engines ahead of the first start, with a bar for each. `penstock encrypt`: files that need a key."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:  # at run time only when it is called: the other commands need none of it
    from penstock.backends.base import Context
    from penstock.backends.engines.tensorrt.progress import Progress
    from penstock.backends.expressions.spec import Spec
    from penstock.pipelines.config.definition import PipelineConfig

CANCELLED = 130
"""The exit code of what Ctrl-C ended, as shells have it."""


def build_command(
    path: Annotated[Path, typer.Argument(help="A pipeline file (.toml), or a directory of such.")],
) -> None:
    """Build the engines that a pipeline file needs, and keep them where `penstock serve` looks. Ctrl-C stops it.

    An engine that is there already stays. Exits with 1, and the reasons, if one can't be built.
    """
    from penstock.backends.errors import ConfigError, PenstockError
    from penstock.pipelines.repository import Repository

    try:
        configs = Repository.read(path).configs.values()
    except ConfigError as error:
        _fail(*map(str, error.problems))
    found = [each for config in configs for each in _buildable(config)]
    if not found:
        typer.echo(f"{path}: no node has an engine that is built ahead (TensorrtTensor)")
        return
    reasons = []
    for name, spec, context in found:
        try:
            _build_one(name, spec, context)
        except PenstockError as error:
            reasons.append(str(error))
    if reasons:
        _fail(*reasons)


def encrypt_command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A model or an engine: .onnx, .trt, .plan, .engine or .pt, and no other.",
            exists=True,
            dir_okay=False,
        ),
    ],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Default: FILE.encrypted.", dir_okay=False)
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the key. Else PENSTOCK_MODEL_KEY, or the file that PENSTOCK_MODEL_KEY_FILE names."
        ),
    ] = None,
) -> None:
    """Encrypt a file with AES-256-GCM. Engines read it as FILE.encrypted with the same key (openssl rand -hex 32 makes one)."""
    from penstock.backends.engines.encryption import SUFFIX, encrypt, find_key
    from penstock.backends.engines.tensorrt.cache import write_atomically
    from penstock.backends.errors import BackendError

    target = output or file.with_name(file.name + SUFFIX)
    if target.suffix != SUFFIX:
        raise typer.BadParameter(
            f"{target} does not end with {SUFFIX}, by which engines know such files"
        )
    try:
        write_atomically(target, encrypt(file.read_bytes(), find_key(key_file)))
    except BackendError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or target}: {error.strerror}")
    typer.echo(f"wrote {target}")


def _buildable(config: PipelineConfig) -> Iterator[tuple[str, Spec, Context]]:
    """Every backend of a pipeline that can be built ahead, once for each `&` group and device."""
    from penstock.pipelines.node.placement import context_of

    for node in config.nodes.values():
        for index, group in enumerate(node.groups):
            contexts = [
                context_of(node, config, index, instance) for instance in range(group.instances)
            ]
            for context in {context.device: context for context in contexts}.values():
                for spec in _with_builds(group.spec):
                    yield f"{config.name}/{node.name}", spec, context


def _with_builds(spec: Spec) -> Iterator[Spec]:
    if hasattr(spec.cls, "build_ahead"):
        yield spec
    for child in spec.children:
        yield from _with_builds(child)


def _build_one(name: str, spec: Spec, context: Context) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from penstock.backends.engines.tensorrt.progress import Progress

    build: Callable[[Any, Context, Progress], Any] = spec.cls.build_ahead  # type: ignore[attr-defined]
    started = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=1.0)

        def show(fraction: float, phase: str) -> None:
            bars.update(task, completed=fraction, description=f"{name}: {phase}")
            if progress.waits_for:  # a line, too: where there is no terminal there are no bars
                bars.console.print(
                    f"{name}: {phase}, which builds the same engine", markup=False, soft_wrap=True
                )

        progress = Progress(show)
        engine = _in_thread(lambda: build(spec.params, context, progress), progress)
    size = f"{engine.path} ({engine.size / 2**20:.1f} MiB)"
    typer.echo(
        f"{name}: built in {time.monotonic() - started:.1f} s, {size}"
        if engine.built
        else f"{name}: already there, {size}"
    )


def _in_thread(work: Callable[[], Any], progress: Progress) -> Any:
    """Run it beside the main thread, which Ctrl-C reaches: an exception may not pass TensorRT's own frames.

    The main thread waits in an event loop, which a signal always wakes: one that comes just before a plain wait is not seen until its end.
    """
    import asyncio
    from concurrent.futures import Future

    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="penstock-build", daemon=True)

    async def wait() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed, since Ctrl-C came first
                loop.call_soon_threadsafe(done.set)

        future.add_done_callback(tell)
        thread.start()
        await done.wait()

    try:
        asyncio.run(wait())
    except KeyboardInterrupt:
        progress.cancel()
        typer.echo(
            "cancelled; TensorRT stops at its next step" if progress.phase else "cancelled",
            err=True,
        )
        with suppress(KeyboardInterrupt):  # a second one: not even that
            thread.join()
        raise typer.Exit(CANCELLED) from None
    return future.result()


def _fail(*reasons: str) -> NoReturn:
    for reason in reasons:
        typer.echo(reason, err=True)
    raise typer.Exit(1)
