"""The JSON Schema of a pipeline file, for editors: what `penstock schema` prints.

It is a help for writing. `penstock check` knows more: which key goes with which backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from penstock.backends.errors import ConfigError
from penstock.backends.expressions.registry import backend_names, find_backend

from .tables import NODE_KEYS, NodeTable, PipelineTable
from .versions import VersionPolicy

DIALECT = "http://json-schema.org/draft-07/schema#"
"""That which taplo and VS Code's TOML extensions read."""

ANY_TEXT: dict[str, Any] = {"type": "string"}
NUMBER_AS_TEXT: dict[str, Any] = {"type": "string", "pattern": r"^\s*[-+]?[0-9][0-9._eE+-]*\s*$"}

NODE_TEXTS = {
    "backend": 'The backend expression: "S[DecodeMat,ResizeMat]", "Python[ops.py:Class]", ...',
    "next": "The nodes that follow: a text with commas, or a list.",
    "map": 'The keys that it takes from earlier nodes: "A[result:data],B[result:boxes]".',
    "filter": "Decides in front of the node what happens to each item: or, Break, ...",
    "borrow_from": "The node whose instances and queue it uses.",
    "min": "The least rows of a batch.",
    "max": "The most rows of a batch.",
    "instance_num": "Executors, each with its own instance of the backend.",
    "combine": "Requests share batches. False: each batch is one request.",
    "queue_policies": "Bounds of the queue of each priority level; `default` is for the others.",
    "batching_timeout": "Milliseconds that a batch may wait for more items.",
    "priority_levels": "How many priority levels there are; 0: none.",
    "default_priority": "The level of a request that names none; 1 is the highest.",
    "retry": "Run the items of a failed batch one by one.",
    "stuck_after": "Seconds after which a running batch is stuck.",
    "executor": "Where its backends run.",
    "device": "Where its instances run: cpu, cuda:0, several with commas, all or any (GPU).",
    "front": "It may run in every front process (serve --processes).",
    "sequence": "Keep states of sequences: strategy, max_sequences, idle_timeout, controls, state.",
}


PIPELINE_TEXTS = {
    "name": "The pipeline's name in URLs; default: the file's.",
    "version": "Several versions of a pipeline may serve side by side.",
    "version_policy": '"all", { latest = 2 } or { specific = [1, 3] }.',
    "description": "For the API's documentation.",
    "inputs": "What clients send: item key -> port; default: an image, as data.",
    "outputs": "The item's keys that are answered besides result.",
    "batched": "false: no batch dimension below /v2.",
    "positional": "true: all inputs make up data and all outputs result, whatever their names.",
    "expose": "Nodes that may be called alone, as models of their own.",
    "max_requests": "The most requests in flight at once.",
    "timeout": "Seconds until the deadline of a request that names none.",
    "max_wait": "What a request should wait at most under overload: auto, none, or seconds.",
    "queue_size": "The most requests that may wait.",
    "queue_timeout": "Seconds that an item may wait in the queue of a node.",
    "entry": "The node where requests enter that name none.",
    "loop": "An item that ends with a key restart enters again.",
    "max_rounds": "How often it may enter again.",
    "cache": "Keep answers and give them to equal requests: true, or { ttl = seconds }.",
}


