"""One node's table: its own keys and its expression, checked and made a `NodeConfig`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.expressions.composite import CompositeBackend, Decoupled
from penstock.backends.expressions.expression import parse
from penstock.backends.expressions.filters import is_builtin
from penstock.backends.expressions.kinds import misfits
from penstock.backends.expressions.registry import is_operator
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import RESERVED_KEYS
from penstock.backends.params import EngineParams
from penstock.backends.suggestions import did_you_mean, nearest

from .binding import Binding, bind, check_roughly
from .definition import InstanceGroupConfig, NodeConfig, QueuePolicy
from .devices import on_gpu, with_names
from .sequences import check_sequence
from .tables import (
    GROUP_KEYS,
    NODE_KEYS,
    STRUCTURE_KEYS,
    NodeTable,
    QueuePolicyTable,
    validated,
)

_NODE_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def check_name(name: str, nodes: Collection[str]) -> list[Problem]:
    """Return what is wrong with the name of a node."""
    if name in RESERVED_KEYS or name.startswith("_"):
        return [Problem(f"{name!r} is a reserved name: expected another name", node=name)]
    base, *numbers = name.split(".")
    if not all(_NODE_NAME.fullmatch(piece) for piece in (base, *numbers)):
        message = (
            "a node's name has only letters, digits, _ and -, and one . if it is a logical node"
        )
        return [Problem(message, node=name)]
    if len(numbers) > 1:
        message = f"a logical node has one . in its name, as in {base}.{numbers[0]}"
        return [Problem(message, node=name)]
    if numbers and base not in nodes:
        hint = did_you_mean(base, (node for node in nodes if "." not in node))
        message = f"it is a logical node of {base!r}, but there is no node {base!r}{hint}"
        return [Problem(message, node=name)]
    return []


def build_node(
    name: str,
    keys: Mapping[str, Any],
    defaults: Mapping[str, Any],
    following: tuple[str, ...],
    directory: Path,
) -> tuple[NodeConfig | None, Binding, list[Problem]]:
    """Return the node, its binding, and its problems.

    A node that is wrong is made as far as it is understood, so that others can be checked against
    it. It is None if its expression is not understood.
    """
    problems: list[Problem] = []
    binding = _bind(keys, defaults, directory, problems)
    problems += binding.problems
    groups = [
        _build_group(*group, problems)
        for group in zip(binding.specs, binding.own, binding.defaults, strict=True)
    ]
    plain = {
        key: value for key, value in {**defaults, **keys}.items() if key in NODE_KEYS - GROUP_KEYS
    }
    if not groups:  # an expression that is wrong hides no other problem
        plain |= {
            key: value for key, value in keys.items() if key in GROUP_KEYS and "&" not in str(value)
        }
    table, wrong = validated(NodeTable, plain)
    problems += wrong
    composite = next(
        (group.spec for group in groups if group and issubclass(group.spec.cls, CompositeBackend)),
        None,
    )
    if composite is not None and issubclass(composite.cls, Decoupled):
        composite = None  # it has instances, and threads or processes of its own
    if composite is not None:
        problems += _check_composite(composite, len(groups), keys)
    levels = table.priority_levels
    priority = table.default_priority
    if priority is None:
        priority = (levels + 1) // 2
    elif (priority > levels or (levels and not priority)) and "priority_levels" not in {
        problem.key for problem in wrong
    }:
        expected = (
            f"{'1 to ' * (levels > 1)}{levels} (priority_levels = {levels})"
            if levels
            else "priority_levels, without which there are no priorities"
        )
        problems.append(Problem(f"found {priority}, expected {expected}", key="default_priority"))
    policies, wrong = _queue_policies(table.queue_policies, levels)
    problems += wrong
    # A composite has no executor. An `executor` among the file's defaults is for the other nodes.
    executor = table.executor if composite is None else "thread"
    if executor == "auto" and (
        table.sequence is not None
        or not _may_be_measured([group for group in groups if group], keys)
    ):
        executor = "thread"
    if executor == "process":
        from penstock.backends.process.proxy import obstacles  # it imports numpy

        problems += dict.fromkeys(
            Problem(obstacle, key="executor")
            for group in groups
            if group
            for obstacle in obstacles(group.spec)
        )
    elif executor == "loop":
        problems += _check_loop([group for group in groups if group], keys)
    understood = tuple(group for group in groups if group)
    front = table.front
    if front is None or (composite is not None and "front" not in keys):
        front = composite is None and all(group.spec.in_front for group in understood)
    elif front and "front" in keys:
        problems += _check_front(table, executor, composite)
    sequence = table.sequence.config() if table.sequence is not None else None
    if sequence is not None and understood:
        problems += check_sequence(sequence, understood[0].spec)
    if not understood:
        return None, binding, problems
    devices, understood = with_names(table.device, understood, binding.warnings)
    node = NodeConfig(
        name=name,
        instance_groups=understood,
        next=following,
        batching_timeout=table.batching_timeout,
        priority_levels=levels,
        default_priority=priority,
        combine=table.combine,
        queue_policies=policies,
        retry=table.retry,
        stuck_after=table.stuck_after,
        executor=executor,
        devices=devices,
        front=front,
        sequence=sequence,
    )
    return node, binding, problems


def _queue_policies(
    tables: Mapping[str, QueuePolicyTable], levels: int
) -> tuple[tuple[QueuePolicy, ...], list[Problem]]:
    """Return the policy of each priority level, and what is wrong with their tables."""
    known = {"default": 0} | {str(level): level for level in range(1, levels + 1)}
    most = f"'default' or a priority level from 1 to {levels}" if levels else "'default'"
    problems = [
        Problem(
            f"found {name!r}: expected {most} (priority_levels = {levels})",
            key=f"queue_policies.{name}",
        )
        for name in tables
        if name not in known
    ]
    if not tables:
        return (), problems
    default = tables.get("default", QueuePolicyTable.model_validate({}))
    chosen = [tables.get(str(level), default) for level in range(1, (levels or 1) + 1)]
    return tuple(
        QueuePolicy(table.max_queue_size, table.timeout, table.on_timeout == "delay")
        for table in chosen
    ), problems


def _check_composite(spec: Spec, groups: int, keys: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    if groups > 1:
        message = f"{spec.name} has no instances, so a value with & means nothing here"
        problems.append(Problem(message, key="backend"))
    if keys.get("executor") == "process":
        message = f"{spec.name} waits for other nodes on the event loop: it can't run in a process"
        problems.append(Problem(message, key="executor"))
    return problems


def _check_loop(groups: list[InstanceGroupConfig], keys: Mapping[str, Any]) -> list[Problem]:
    """Return what keeps a node from running on the event loop."""
    problems: list[Problem] = []
    instances = sum(group.instances for group in groups)
    if instances > 1:
        message = (
            f'found {instances} instances: executor = "loop" runs one, because there is one event '
            'loop: leave out instance_num and &, or use executor = "thread"'
        )
        problems.append(Problem(message, key="executor"))
    if any(map(on_gpu, _devices_of(keys))):
        message = (
            'a backend that waits for a GPU would hold the event loop: use executor = "thread"'
        )
        problems.append(Problem(message, key="executor"))
    for name, reason in dict.fromkeys(
        blocking for group in groups for blocking in group.spec.blocking()
    ):
        message = (
            f"{name} can't run on the event loop, because {reason} and everything else would wait: "
            'use executor = "thread"'
        )
        problems.append(Problem(message, key="executor"))
    return problems


def _check_front(table: NodeTable, executor: str, composite: Spec | None) -> list[Problem]:
    """Return what keeps a node from running in the front processes."""
    obstacles: list[str] = []
    if composite is not None:
        obstacles.append(f"{composite.name} waits for other nodes, which are in the model process")
    if table.sequence is not None:
        obstacles.append("it keeps states of sequences, which are in one process")
    if executor == "process":
        obstacles.append('executor = "process" gives it processes of its own')
    if not set(table.device) <= {"cpu"}:
        obstacles.append("the model process has the GPUs")
    return [
        Problem(f"the node can't run in front processes: {obstacle}; expected false", key="front")
        for obstacle in obstacles
    ]


def _may_be_measured(groups: list[InstanceGroupConfig], keys: Mapping[str, Any]) -> bool:
    """Return whether a node has nothing but Penstock's own operators, and one instance of them."""
    return (
        sum(group.instances for group in groups) == 1
        and _only_operators(groups[0].spec)
        and not _devices_of(keys)
    )


