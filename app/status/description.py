"""Describe what does not change of a pipeline while it is loaded: its form and its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from penstock.backends.expressions.kinds import chain_of
from penstock.backends.expressions.spec import Spec
from penstock.backends.params import EngineParams
from penstock.backends.text import encodable
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig, Port
from penstock.pipelines.config.json_schema import JsonSchema
from penstock.pipelines.node.node import Node
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.runs.plan import Plan

from ..graph import edges_of, expressions_of, kind_of
from ..http.inputs.datatypes import Datatype
from ..http.inputs.declared import JSON_ITEM, Tensor, inputs_of, is_tensor
from ..v2.models.model import Model

MAX_LABELS = 1024
"""The most labels of an output that are listed: those of the first classes."""

DTYPES = {"BF16": "bfloat16", "BYTES": "string"}
"""The datatypes whose arrays in here have another dtype than a file calls them."""


def describe(config: PipelineConfig, pipeline: Pipeline | None) -> dict[str, Any]:
    """Describe a pipeline for a form and a drawing.

    `pipeline`: the loaded one, whose engines know more than the file says; None if there is none.
    """
    plan = Plan(config.nodes, config.entry)
    entry = None if plan.default is None else plan.default.root.config
    inputs, outputs = _learnt(pipeline) if pipeline is not None else ({}, {})
    stream_input = config.stream_input
    return {
        "description": config.description,
        "stream_input": None if stream_input is None else stream_input.name,
        "streams": plan.default is not None and plan.default.stream is not None,
        "priority_levels": 0 if entry is None else entry.priority_levels,
        "timeout_s": config.timeout,
        "inputs": [_port(port, inputs.get(port.name)) for port in config.inputs],
        "outputs": [_port(port, outputs.get(port.name)) for port in _outputs(config, outputs)],
        "graph": _graph(config, plan, pipeline),
    }


def _learnt(pipeline: Pipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the inputs and outputs of a loaded pipeline by name, with what engines know of them.

    The result of a predict request is `result`, whatever an engine calls its output.
    """
    config = pipeline.config
    inputs = inputs_of(pipeline).tensors if config.declares_inputs else ()
    outputs = Model(pipeline).outputs
    known = {tensor.name: tensor for tensor in outputs}
    if len(outputs) == 1 and not config.outputs:
        known = {"result": outputs[0]}
    return {tensor.name: tensor for tensor in inputs}, known


def _outputs(config: PipelineConfig, known: Mapping[str, Tensor]) -> list[Port]:
    """Return the members of an answer: `result`, then the others that the file declares."""
    result = config.result_port
    if result is None:
        learnt = known.get("result")
        is_array = learnt is not None and learnt.datatype is not None
        result = Port("result", "tensor" if is_array else "json")
    return [result, *config.key_ports]


def _port(port: Port, known: Tensor | None = None) -> dict[str, Any]:
    """Describe an input or output. `known`: with what an engine says of it."""
    tensor = is_tensor(port)
    dtype = port.dtype or (_dtype(known.datatype) if tensor and known is not None else None)
    shape = port.shape
    if shape is None and tensor and known is not None:
        shape = known.shape
    described: dict[str, Any] = {
        "name": port.name,
        "kind": "tensor" if tensor else port.kind,
        "description": encodable(port.description),
        "media_types": port.media_types,
        "optional": port.optional or (known is not None and known.optional),
        "stream": port.stream,
        "dtype": dtype,
        "shape": shape,
        "items": None,
        "schema": None if port.schema is None else _document(port.schema),
        "example": None if port.schema is None else port.schema.example(),
        "labels": list(known.labels[:MAX_LABELS]) if known is not None else [],
    }
    if port.kind == "list":
        described["items"] = _port(port.items or JSON_ITEM)
    return described


def _dtype(datatype: Datatype | None) -> str | None:
    """Name a datatype as a pipeline's file does."""
    return None if datatype is None else DTYPES.get(datatype.name, datatype.dtype_name)


def _document(schema: JsonSchema) -> dict[str, Any] | None:
    """Return a JSON Schema; None for one that can't be written, such as with a date of TOML."""
    try:
        orjson.dumps([schema.document, schema.example()])
    except TypeError:
        return None
    return schema.document


def _graph(config: PipelineConfig, plan: Plan, pipeline: Pipeline | None) -> dict[str, Any]:
    running = {node.name: node for node in pipeline.nodes} if pipeline is not None else {}
    exposed = {one.node for one in config.exposed}
    return {
        "nodes": [
            _node(config.nodes[name], config, running.get(name)) | {"exposed": name in exposed}
            for name in plan.nodes
        ],
        "edges": [
            {
                "from": edge.source,
                "to": edge.target,
                "kind": edge.kind,
                "filter": plan.nodes[edge.target].config.filter if edge.kind == "next" else None,
                "label": encodable(edge.label),
            }
            for edge in edges_of(config, plan)
            if edge.kind not in {"enters", "shares"}
        ],
    }


def _node(node: NodeConfig, config: PipelineConfig, running: Node | None) -> dict[str, Any]:
    """Describe a node. `running`: the loaded one, if it has executors."""
    owner = config.nodes[node.shares or node.name]
    groups = owner.instance_groups
    has_executors = kind_of(owner) == "executor"
    return {
        "name": node.name,
        "kind": kind_of(node),
        "shares": node.shares,
        "backend": _backend(groups[0].spec),
        "expression": " & ".join(expressions_of(owner)),
        "max": (
            max(group.bound(group.spec.declared_range.max) for group in groups)
            if running is None
            else running.scheduler.max
        )
        if has_executors
        else None,
        "min": min(group.min or group.spec.declared_range.min for group in groups)
        if has_executors
        else None,
        "instances": sum(group.instances for group in groups) if has_executors else 0,
        "batching_timeout_ms": owner.batching_timeout if has_executors else None,
        "executor": (owner if running is None else running.config).executor
        if has_executors
        else None,
    }


def _backend(spec: Spec) -> str:
    """Name the backend that a node is about: its engine, or else the last that an item passes."""
    chain = list(chain_of(spec))
    engines = [member.name for member in chain if isinstance(member.params, EngineParams)]
    return (engines or [chain[-1].name])[-1]
