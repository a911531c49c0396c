"""Reads a ModelConfig: from a `config.pbtxt`, or from the JSON that a load brings along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem

from .messages import ModelConfig, new_config

_PLACEHOLDER = re.compile(r"\$\{\w+\}|\$\w+|\{\{.*?\}\}|<<.*?>>|@@\w+@@|%\(\w+\)s")
_WORD = re.compile(r":\s*#([A-Z_]{2,})\b")
_MISFIT = re.compile(
    r"(?:Couldn't parse integer: |Couldn't parse float: |has no value named )\"?([A-Z_]{3,})"
)
"""Finds the placeholder in protobuf's message about one (`dims: [ FEATURE_SIZE ]`)."""
_PLACE = re.compile(r"^(\d+):(\d+)\s*:\s*(.*)$", re.DOTALL)


def read_config(file: Path) -> ModelConfig:
    """Read a `config.pbtxt`. Raises `ConfigError` with the line and the column of a mistake."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        message = f"the file can't be read: {error.strerror}"
        raise ConfigError([Problem(message, str(file))]) from error
    except UnicodeDecodeError as error:
        message = (
            f"the file is not valid UTF-8 (byte {error.start}): expected Triton's config.pbtxt"
        )
        raise ConfigError([Problem(message, str(file))]) from error
    return parse_config(text, str(file))


def parse_config(text: str, file: str = "") -> ModelConfig:
    """Parse the text of a `config.pbtxt`. `file` is for messages. Raises `ConfigError`."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, new_config())
    except text_format.ParseError as error:
        if (found := _placeholder(text, str(error))) is not None:
            message = (
                f"this is a template: it holds {found}, which has to be replaced by a value before "
                "the model can be served"
            )
            raise ConfigError([Problem(message, file)]) from None
        raise ConfigError([Problem(_place(str(error)), file)]) from None


def _placeholder(text: str, error: str) -> str | None:
    """Return the first placeholder of a template (`${batch_size}`, `#DTYPE`, `TOPK`)."""
    for line in text.splitlines():
        found = _PLACEHOLDER.search(line.partition("#")[0]) or _WORD.search(line)
        if found is not None:
            return found[0].lstrip(": ")
    misfit = _MISFIT.search(error)
    return None if misfit is None or _is_type(misfit[1]) else misfit[1]


def _is_type(word: str) -> bool:
    """Return whether a word is a mistake in an enumeration's value, and no placeholder."""
    return word.startswith(("TYPE_", "KIND_", "FORMAT_", "CONTROL_", "PRIORITY_")) and (
        not word.endswith("_")
    )


def _place(error: str) -> str:
    """Say where a mistake is: protobuf writes `3:14 : Message …`."""
    match = _PLACE.match(error)
    if match is None:
        return f"it is not a valid config.pbtxt: {error}"
    line, column, what = match.groups()
    return f"line {line}, column {column}: it is not a valid config.pbtxt: {what}"


def parse_json_config(table: Mapping[str, Any], file: str = "") -> ModelConfig:
    """Make a ModelConfig of the JSON that Triton's clients send. Raises `ConfigError`."""
    from google.protobuf import json_format

    try:
        return json_format.ParseDict(dict(table), new_config())
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise ConfigError([Problem(f"it is not a valid ModelConfig: {error}", file)]) from None
