"""Output of all commands: failing with a reason, and text that is safe to print."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer


def fail(*reasons: str) -> NoReturn:
    """Print each reason to standard error, on a line of its own, and exit with 1."""
    for reason in reasons:
        typer.echo(reason, err=True)
    raise typer.Exit(1)


def file_error(path: str | Path, error: OSError) -> str:
    """Say why a file can't be read or written, in the words that errors in pipeline files use."""
    if not isinstance(error, FileNotFoundError):
        return f"{path}: {error.strerror}"
    directory = Path(path).parent
    kind = "file" if directory.is_dir() else f"directory as {directory}"
    return f"{path}: there is no such {kind}"


def printable(text: str) -> str:
    """Escape characters that could steer a terminal: a key or an error may hold a client's text."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
