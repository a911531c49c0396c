"""Finding: a problem that a check found, or a warning."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from penstock.backends.errors import ConfigError, Problem

from ..config.definition import PipelineConfig


class Finding(NamedTuple):
    """What a check found. A `warning` may be meant so; anything else is a mistake."""

    problem: Problem
    warning: bool = False


def problems_in(
    error: Exception, config: PipelineConfig, node: str, key: str = ""
) -> list[Finding]:
    """Return the findings that an exception of `init` makes."""
    problems = error.problems if isinstance(error, ConfigError) else [Problem(str(error), key=key)]
    return [
        Finding(replace(problem, file=problem.file or config.source, node=problem.node or node))
        for problem in problems
    ]
