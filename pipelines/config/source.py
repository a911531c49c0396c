"""Read a pipeline's source (a TOML file, a dict, an expression) into tables.

Other modules interpret the tables.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.suggestions import did_you_mean, nearest

from .tables import PARAMETER_TABLES, STRUCTURE_KEYS, TABLE_KEYS

logger = logging.getLogger("penstock.config")

NAMELESS = "main"
"""The name of the one node of a flat dict or an expression."""

_MACRO = re.compile(r"TASK_([A-Z0-9_]+?)_KEY")
_MACRO_NAMES = {"BOX": "_box"}


@dataclass(slots=True)
class Tables:
    """A pipeline as written: the nodes' own keys, the defaults for all nodes, and `[pipeline]`."""

    name: str
    nodes: dict[str, dict[str, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)
    pipeline: Any = field(default_factory=dict)
    file: str = ""
    directory: Path = field(default_factory=Path)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    loop: bool = False
    """Set by torchpipe's `"Interpreter::backend" = "Ring"`."""
    model_config: dict[str, Any] | None = None
    """The completed ModelConfig of a Triton model, as Triton prints it."""


def read(source: object) -> Tables:
    """Read a source. Raises TypeError for another type, `ConfigError` if it can't be read."""
    try:
        return _read(source)
    except RecursionError:
        file = str(source) if isinstance(source, (str, os.PathLike)) else ""
        message = "tables or arrays are nested too deep to be read"
        raise ConfigError([Problem(message, file)]) from None


def _read(source: object) -> Tables:
    if isinstance(source, Mapping):
        return _split(dict(source), Tables("pipeline", {}))
    if isinstance(source, str) and not source.strip():
        message = "the configuration is empty: expected a TOML file, a dict or an expression"
        raise ConfigError([Problem(message)])
    if isinstance(source, os.PathLike) or (
        isinstance(source, str) and source.strip().endswith(".toml")
    ):
        return _read_file(Path(source))
    if isinstance(source, str):
        return Tables("pipeline", {NAMELESS: {"backend": source}})
    raise TypeError(
        "a pipeline is a path to a TOML file, a dict or an expression, found "
        f"{type(source).__name__}"
    )


def _read_file(path: Path) -> Tables:
    file = str(path)
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        beside = [other.name for other in path.parent.glob("*.toml")]
        message = f"there is no such file{did_you_mean(path.name, beside)}"
        raise ConfigError([Problem(message, file)]) from None
    except IsADirectoryError:
        raise ConfigError([Problem("this is a directory, expected a TOML file", file)]) from None
    except OSError as error:
        raise ConfigError([Problem(f"the file can't be read: {error.strerror}", file)]) from error
    except UnicodeDecodeError as error:
        message = f"the file is not valid UTF-8 (byte {error.start}): expected a TOML file"
        raise ConfigError([Problem(message, file)]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Problem(f"the file is not valid TOML: {error}", file)]) from error
    return _split(content, Tables(name_of(path), {}, file=file, directory=path.resolve().parent))


def name_of(path: Path) -> str:
    """Return the name of a pipeline whose file does not name it."""
    return fit_name(path.stem)


def fit_name(text: str) -> str:
    """Return the name of a pipeline whose file or folder has this name.

    Characters that `[pipeline] name` may not have (`?`, spaces) become `_`: they would break URLs
    and generated clients.
    """
    return re.sub(r"[^A-Za-z0-9_.\-]|^[.\-]", "_", text)


