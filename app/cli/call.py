"""`penstock call`: send one item to a pipeline file in this process, or to a running server."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.pipelines.config.presets import ImageOptions

from .options import Labels, Token, TokenFile, authorization, given_token, read_repository
from .output import fail, file_error, shortened

if TYPE_CHECKING:  # imported when it runs: other commands need none of it
    from penstock.backends.item import Item
    from penstock.pipelines.config.definition import PipelineConfig
    from penstock.pipelines.pipeline import Pipeline
    from penstock.pipelines.repository import Repository


def call_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A pipeline file (.toml), a directory of them, an image model (.onnx), or the URL "
            "of a pipeline on a running server, such as http://127.0.0.1:8000/predict/digits. "
            "The URL may have a query (?sequence=cam-7).",
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="The file to send: an image, or what else the pipeline takes; several inputs "
            "as one JSON object. - is standard input.",
        ),
    ],
    *,
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For a directory: the pipeline to call. All of them are loaded, so that its "
            "Python logic can call the others.",
        ),
    ] = None,
    labels: Labels = None,
    image: ImageOptions,
    full: Annotated[
        bool,
        typer.Option("--full", help="Print arrays and long lists of numbers in full."),
    ] = False,
    text: Annotated[
        bool, typer.Option("--text", help="DATA is not a file but the text to send.")
    ] = False,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help="Print what each node did, to standard error. Backends that would run in a "
            "process of their own run on a thread for it. A server gives its trace to the admin "
            "token alone.",
        ),
    ] = False,
    token: Token = None,
    token_file: TokenFile = None,
) -> None:
    """Send one image, or what else the pipeline takes, and print the answer as JSON.

    Arrays and long lists of numbers are printed short; --full prints them whole. A file whose
    pipeline keeps the state of sequences gets a sequence of this one step.

    Exits with 1 and the reason if the pipeline gives no answer.
    """
    from penstock.backends.errors import PenstockError

    try:
        value = (
            data if text else sys.stdin.buffer.read() if data == "-" else Path(data).read_bytes()
        )
    except OSError as error:
        fail(file_error(data, error))
    try:
        if target.startswith(("http://", "https://")):
            body = value.encode() if isinstance(value, str) else value
            given = given_token(token, token_file)
            asyncio.run(_call_url(target, body, given, traced=trace, full=full))
        else:
            path = Path(target)
            asyncio.run(_call_file(path, pipeline, value, image, labels, traced=trace, full=full))
    except (PenstockError, ValueError) as error:
        fail(str(error))


async def _call_file(
    path: Path,
    name: str | None,
    value: bytes | str,
    image: ImageOptions,
    labels: Path | None,
    *,
    traced: bool,
    full: bool,
) -> None:
    from penstock.pipelines.repository import Repository
    from penstock.pipelines.sequences.step import Step

    from ..http.render import fields_of, to_json
    from .trace import ForwardRecorder, trace_lines

    read = read_repository(path, labels, image)
    config = _config_of(read, name, path)
    if path.suffix == ".onnx":
        for warning in config.warnings:
            typer.echo(f"warning: {warning}", err=True)
    recorder = ForwardRecorder(config) if traced else None
    if recorder is not None:
        config = recorder.config
    # The others of a directory too: Python logic may call them.
    others = [other for other in read.all_configs if other.name != config.name]
    repository = Repository([config, *others], unread=read.unread, strict=False)
    try:
        await repository.start()
        pipeline = repository.get(config.name)
        trace = None
        if recorder is not None:
            trace = recorder.trace()
            recorder.active = True
        # One call is a whole sequence: nothing outlives this process.
        step = Step("call", start=True, end=True) if pipeline.takes_sequences else None
        run = pipeline.submit_nowait(_item(pipeline, value), trace=trace, sequence=step)
        try:
            item = await run.future
        finally:
            if trace is not None:
                for line in trace_lines(trace.steps):
                    typer.echo(line, err=True)
                entry_point = pipeline.plan.default
                nodes = entry_point.plan_nodes if entry_point is not None else ()
                reached = {step["node"] for step in trace.steps}
                if missed := ", ".join(node.name for node in nodes if node.name not in reached):
                    typer.echo(f"never reached: {missed}", err=True)
        if "error" in item:
            raise item["error"]
        fields = fields_of(item, pipeline.answer_keys)
        typer.echo(to_json(fields if full else shortened(fields)).decode())
    finally:
        await repository.close()


def _item(pipeline: Pipeline, value: bytes | str) -> Item:
    """Return the item that a server would read from a body without a media type.

    A pipeline that declares no inputs gets the value as it is.
    """
    from penstock.backends.errors import InvalidRequest
    from penstock.backends.memory import Reservation, budget

    from ..http.inputs.reader import InputReader
    from ..http.json_text import JsonLimits
    from ..settings import Settings

    if not pipeline.config.declares_inputs:
        return {"data": value}
    settings = Settings()
    reader = InputReader(pipeline)
    body = value.encode() if isinstance(value, str) else value
    item = reader.read(
        body,
        reader.media_of(None),
        Reservation(budget),
        JsonLimits(settings.max_json_depth, settings.max_json_values),
        settings.max_images,
    )
    if reader.link_in(item) is not None:
        raise InvalidRequest("penstock call fetches no images by URL: send the image itself")
    return item


def _config_of(repository: Repository, name: str | None, path: Path) -> PipelineConfig:
    """Return the pipeline to call. Raises `ConfigError` if it is not clear which."""
    from penstock.backends.errors import ConfigError, Problem

    configs = repository.configs
    if name is None and len(configs) == 1:
        return next(iter(configs.values()))
    if name in configs:
        return configs[name]
    unread = [error for (of, _), error in repository.unread.items() if of == name]
    if unread:
        raise unread[0]
    found = "there are several pipelines" if name is None else f"there is no pipeline {name!r}"
    message = f"{found}: expected --pipeline with one of {', '.join(configs)}"
    raise ConfigError([Problem(message, str(path))])


async def _call_url(url: str, body: bytes, token: str | None, *, traced: bool, full: bool) -> None:
    """Send the body to a server and print its answer.

    The trace is the server's own if a token is given, else the Server-Timing header.
    """
    import orjson

    from ..bench.client import HttpClient
    from ..bench.load import NO_ANSWER, no_answer_from
    from ..bench.report import OK
    from .trace import trace_lines

    headers = authorization(token)
    if traced and token is not None:
        headers["Penstock-Trace"] = "1"
    client = HttpClient(url, headers, read_headers=True)
    try:
        answer = await client.send(body)
    finally:
        await client.close()
    text = answer.body.decode("utf-8", "replace")
    if "Penstock-Trace" in headers:
        with suppress(orjson.JSONDecodeError):  # no answer, or a proxy's
            document = orjson.loads(answer.body)
            if isinstance(document, dict) and "trace" in document:
                for line in trace_lines(document.pop("trace")):
                    typer.echo(line, err=True)
                text = orjson.dumps(document).decode()
    elif traced and answer.timing:
        typer.echo(answer.timing, err=True)
    if answer.status == NO_ANSWER:
        fail(no_answer_from(url))
    if answer.status == OK and not full:
        with suppress(orjson.JSONDecodeError):
            text = orjson.dumps(shortened(orjson.loads(text))).decode()
    typer.echo(text, err=answer.status != OK)
    if answer.status != OK:
        raise typer.Exit(1)
