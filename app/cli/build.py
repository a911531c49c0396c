"""`penstock build`: build engines before the first start. `penstock encrypt`: encrypt files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from .output import fail, file_error

if TYPE_CHECKING:  # imported when they run: other commands need none of it
    from penstock.backends.base import Context
    from penstock.backends.engines.tensorrt.progress import Progress
    from penstock.backends.expressions.spec import Spec
    from penstock.pipelines.config.definition import PipelineConfig

T = TypeVar("T")

EXIT_CANCELLED = 130
"""The exit status after Ctrl-C, by the convention of shells: 128 + SIGINT."""


def build_command(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A pipeline file (.toml), or a directory of them."),
    ],
) -> None:
    """Build TensorRT engines before `penstock serve` needs them.

    An engine that exists already is kept. Exits with 1, and the reasons, if one can't be built.
    Ctrl-C cancels.
    """
    from penstock.backends.errors import ConfigError, PenstockError
    from penstock.pipelines.repository import Repository

    try:
        repository = Repository.read(path)
    except ConfigError as error:
        fail(*map(str, error.problems))
    builds = [build for config in repository.all_configs for build in _builds(config)]
    reasons = [*map(str, repository.problems)]
    if not builds and not reasons:
        typer.echo(f"{path}: no node has an engine to build (only TensorrtTensor has one)")
        return
    for name, spec, context in builds:
        try:
            _build_one(name, spec, context)
        except PenstockError as error:
            reasons.append(str(error))
    if reasons:
        fail(*reasons)


def encrypt_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A model or an engine: .onnx, .trt, .plan, .engine or .pt.",
            exists=True,
            dir_okay=False,
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to write. Default: FILE.encrypted.", dir_okay=False
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File with the key. Default: the key in PENSTOCK_MODEL_KEY, or in the file that "
            "PENSTOCK_MODEL_KEY_FILE names.",
        ),
    ] = None,
) -> None:
    """Encrypt a model or an engine with AES-256-GCM.

    Engines read FILE.encrypted with the same key. `openssl rand -hex 32` makes a key.
    """
    from penstock.backends.engines.encryption import ENCRYPTED_SUFFIX, encrypt, find_key
    from penstock.backends.engines.tensorrt.cache import write_atomically
    from penstock.backends.errors import BackendError

    target = output or file.with_name(file.name + ENCRYPTED_SUFFIX)
    if target.suffix != ENCRYPTED_SUFFIX:
        raise typer.BadParameter(
            f"--output: {target} does not end with {ENCRYPTED_SUFFIX}: "
            "engines know encrypted files by it"
        )
    try:
        write_atomically(target, encrypt(file.read_bytes(), find_key(key_file)))
    except BackendError as error:
        fail(str(error))
    except OSError as error:
        fail(file_error(error.filename or target, error))
    typer.echo(f"wrote {target}")


def _builds(config: PipelineConfig) -> Iterator[tuple[str, Spec, Context]]:
    """Yield the backends that can be built ahead, once for each `&` group and device."""
    from penstock.pipelines.node.placement import context_of

    for node in config.nodes.values():
        for index, group in enumerate(node.instance_groups):
            contexts = [
                context_of(node, config, index, instance) for instance in range(group.instances)
            ]
            for context in {context.device: context for context in contexts}.values():
                for spec in _buildable(group.spec):
                    yield f"{config.name}/{node.name}", spec, context


def _buildable(spec: Spec) -> Iterator[Spec]:
    if hasattr(spec.cls, "build_ahead"):
        yield spec
    for child in spec.children:
        yield from _buildable(child)


def _build_one(name: str, spec: Spec, context: Context) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from penstock.backends.engines.tensorrt.progress import Progress

    build: Callable[[Any, Context, Progress], Any] = spec.cls.build_ahead  # type: ignore[attr-defined]  # _buildable looked
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
            if progress.waits_for:  # also as a line: bars are not drawn without a terminal
                bars.console.print(
                    f"{name}: {phase}, which builds the same engine", markup=False, soft_wrap=True
                )

        progress = Progress(show)
        engine = _run_in_thread(lambda: build(spec.params, context, progress), progress)
    size = f"{engine.path} ({engine.size / 2**20:.1f} MiB)"
    typer.echo(
        f"{name}: built in {time.monotonic() - started:.1f} s, {size}"
        if engine.built
        else f"{name}: already there, {size}"
    )


def _run_in_thread(work: Callable[[], T], progress: Progress) -> T:
    """Run `work` on another thread, and cancel it when Ctrl-C interrupts the main thread.

    Not on the main thread itself: KeyboardInterrupt must not pass through TensorRT's frames. The
    main thread waits in an event loop, which a signal always wakes; a signal just before a plain
    `thread.join` would be seen only after it.
    """
    import asyncio
    from concurrent.futures import Future

    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="penstock-build", daemon=True)

    async def wait() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed: Ctrl-C came first
                loop.call_soon_threadsafe(done.set)

        future.add_done_callback(wake)
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
        with suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for that step
            thread.join()
        raise typer.Exit(EXIT_CANCELLED) from None
    return future.result()
