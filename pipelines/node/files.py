"""The files that a pipeline's configuration was read from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from penstock.backends.base import Context
from penstock.backends.expressions.spec import Spec
from penstock.backends.loaded_files import LoadedFiles

from ..config.definition import PipelineConfig


def config_files(config: PipelineConfig) -> LoadedFiles:
    """Return the file of a pipeline, and the Python files, labels and schemas it names, as now."""
    files = LoadedFiles()
    context = Context(directory=config.directory, files=files)
    if config.source and Path(config.source).is_file():
        files.check(Path(config.source))
    exposed = [port for each in config.exposed for port in (*each.inputs, *each.outputs)]
    for port in (*config.inputs, *config.outputs, *exposed):
        if port.inner_schema is not None and port.inner_schema.file:
            context.resolve_input(port.inner_schema.file)
        if port.labels is not None:
            context.resolve_input(port.labels)
    for node in config.nodes.values():
        for group in node.instance_groups:
            for name in _names(group.spec):
                place = name.rpartition(":")[0]
                if place.endswith(".py"):
                    context.resolve_input(place)
    return files


def _names(spec: Spec) -> Iterator[str]:
    yield spec.name
    for child in spec.children:
        yield from _names(child)
