"""Open what a pipeline needs, as its start would, and run nothing: models, labels, key files.

Backends of Penstock's own that only read are initialised for real, with `Context.opens_only`. In
the place of the others, and of users' own, stands a backend that does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from penstock.backends.base import UNBOUNDED, Backend, Context
from penstock.backends.errors import BackendError, PenstockError
from penstock.backends.expressions.composite import CompositeBackend
from penstock.backends.expressions.registry import is_operator
from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams, why_no_file
from penstock.backends.sequences.stateful import with_sequences

from ..config.definition import InstanceGroupConfig, NodeConfig, PipelineConfig
from ..node.node import Node
from ..node.placement import context_of
from ..pipeline import Pipeline
from .finding import Finding, problems_in


class Unopened(Backend):
    """Stands for a backend whose `init` would run something, or needs what is not here."""

    def init(self, params: Any, context: Context) -> None:
        if isinstance(params, EngineParams) and ":" not in params.model:  # that names a class
            check_model_file(params, context)


class OpenedNode(Node):
    """A node that was never started, with what is known of its backends."""

    def __init__(self, config: NodeConfig, backends: list[tuple[InstanceGroupConfig, Backend]]):
        self.config = config
        self.name = config.name
        self.signature = backends[0][1].signature if backends else None
        self.counted = self.signature
        self.devices = {}
        bounds = [group.bound(backend.max) for group, backend in backends]
        self.scheduler: Any = SimpleNamespace(max=min(bounds, default=UNBOUNDED))

    @property
    def not_ready(self) -> str:
        return "it was only checked"


@dataclass(slots=True)
class Opened:
    """A pipeline whose files were opened. `backends` has that of each node's first group."""

    pipeline: Pipeline
    backends: dict[str, Backend] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def open_pipeline(config: PipelineConfig) -> Opened:
    """Open the files of a pipeline. What is wrong with them is in `findings`."""
    opened = Opened(Pipeline(config))
    nodes: dict[str, OpenedNode] = {}
    for name, node in config.nodes.items():
        if node.shares is not None or _is_composite(node):
            continue
        backends = []
        for index, group in enumerate(node.instance_groups):
            context = replace(context_of(node, config, index, 0), opens_only=True)
            try:
                with _quiet_log():
                    backend = _readable(group.spec).create(context)
                    if node.sequence is not None and backend.signature is not None:
                        backend = with_sequences(backend, node.sequence, context)
                backend.close()
            except PenstockError as error:
                opened.findings += problems_in(error, config, name)
            else:
                backends.append((group, backend))
        if backends:
            opened.backends[name] = backends[0][1]
        nodes[name] = OpenedNode(node, backends)
    for pipeline in (opened.pipeline, *opened.pipeline.exposed):
        for plan_node in pipeline.plan.nodes.values():
            owner = config.nodes[plan_node.name].shares or plan_node.name
            plan_node.node = nodes.get(owner) or OpenedNode(config.nodes[owner], [])
    opened.findings = list(dict.fromkeys(opened.findings))
    return opened


def check_model_file(params: EngineParams, context: Context) -> None:
    """Raise BackendError if the model's file is missing or is not ONNX though it says so."""
    path = context.resolve(params.model)
    cache = params.cache
    if not path.is_file():
        if cache is not None and context.resolve(cache).is_file():
            return  # the engine was built elsewhere
        raise BackendError(f"the model {path} {why_no_file(path)}")
    if path.suffix == ".onnx":
        import onnx

        try:
            onnx.load(str(path), load_external_data=False)
        except Exception as error:
            raise BackendError(f"the model {path} is not valid ONNX: {error}") from error


def _is_composite(node: NodeConfig) -> bool:
    return any(issubclass(group.spec.cls, CompositeBackend) for group in node.instance_groups)


def _readable(spec: Spec) -> Spec:
    """Return the expression with a backend that does nothing for each that would do more than
    read.
    """
    name = spec.cls.__name__
    children = tuple(_readable(child) for child in spec.children)
    is_read = is_operator(spec.name) or name in {"OnnxTensor", "OpenvinoTensor"}
    if name == "ModelTensor" and spec.params.model.endswith(".onnx"):
        is_read = find_spec("torch") is None  # otherwise TensorRT may run it
    if is_read:
        return replace(spec, children=children)
    declared = spec.declared_range
    attributes = {"min": declared.min, "max": declared.max, "parameters": spec.cls.parameters}
    unopened = type(name, (Unopened,), attributes)
    return replace(spec, cls=unopened, children=children)


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Hold back the log lines of `init`: a start will write them."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
