"""The table of front nodes, from which front processes run them.

The model process makes the table (`front_table`) and sends it to each front process, which makes
a pipeline of the front nodes alone of each entry.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from penstock.backends.base import Context
from penstock.backends.expressions.spec import Spec
from penstock.backends.process.wire import SpecMessage

from .config.definition import PipelineConfig
from .pipeline import Pipeline
from .repository import Repository


class FrontEntry(NamedTuple):
    """One loaded version of a pipeline whose first nodes may run in front processes.

    `names`: those by which clients ask for it. `pressure`: it is under pressure. `notes`: its
    batches are noted. `config`: what `read_config` takes.
    """

    names: tuple[str, ...]
    token: str
    pressure: bool
    notes: bool
    config: bytes


def front_table(repository: Repository) -> bytes:
    """Return what front processes need to run the front nodes of all loaded pipelines."""
    entries: list[FrontEntry] = []
    for pipeline in repository.served:
        if pipeline.state != "ready" or not pipeline.front_nodes:
            continue
        name, version = pipeline.name, pipeline.config.version
        names = [f"{name}/versions/{version}"]
        if repository.pipelines.get(name) is pipeline:
            names.append(name)
        entries.append(_entry(pipeline, tuple(names)))
    return pickle.dumps(entries, 5)


def _entry(pipeline: Pipeline, names: tuple[str, ...]) -> FrontEntry:
    config = pipeline.config
    chain = pipeline.front_nodes
    # The GPUs are the model process's. A front process must not even look for them.
    nodes = {name: replace(config.nodes[name], devices=()) for name in chain}
    last = chain[-1]
    nodes[last] = replace(nodes[last], next=())
    alone = replace(
        config,
        nodes=nodes,
        outputs=(),
        entry=None,
        exposed=(),
        warnings=(),
        versions_folder=None,
        version_policy=None,
        model_config=None,
    )
    file = io.BytesIO()
    _Pickler(file, config.directory).dump(alone)
    return FrontEntry(
        names, pipeline.token, pipeline.pressure, pipeline.notes_batches, file.getvalue()
    )


def read_entries(table: bytes) -> list[FrontEntry]:
    """Read what `front_table` made."""
    return cast("list[FrontEntry]", pickle.loads(table))


def read_config(entry: FrontEntry, fronts: int) -> PipelineConfig:
    """Return the configuration of a pipeline of the front nodes, for one of `fronts` processes.

    It has its share of the instances and of `max_requests`. Imports the backends: raises
    `ConfigError`, and what else unpickling raises.
    """
    config: PipelineConfig = pickle.loads(entry.config)
    nodes = {
        name: replace(
            node,
            instance_groups=tuple(
                replace(group, instances=-(-group.instances // fronts))
                for group in node.instance_groups
            ),
        )
        for name, node in config.nodes.items()
    }
    return replace(config, nodes=nodes, max_requests=-(-config.max_requests // fronts))


class _Pickler(pickle.Pickler):
    """Pickles a configuration. Backends go by their names: their classes may be made at load."""

    def __init__(self, file: io.BytesIO, directory: Path) -> None:
        super().__init__(file, 5)
        self._directory = directory

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Spec:
            return _bound, (SpecMessage.of(obj), self._directory)
        return NotImplemented


def _bound(message: SpecMessage, directory: Path) -> Spec:
    return message.bind(Context(directory=directory))