def _only_operators(spec: Spec) -> bool:
    return (
        is_operator(spec.name)
        and not spec.cls.blocks
        and (spec.filter is None or is_builtin(spec.filter))
        and all(_only_operators(child) for child in spec.children)
    )


def _devices_of(keys: Mapping[str, Any]) -> tuple[str, ...]:
    table, _ = validated(NodeTable, {key: keys[key] for key in ("device",) if key in keys})
    return table.device


def _bind(
    keys: Mapping[str, Any], defaults: Mapping[str, Any], directory: Path, problems: list[Problem]
) -> Binding:
    text = keys.get("backend", defaults.get("backend"))
    if text is None and STRUCTURE_KEYS.issuperset(keys):
        text = "Identity"  # torchpipe's files end with such a node: [final]
    if not isinstance(text, str):
        misspelt = nearest("backend", keys)
        hint = (
            f" (is {misspelt!r} a misspelling of it?)" if misspelt and misspelt != "backend" else ""
        )
        given = f"there is no key backend{hint}" if text is None else f"found {text!r}"
        problems.append(Problem(f"expected an expression such as 'S[A,B]', {given}", key="backend"))
        keys = {key: value for key, value in keys.items() if key != misspelt}
    else:
        try:
            tree = parse(text)
        except ConfigError as error:
            problems += [Problem(problem.message, key="backend") for problem in error.problems]
        else:
            return bind(tree, keys, defaults, directory)
    binding = Binding()
    check_roughly(keys, defaults, binding)
    return binding


