"""`penstock reload`: replace the processes of a running server by new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..settings import PREFIX, Settings
from .output import fail


def reload_command(
    *,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", help="The server's --port.", envvar=f"{PREFIX}PORT"),
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The server's --uds.", envvar=f"{PREFIX}UDS"),
    ] = None,
    control_socket: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The server's --control-socket.",
            envvar=f"{PREFIX}CONTROL_SOCKET",
        ),
    ] = None,
) -> None:
    """Replace the processes of a server by new ones, without losing a request.

    The server runs on this machine with --processes 2 or more. The new processes have its command
    line; they import the code and read the files as they are now. If they can't start, the old ones
    go on, and this exits with 1.
    """
    from ..processes.parent.control_socket import DONE, FAILED, REQUEST, connect

    given: dict[str, Any] = {
        "port": port,
        "uds": uds,
        "control_socket": control_socket,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    try:
        server = connect(settings)
    except OSError as error:
        where = settings.control_socket or settings.uds or f"port {settings.port}"
        fail(
            f"no server of several processes is found by {where} ({error.strerror or error}): "
            "expected one that runs with --processes 2 or more, and its --port, --uds or "
            "--control-socket"
        )
    last = ""
    with server, server.makefile("rw", encoding="utf-8") as lines:
        lines.write(REQUEST.decode())
        lines.flush()
        for line in lines:
            last = line.rstrip("\n")
            if last in (DONE, FAILED):
                break
            typer.echo(last)
    if last != DONE:
        fail("the old processes go on" if last == FAILED else "the server has gone")