def _split(content: dict[Any, Any], tables: Tables) -> Tables:
    if not content:
        message = "the configuration is empty: expected at least one node with a backend"
        raise ConfigError([Problem(message, tables.file)])
    wrong = [key for key in content if not isinstance(key, str)]
    if wrong:
        raise ConfigError(
            [Problem(f"a key must be text, found {key!r}", tables.file) for key in wrong]
        )
    content = _replace_macros(content)
    tables.pipeline = content.pop("pipeline", {})
    _check_interpreter(content, tables)
    common = content.pop("global", {})
    if not isinstance(common, dict):
        message = f"expected a table, found {common!r}"
        tables.problems.append(Problem(message, tables.file, "global"))
        common = {}
    for key, value in content.items():
        if isinstance(value, dict) and not _belongs_to_nodes(key, value, content):
            _add_node(key, value, tables)
        elif (
            isinstance(value, list)
            and value
            and all(isinstance(element, dict) for element in value)
        ):
            message = f"expected one table, [{key}], found an array of tables"
            tables.problems.append(Problem(message, tables.file, key))
        else:
            tables.defaults[key] = value
    if not tables.nodes and not tables.problems:
        if "backend" not in tables.defaults:
            misspelt = nearest("backend", tables.defaults)
            hint = f" (is {misspelt!r} a misspelling of it?)" if misspelt else ""
            message = f"no node: expected a table with the key `backend`{hint}"
            tables.problems.append(Problem(message, tables.file))
            tables.defaults = {}  # no node could know these keys
            return tables  # what is wrong in [pipeline] is reported too
        tables.nodes = {NAMELESS: tables.defaults}
        tables.defaults = {}
    tables.defaults |= common
    return tables


def _add_node(name: str, table: dict[Any, Any], tables: Tables) -> None:
    """Add a node and the logical nodes in it.

    TOML reads `[rec.2]` as a table `2` inside the table `rec`.
    """
    stack = [(name, table)]
    while stack:
        name, table = stack.pop()
        inner = {
            key: value
            for key, value in table.items()
            if isinstance(value, dict) and _may_name_a_node(key)
        }
        own = {key: value for key, value in table.items() if key not in inner}
        for key in [key for key in own if not isinstance(key, str)]:
            tables.problems.append(Problem(f"a key must be text, found {key!r}", tables.file, name))
            del own[key]
        if name in tables.nodes:
            tables.problems.append(
                Problem("two tables define this node: keep one", tables.file, name)
            )
        if own or not inner:
            tables.nodes[name] = own
        stack += [(f"{name}.{key}", value) for key, value in reversed(inner.items())]


def _may_name_a_node(key: Any) -> bool:
    """Return whether a table with this key, inside that of a node, may be a logical node.

    `map = { ... }` may not: it is a mistake in a key of the node itself.
    """
    return (
        isinstance(key, str)
        and "::" not in key
        and key not in STRUCTURE_KEYS | PARAMETER_TABLES | TABLE_KEYS
    )


def _belongs_to_nodes(key: str, value: dict[Any, Any], content: Mapping[str, Any]) -> bool:
    """Return whether a table at the top is a key of nodes, and no node.

    `sequence` is one where the file is a single node: `backend` stands beside it.
    """
    return key in PARAMETER_TABLES or (
        key in TABLE_KEYS and "backend" in content and "backend" not in value
    )


def _check_interpreter(content: dict[str, Any], tables: Tables) -> None:
    value = content.pop("Interpreter::backend", None)
    if value == "PipelineV3":
        logger.info(
            '%s: "Interpreter::backend" = "PipelineV3" has no effect: Penstock has one interpreter',
            tables.file or "pipeline",
        )
    elif value in ("Ring", "EventLoop"):
        tables.loop = True
    elif value is not None:
        message = f"found {value!r}: expected 'PipelineV3', 'Ring' or 'EventLoop', or no such key"
        tables.problems.append(Problem(message, tables.file, key="Interpreter::backend"))


def _replace_macros(value: Any) -> Any:
    """Replace torchpipe's macros in keys and values: `TASK_DATA_KEY` is `data`."""
    if isinstance(value, str):
        return _MACRO.sub(lambda macro: _MACRO_NAMES.get(macro[1], macro[1].lower()), value)
    if isinstance(value, dict):
        return {_replace_macros(key): _replace_macros(inner) for key, inner in value.items()}
    return value