def _runs_items_alone(spec: Spec) -> bool:
    """Return whether an engine of the expression has `batched = false`."""
    if isinstance(spec.params, EngineParams) and spec.params.batched is False:
        return True
    return any(_runs_items_alone(child) for child in spec.children)


def _build_group(
    spec: Spec | None, own: dict[str, Any], defaults: dict[str, Any], problems: list[Problem]
) -> InstanceGroupConfig | None:
    """Build one instance group. None if it is not known what it runs."""
    given = {**defaults, **own}
    keys = {key: value for key, value in given.items() if key in GROUP_KEYS}
    if "batch_axis" in given:  # only the engine knows which size of a shape is the batch
        keys = {key: value for key, value in keys.items() if "x" not in str(value)}
    table, wrong = validated(NodeTable, keys)
    problems += wrong
    if spec is None:
        return None
    problems += misfits(spec)
    try:
        declared = spec.declared_range
    except ConfigError as error:
        problems += [Problem(problem.message, key="backend") for problem in error.problems]
        return None
    if spec.sets_range:
        # `min` and `max` are those of its engines.
        return InstanceGroupConfig(spec, table.instance_num)
    if table.min is not None and table.max is not None and table.min > table.max:
        message = f"min is {table.min} and max is {table.max}: min can't be the greater"
        problems.append(Problem(message, key="min" if "min" in own else "max"))
        # The range of an engine may come from these two: it is not compared with them.
        return InstanceGroupConfig(spec, table.instance_num)
    if declared.max == 1 and _runs_items_alone(spec):  # `max` may stay, for the shapes
        return InstanceGroupConfig(spec, table.instance_num, max=1)
    takes = f"than the backend takes: {spec.name} has the range {declared}"
    if table.max is not None and "max" in own:
        if table.max > declared.max:
            problems.append(Problem(f"{table.max} is more {takes}", key="max"))
        elif table.max < declared.min:
            problems.append(Problem(f"{table.max} is less {takes}", key="max"))
    if table.min is not None and "min" in own and table.min > declared.max:
        problems.append(Problem(f"{table.min} is more {takes}", key="min"))
    return InstanceGroupConfig(spec, table.instance_num, table.min, table.max)
