"""Tells the answers of a pipeline, as it is loaded, from those of every other one.

Processes share answers in a second level if they serve the same: the same version of Penstock, the
same configuration, and files with the same bytes.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import penstock
from penstock.backends.base import Backend
from penstock.backends.expressions.filters import BUILTIN, find_filter
from penstock.backends.expressions.spec import Spec
from penstock.backends.loaded_files import LoadedFiles

from ..config.definition import PipelineConfig

logger = logging.getLogger("penstock.cache")


def generation_of(config: PipelineConfig, files: Iterable[LoadedFiles]) -> bytes:
    """Return the generation of a pipeline that has been loaded, in 32 bytes.

    Reads the files of users' Python code. If it is not known what the pipeline consists of, the
    generation is that of this load alone.
    """
    digest = hashlib.sha256(f"penstock {penstock.__version__}\n".encode())
    text = repr(
        replace(
            config,
            directory=Path(),
            source="",
            version_policy=None,
            versions_folder=None,
            description="",
            warnings=(),
        )
    )
    # Modules of users' files are named after their paths (backends/user_code.py).
    text = re.sub(r"_penstock_(\w+)_[0-9a-f]{12}\b", r"\1", text)
    digest.update(text.encode("utf-8", "surrogatepass"))
    contents = {record.digest for loaded in files for record in loaded.records.values()}
    for content in sorted(contents):
        digest.update(content)
    for place in sorted(_sources(config)):
        try:
            digest.update(hashlib.sha256(Path(place).read_bytes()).digest())
        except OSError:
            return _of_this_load(config, f"{place} can't be read")
    if " at 0x" in text or "" in _sources(config):
        return _of_this_load(config, "it has code or values that are in no file")
    return digest.digest()


def _of_this_load(config: PipelineConfig, why: str) -> bytes:
    logger.warning(
        "pipeline %s: its answers in Redis are for this process alone: %s",
        config.name,
        why,
        extra={"pipeline": config.name},
    )
    return secrets.token_bytes(32)


def _sources(config: PipelineConfig) -> set[str]:
    """Return the files of the code that users have written; "" stands for code in no file."""
    found: set[str] = set()
    for node in config.nodes.values():
        for group in node.instance_groups:
            found.update(map(_source_of, _users_code(group.spec)))
        if node.filter is not None and node.filter not in BUILTIN:
            found.add(_source_of(find_filter(node.filter)))
    return found


def _users_code(spec: Spec) -> Iterator[object]:
    cls = spec.cls
    for attribute in ("function", "wrapped"):  # expressions/user.py
        if attribute in vars(cls):
            code = vars(cls)[attribute]
            yield code.__func__ if isinstance(code, staticmethod) else code
            break
    else:
        for base in cls.__mro__:
            if issubclass(base, Backend) and not base.__module__.startswith("penstock."):
                yield base
    for child in spec.children:
        yield from _users_code(child)


def _source_of(code: object) -> str:
    try:
        return inspect.getsourcefile(inspect.unwrap(code)) or ""  # type: ignore[arg-type]
    except (TypeError, OSError, ValueError):
        return ""
