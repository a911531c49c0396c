"""`penstock call`: one image through a pipeline file in this process, or to a running server; the answer as JSON."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer


def call_command(
    target: Annotated[
        str,
        typer.Argument(
            help="A pipeline FILE (.toml, or an image classifier .onnx), or the address of one of a running server."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(help="The image, or whatever file the pipeline takes; - is standard input."),
    ],
    *,
    labels: Annotated[
        Path | None, typer.Option(help="For a bare .onnx model: its classes' names, one per line.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="The second argument is the data itself, a text.")
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace", help="Print what each node did, to standard error. Not in processes then."
        ),
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            help="API key of a running server, or its admin token, which may see its trace.",
            envvar="PENSTOCK_ADMIN_TOKEN",
        ),
    ] = None,
) -> None:
    """Run one image through a pipeline, print the answer as JSON. Exits with 1, and the reason, if there is none."""
    from penstock.backends.errors import PenstockError

    try:
        value = (
            data if text else sys.stdin.buffer.read() if data == "-" else Path(data).read_bytes()
        )
    except OSError as error:
        _fail(f"{data}: {error.strerror}")
    try:
        if target.startswith(("http://", "https://")):
            asyncio.run(
                _call_url(target, value.encode() if isinstance(value, str) else value, token, trace)
            )
        else:
            asyncio.run(_call_file(Path(target), value, labels, trace))
    except (PenstockError, ValueError) as error:
        _fail(str(error))


async def _call_file(path: Path, value: bytes | str, labels: Path | None, traced: bool) -> None:
    from penstock.pipelines.config.load import from_model, load
    from penstock.pipelines.pipeline import Pipeline

    from ..http.render import fields_of, to_json
    from .trace import Watched

    config = from_model(path, labels) if path.suffix == ".onnx" else load(path)
    watched = Watched(config) if traced else None
    async with Pipeline(config if watched is None else watched.config) as pipeline:
        trace = None
        if watched is not None:
            trace = watched.trace()
            watched.active = True
        run = pipeline.submit_nowait({"data": value}, trace=trace)
        try:
            item = await run.future
        finally:
            if trace is not None:
                _print_trace(trace.steps)
                plan_nodes = (
                    pipeline.plan.default.plan_nodes if pipeline.plan.default is not None else ()
                )
                seen = {step["node"] for step in trace.steps}
                if missed := ", ".join(
                    plan_node.name for plan_node in plan_nodes if plan_node.name not in seen
                ):
                    typer.echo(f"never reached: {missed}", err=True)
        if "error" in item:
            raise item["error"]
        typer.echo(to_json(fields_of(item, pipeline.answer_keys)).decode())


def _print_trace(steps: list[dict[str, Any]]) -> None:
    from .trace_text import lines

    for line in lines(steps):
        typer.echo(line, err=True)


async def _call_url(url: str, body: bytes, token: str | None, traced: bool) -> None:
    """With a token the server is asked for the trace; without one its `Server-Timing` is printed."""
    import orjson

    from ..bench.client import HttpClient
    from ..bench.load import NO_ANSWER
    from ..bench.report import OK

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if traced and token is not None:
        headers["Penstock-Trace"] = "1"
    client = HttpClient(url, headers, timing=True)
    try:
        answer = await client.send(body)
    finally:
        await client.close()
    text = answer.body.decode("utf-8", "replace")
    if "Penstock-Trace" in headers:
        with suppress(orjson.JSONDecodeError):  # no answer, or a proxy's
            found = orjson.loads(answer.body)
            if isinstance(found, dict) and "trace" in found:
                _print_trace(found.pop("trace"))
                text = orjson.dumps(found).decode()
    elif traced and answer.timing:
        typer.echo(answer.timing, err=True)
    if answer.status == NO_ANSWER:
        _fail("there is no answer: is the server running, and is this its address?")
    typer.echo(text, err=answer.status != OK)
    if answer.status != OK:
        raise typer.Exit(1)


def _fail(reason: str) -> NoReturn:
    typer.echo(reason, err=True)
    raise typer.Exit(1)
