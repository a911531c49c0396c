"""The configuration of a pipeline as TOML, with every default filled in.

It can be read again, and is the same pipeline then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from penstock.backends.expressions.composite import CompositeBackend
from penstock.backends.expressions.spec import Spec
from penstock.backends.sequences.definition import SequenceConfig
from penstock.pipelines.config.definition import NodeConfig, PipelineConfig, Port
from penstock.pipelines.config.tables import InputTable, PortTable
from penstock.pipelines.config.toml_text import toml_key, toml_value

SETTINGS = (
    "name", "version", "version_policy", "description", "batched", "positional", "max_requests",
    "timeout", "max_wait", "queue_size", "queue_timeout", "entry", "loop", "max_rounds",
)  # fmt: skip


def effective_toml(config: PipelineConfig) -> str:
    """Return the whole configuration as TOML. Keys without a value are comments."""
    lines = [f"# {config.name}: {config.source or 'not from a file'}, with all defaults"]
    lines += ["", "[pipeline]"]
    for name in SETTINGS:
        value = getattr(config, name)
        if name == "max_wait":
            value = "none" if value is None else "auto" if value == 0 else value
        lines.append(
            f"{name} = {value}" if name == "version_policy" and value else _line(name, value)
        )
    lines += _ports("pipeline.inputs", config.inputs)
    lines += _ports("pipeline.outputs", config.outputs)
    for exposed in config.exposed:
        table = f"pipeline.expose.{toml_key(exposed.node)}"
        lines += ["", f"[{table}]", _line("batched", exposed.batched)]
        lines.append(_line("description", exposed.description))
        lines += _ports(f"{table}.inputs", exposed.inputs)
        lines += _ports(f"{table}.outputs", exposed.outputs)
    for node in config.nodes.values():
        lines += ["", f"[{'.'.join(map(toml_key, node.name.split('.')))}]", *_node(node)]
    return "\n".join(lines) + "\n"


def _ports(table: str, ports: tuple[Port, ...]) -> Iterator[str]:
    yield ""
    yield f"[{table}]"
    table_of = InputTable if table.endswith("inputs") else PortTable
    for port in ports:
        yield f"{toml_key(port.name)} = {toml_value(_port(port, table_of))}"


def _port(port: Port, table: type[PortTable]) -> dict[str, Any]:
    """Return the keys of a port that have a value, of those that its table has."""
    values: dict[str, Any] = {}
    for key in table.model_fields:
        value = getattr(port, key, None)
        if isinstance(value, Port):
            values[key] = _port(value, PortTable)
        elif value is not None and value != ():
            values[key] = value
    return values


def _node(node: NodeConfig) -> Iterator[str]:
    if node.shares:
        if "." not in node.name:
            yield _line("borrow_from", node.shares)
    else:
        groups = node.instance_groups
        specs = [group.spec for group in groups]
        counts = Counter(spec.name for spec in _members(specs[0]))
        repeated = {name for name, count in counts.items() if count > 1}
        yield _line("backend", _expression(specs[0], repeated))
        if not issubclass(specs[0].cls, CompositeBackend):
            yield from _own_keys(node)
        for members in zip(*(list(_members(spec)) for spec in specs), strict=True):
            if members[0].name not in repeated:
                yield from _parameters(members)
    if node.sequence is not None:
        yield _line("sequence", _sequence(node.sequence))
    if node.next:
        yield _line("next", list(node.next))
    if node.filter is not None:
        yield _line("filter", node.filter)
    if node.map:
        taken = (
            f"{source}[{','.join(f'{key}:{target}' for key, target in pairs)}]"
            for source, pairs in node.map
        )
        yield _line("map", ",".join(taken))


def _sequence(sequence: SequenceConfig) -> dict[str, Any]:
    """Return the keys of a table `sequence` that have a value."""
    keys = ("strategy", "max_sequences", "max_waiting", "idle_timeout")
    table = _given({key: getattr(sequence, key) for key in keys})
    controls = {
        control.kind: _given(
            {key: getattr(control, key) for key in ("input", "dtype", "false", "true")}
        )
        for control in sequence.controls
    }
    states = [_given(asdict(state)) for state in sequence.state]
    return {**table, "controls": controls, "state": states}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _own_keys(node: NodeConfig) -> Iterator[str]:
    """Yield the keys of the node itself."""
    groups = node.instance_groups
    sizes = [_engine_sizes(group.spec) for group in groups]
    for key in ("min", "max"):
        own = [
            size.get(key) or getattr(group, key) for group, size in zip(groups, sizes, strict=True)
        ]
        if any(own):
            yield _line(key, _of_groups(own))
        else:
            bounds = {group.bound(group.spec.declared_range.max) for group in groups}
            rows = 1 if key == "min" else max(bounds)
            yield f"# {key} is not set: {rows} row{'s' * (rows != 1)}"
    yield _line("instance_num", _of_groups([group.instances for group in groups]))
    for name in (
        "batching_timeout", "combine", "priority_levels", "retry", "stuck_after", "executor",
    ):  # fmt: skip
        yield _line(name, getattr(node, name))
    yield _line("default_priority", node.default_priority if node.priority_levels else None)
    for level, policy in enumerate(node.queue_policies, 1):
        name = f"queue_policies.{level if node.priority_levels else 'default'}"
        yield _line(f"{name}.max_queue_size", policy.max_queue_size)
        yield _line(f"{name}.timeout", policy.timeout)
        yield _line(f"{name}.on_timeout", "delay" if policy.delays else "reject")
    yield _line("device", ",".join(node.devices) or None)
    yield _line("front", node.front)


def _engine_sizes(spec: Spec) -> dict[str, Any]:
    """Return `min` and `max` of the engine in an expression: the node's own, maybe as shapes."""
    for member in _members(spec):
        sizes = {key: getattr(member.params, key, None) for key in ("min", "max")}
        if any(isinstance(size, str) for size in sizes.values()):
            return sizes
    return {}


