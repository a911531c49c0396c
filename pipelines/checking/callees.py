"""The nodes and pipelines that Python logic calls by name, found in its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.backends.errors import Problem
from penstock.backends.expressions.composite import Logic
from penstock.backends.suggestions import did_you_mean

from ..config.definition import PipelineConfig
from ..runs.plan import Plan
from .finding import Finding


def callee_findings(
    config: PipelineConfig, others: Mapping[str, PipelineConfig], whole: bool
) -> Iterator[Finding]:
    """Yield a finding for each name in a `call("…")` of Python logic that nothing has.

    `others`: the pipelines that are served with it, by name. `whole`: there are no more of them.
    A name that is computed can't be checked.
    """
    plan = Plan(config.nodes, config.entry)
    for node in config.nodes.values():
        for group in node.instance_groups:
            if not issubclass(group.spec.cls, Logic):
                continue
            for name, line in callees_of(group.spec.cls):
                problem = _problem_with(name, config, plan, others)
                if problem is None:
                    continue
                message, sure = problem
                where = f"call({name!r}) in line {line} of {group.spec.name}"
                yield Finding(
                    Problem(f"{where}: {message}", config.source, node.name, "backend"),
                    warning=not (sure or whole),
                )


def _problem_with(
    name: str, config: PipelineConfig, plan: Plan, others: Mapping[str, PipelineConfig]
) -> tuple[str, bool] | None:
    """Return why a call of `name` would fail, and whether that is sure with one file alone."""
    if name in config.nodes:
        if name in plan.entry_points:
            return None
        return "this node can't be entered: a node after it needs what it does not lead to", True
    pipeline, _, node = name.partition("/")
    if pipeline in others:
        if not node or node.startswith("versions/") or node in others[pipeline].nodes:
            return None
        hint = did_you_mean(node, others[pipeline].nodes)
        return f"pipeline {pipeline!r} has no node {node!r}{hint}", True
    hint = did_you_mean(name, [*config.nodes, *others])
    return f"there is no node of this pipeline and no other pipeline {pipeline!r}{hint}", False


def callees_of(logic: type[Any]) -> list[tuple[str, int]]:
    """Return the names that the logic calls, each with its line in the file."""
    wrapped = getattr(logic, "wrapped", None)
    function = wrapped.forward if wrapped is not None else getattr(logic, "function", None)
    if function is None:
        return []
    function = inspect.unwrap(function)
    call = [*inspect.signature(function).parameters][-1]
    source = wrapped if wrapped is not None else function  # its other methods may get `call` too
    try:
        lines, first = inspect.getsourcelines(source)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return []
    found = {
        (argument.value, first + node.lineno - 1): None
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == call
        and node.args
        and isinstance(argument := node.args[0], ast.Constant)
        and isinstance(argument.value, str)
    }
    return [*found]