def file_schema() -> dict[str, Any]:
    """Return the schema of a pipeline file, with the parameters of every backend known here."""
    parameters = _parameters_of_backends()
    models = [PipelineTable, NodeTable, *{model for _, model in parameters}]
    _, whole = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/$defs/{model}"
    )
    definitions: dict[str, Any] = whole["$defs"]
    names = {model: _name_in(definitions, model) for model in models}
    node = _node_properties(definitions[names[NodeTable]]["properties"])
    for backend, model in parameters:
        properties = definitions[names[model]].get("properties", {})
        for key, schema in properties.items():
            if key not in NODE_KEYS:
                _add_parameter(node, backend, key, schema)
    pipeline = definitions.pop(names[PipelineTable])
    pipeline["description"] = "What the pipeline is as a whole."
    pipeline["properties"]["max_wait"]["default"] = "auto"
    for key, text in PIPELINE_TEXTS.items():
        pipeline["properties"][key]["description"] = text
    for name in (*(names[model] for model in models), VersionPolicy.__name__):
        definitions.pop(name, None)
    loose = {name: _with_texts(schema) for name, schema in definitions.items()}
    return {
        "$schema": DIALECT,
        "title": "Penstock pipeline",
        "description": "A pipeline: [pipeline], defaults of all nodes, and a table for each node.",
        "type": "object",
        "properties": {
            "pipeline": _with_texts(pipeline),
            "global": {"$ref": "#/$defs/Node"},
            # A default of all nodes, or a node of this name.
            **{
                key: {
                    "description": schema["description"],
                    "anyOf": [schema, {"$ref": "#/$defs/Node"}],
                }
                for key, schema in node.items()
                if key not in {"map", "borrow_from"}
            },
        },
        "additionalProperties": {
            "anyOf": [
                {"$ref": "#/$defs/Node"},
                {"type": ["string", "number", "boolean", "array"]},  # a default of all nodes
            ]
        },
        "$defs": {
            **loose,
            "Node": {
                "type": "object",
                "description": "A node. Keys that are not listed are parameters of its backends.",
                "properties": node,
            },
        },
    }


def _parameters_of_backends() -> list[tuple[str, Any]]:
    """Return the names of the backends known here with their declared parameters."""
    found = []
    for name in backend_names():
        try:
            cls = find_backend(name)
        except (ConfigError, ImportError):
            continue
        if cls.parameters is not None and name == cls.__name__:
            found.append((name, cls.parameters))
    return found


def _name_in(definitions: Mapping[str, Any], model: Any) -> str:
    """Return the name that pydantic gave a model: its own, or with its module if two share it."""
    name: str = model.__name__
    if name in definitions:
        return name
    long = f"{model.__module__}.{name}".replace(".", "__")
    return next(key for key in definitions if key in {long, f"{long}__1"} or key.endswith(long))


def _node_properties(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a node itself."""
    properties: dict[str, Any] = {}
    for key, text in NODE_TEXTS.items():
        schema = table.get(key, {"type": "string"})
        default = {"default": schema["default"]} if schema.get("default") is not None else {}
        choices = schema.get("enum")
        properties[key] = {
            "description": text,
            **default,
            **({"enum": choices} if choices else _loose(schema)),
        }
    properties["next"] |= {"anyOf": [ANY_TEXT, {"type": "array", "items": ANY_TEXT}]}
    properties["next"].pop("type", None)
    return properties


def _loose(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that takes texts too: every value may be one, and & makes groups of it."""
    shape = {
        key: value
        for key, value in schema.items()
        if key not in {"title", "description", "default"}
    }
    kinds = str(shape)
    options = [shape] if shape == ANY_TEXT else [shape, ANY_TEXT]
    if "'array'" in kinds:
        options.append({"type": "number"})
    return {"anyOf": options}


def _add_parameter(node: dict[str, Any], backend: str, key: str, schema: Mapping[str, Any]) -> None:
    """Add a parameter of a backend to the keys of nodes. Several backends may have one key."""
    text = f"{backend}: {schema.get('description', key)}"
    if key not in node:
        default = {"default": schema["default"]} if schema.get("default") is not None else {}
        node[key] = {"description": text, **default, **_loose(schema)}
        return
    known = node[key]
    if text.partition(": ")[2] not in known["description"]:
        known["description"] += f"\n\n{text}"
        known.pop("default", None)
    known["anyOf"] += [one for one in _loose(schema)["anyOf"] if one not in known["anyOf"]]


def _with_texts(schema: Any) -> Any:
    """Let numbers and booleans be written as texts, as pipeline files may have them."""
    if isinstance(schema, list):
        return [_with_texts(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    inner = {
        key: _with_texts(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and not value)
    }
    if isinstance(kind, str) and kind in {"integer", "number", "boolean"}:
        as_text = {"enum": ["true", "false"]} if kind == "boolean" else NUMBER_AS_TEXT
        outer = {key: inner.pop(key) for key in ("description", "default") if key in inner}
        return {**outer, "anyOf": [inner, as_text]}
    return inner