def _parameters(members: tuple[Spec, ...]) -> Iterator[str]:
    """Yield the parameters of one backend, which has a spec in each group."""
    first = members[0]
    if isinstance(first.params, Mapping):
        for key in first.params:
            yield _line(key, _of_groups([member.params.get(key) for member in members]))
        return
    if not isinstance(first.params, BaseModel):
        return
    address = first.name.rpartition(":")[2]
    for name, field in type(first.params).model_fields.items():
        value = _of_groups([getattr(member.params, name) for member in members])
        if name in {"min", "max"} or (name == "force_range" and value is None):
            continue  # keys of the node
        if "::" in (field.alias or ""):
            yield _line(field.alias or name, value)
        else:
            yield _line(f"{address}::{field.alias or name}", value)


def _of_groups(values: list[Any]) -> Any:
    """Return the one value of all groups, or all of them as a text with &."""
    if all(value == values[0] for value in values):
        return values[0]
    return " & ".join(_text(value) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _members(spec: Spec) -> Iterator[Spec]:
    yield spec
    for child in spec.children:
        yield from _members(child)


def _expression(spec: Spec, repeated: set[str]) -> str:
    """Write an expression. Backends that come more than once have their parameters in it."""
    name = f"Python[{spec.name}]" if ":" in spec.name else spec.name
    arguments = ""
    if spec.name in repeated and isinstance(spec.params, BaseModel):
        given = spec.params.model_dump(exclude_defaults=True, by_alias=True)
        arguments = ",".join(f"{key}={_text(value)}" for key, value in given.items())
    children = ",".join(_expression(child, repeated) for child in spec.children)
    return (
        (f"({spec.filter})" if spec.filter else "")
        + name
        + (f"({arguments})" if arguments else "")
        + (f"[{children}]" if children else "")
    )


def _line(key: str, value: Any) -> str:
    if value is None:
        return f"# {toml_key(key)} is not set"
    return f"{toml_key(key)} = {toml_value(value)}"
