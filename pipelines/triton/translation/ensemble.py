"""Triton's ensembles, and what their steps must have in common with the models that they call."""

from __future__ import annotations

from typing import Any

from penstock.backends.errors import ConfigError

from ...config.source import Tables, fit_name
from ..model import TritonModel
from .tensors import translate_reshape


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node call the models of the steps. Raises `ConfigError` for a step that lacks any."""
    problems = [
        model.problem(
            f"ensemble_scheduling.step.{field}", f"must specify {field!r} in step {index}"
        )
        for index, step in enumerate(model.config.ensemble_scheduling.step)
        for field in ("model_name", "input_map", "output_map")
        if not getattr(step, field)
    ]
    if problems:
        raise ConfigError(problems)
    node["backend"] = "Ensemble"
    translate_reshape(model, node)
    node["steps"] = [
        {
            "model": fit_name(step.model_name),
            "inputs": dict(step.input_map),
            "outputs": dict(step.output_map),
        }
        | ({"version": str(step.model_version)} if step.model_version > 0 else {})
        for step in model.config.ensemble_scheduling.step
    ]
