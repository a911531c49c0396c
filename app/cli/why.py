"""`penstock why`: ask a running server why a request was slow or failed."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from .options import Headers, Token, TokenFile, authorization, given_token, headers_of
from .output import fail, printable
from .waterfall import describe_list, describe_request

DEFAULT_URL = "http://127.0.0.1:8000"


def why_command(
    request_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="The request's X-Request-Id, which answers, problems and the log have. Without "
            "it the last slow and failed requests are listed.",
        ),
    ] = None,
    *,
    url: Annotated[
        str,
        typer.Option("--url", metavar="URL", help="The server, with its root path, if it has one."),
    ] = DEFAULT_URL,
    token: Token = None,
    token_file: TokenFile = None,
    header: Headers = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the server says, as JSON.")
    ] = False,
) -> None:
    """Say why a request was slow or failed, by a waterfall and in words.

    Exits with 1 and the reason if the server does not know the request.
    """
    request_id = request_id or None  # "$ID" of a shell may be empty
    try:
        headers = authorization(given_token(token, token_file)) | headers_of(header)
        document = asyncio.run(_ask(url, request_id, headers))
    except ValueError as error:
        fail(str(error))
    if as_json:
        import orjson

        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        return
    styled = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    describe = describe_list if request_id is None else describe_request
    try:
        lines = list(describe(document, styled=styled, blocks=_shows_blocks()))
    except (KeyError, TypeError, ValueError, AttributeError):  # another version, or a proxy
        fail(f"{url} says something that this version of penstock does not understand; try --json")
    for line in lines:
        typer.echo(line)


def _shows_blocks() -> bool:
    """Return whether standard output can show the characters that bars are drawn with."""
    try:
        "█░▒…".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


async def _ask(url: str, request_id: str | None, headers: dict[str, str]) -> dict[str, Any]:
    """Return what a server says of a request, or of the last slow and failed ones.

    Prints the reason and exits with 1 if it says nothing. Raises ValueError for a URL that is none.
    """
    import orjson

    from ..bench.client import HttpClient
    from ..bench.load import NO_ANSWER, no_answer_from
    from ..bench.report import OK

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(
            f"--url: {url!r} is not the URL of a server: expected one like {DEFAULT_URL}"
        )
    path = "/requests" if request_id is None else f"/requests/{quote(request_id, safe='')}"
    client = HttpClient(f"{url.rstrip('/')}{path}", headers, method="GET")
    try:
        answer = await client.send(b"")
    finally:
        await client.close()
    if answer.status == NO_ANSWER:
        fail(no_answer_from(url))
    document: Any = None
    with suppress(orjson.JSONDecodeError):  # not a server of ours
        document = orjson.loads(answer.body)
    if not isinstance(document, dict):
        fail(f"{url} does not answer as penstock serve does (status {answer.status})")
    if answer.status != OK:
        fail(printable(str(document.get("detail", document))))
    return document
