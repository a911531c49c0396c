"""Output of all commands: failing with a reason, and text that is safe to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

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


MOST_SHOWN_NUMBERS = 16
"""The most numbers of an array that are printed one by one."""
MOST_LISTED_NUMBERS = 256
"""The same of a list: what a backend writes as lists, such as boxes, is made to be read. Only an
array that came from a server is that long.
"""
FIRST_SHOWN_NUMBERS = 4
MOST_SHOWN_BYTES = 64


def shortened(value: Any) -> Any:
    """Return a value with a text in the place of each large array, long list of numbers, and large
    bytes: `float32 1×1000 [0.25, 0.5, …]`.
    """
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value if len(value) <= MOST_SHOWN_BYTES else f"{len(value)} bytes"
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype") and hasattr(value, "reshape"):
        count = 1
        for size in shape:
            count *= size
        if count <= MOST_SHOWN_NUMBERS:
            return value
        first = value.reshape(-1)[:FIRST_SHOWN_NUMBERS].tolist()
        return _short(str(value.dtype).removeprefix("torch."), shape, first)
    if isinstance(value, (list, tuple)):
        numbers = _numbers_of(value)
        if numbers is None:
            return [shortened(inner) for inner in value]
        shape, first, count = numbers
        return _short("numbers", shape, first) if count > MOST_LISTED_NUMBERS else value
    return value


def _short(kind: str, shape: Any, first: list[Any]) -> str:
    shown = ", ".join(f"{one:.6g}" if isinstance(one, float) else str(one) for one in first)
    return f"{kind} {'×'.join(map(str, shape))} [{shown}, …]"


def _numbers_of(values: Any) -> tuple[tuple[int, ...], list[Any], int] | None:
    """Return the shape of nested lists of numbers, the first numbers and how many there are. None
    for other lists, and for lists of different lengths.
    """
    if not values:
        return None
    if all(isinstance(value, (int, float)) or value is None for value in values):
        return (len(values),), [*values[:FIRST_SHOWN_NUMBERS]], len(values)
    if not all(isinstance(value, (list, tuple)) for value in values):
        return None
    inner = [_numbers_of(value) for value in values]
    first = inner[0]
    if first is None or any(one is None or one[0] != first[0] for one in inner):
        return None
    return (len(values), *first[0]), first[1], len(values) * first[2]
