"""Writes TOML: keys, values, and the tables of a pipeline file with comments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .source import Tables

WIDTH = 100
"""Lines that would be longer become a table or an array of several lines."""


def toml_key(key: str) -> str:
    """Write a key, in quotes if it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def toml_value(value: Any) -> str:
    """Write a value on one line. What is no number, list or dict is written as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{toml_key(str(key))} = {toml_value(inner)}" for key, inner in value.items())
        text = ", ".join(pairs)
        return f"{{ {text} }}" if text else "{}"
    if isinstance(value, (int, float)):
        return repr(value)
    return _text(str(value))


def pipeline_toml(
    tables: Tables,
    heading: Sequence[str] = (),
    comments: Mapping[tuple[str, str], str] | None = None,
) -> str:
    """Write the file that gives these tables when it is read.

    `heading`: lines of a comment at the top. `comments`: what stands behind a key, by the node (or
    `pipeline`) and the key.
    """
    known = comments or {}
    lines = [f"# {line}".rstrip() for line in heading]
    lines += _table((), tables.defaults, known)
    lines += _table(("pipeline",), tables.pipeline, known)
    for node, keys in tables.nodes.items():
        lines += _table(tuple(node.split(".")), keys, known, always=True)
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(
    path: tuple[str, ...],
    table: Mapping[str, Any],
    comments: Mapping[tuple[str, str], str],
    *,
    always: bool = False,
) -> Iterator[str]:
    """Yield a table: its values first, since TOML takes those after a sub-table for its own."""
    name = ".".join(path)
    lines: list[str] = []
    inner: dict[str, Mapping[str, Any]] = {}
    for key, value in table.items():
        if value is None:
            continue
        line = f"{toml_key(key)} = {toml_value(value)}"
        if isinstance(value, Mapping) and (len(line) > WIDTH or _is_ports(path, key)):
            inner[key] = value
            continue
        if isinstance(value, (list, tuple)) and len(line) > WIDTH:
            line = "\n".join(
                [f"{toml_key(key)} = [", *(f"    {toml_value(each)}," for each in value), "]"]
            )
        comment = comments.get((name, key))
        lines.append(f"{line}  # {comment}" if comment else line)
    if lines or always or not inner:
        if path and (lines or always):
            yield ""
            yield f"[{'.'.join(map(toml_key, path))}]"
        yield from lines
    for key, value in inner.items():
        yield from _table((*path, key), value, comments, always=not value)


def _is_ports(path: tuple[str, ...], key: str) -> bool:
    return path[:1] == ("pipeline",) and key in {"inputs", "outputs", "expose"}


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
