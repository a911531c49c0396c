"""Triton's python backend as TritonPython."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ..messages import as_json
from ..model import TritonModel

EXECUTOR_PARAMETER = "PENSTOCK_EXECUTOR"
"""The parameter that says where the model runs: `process` (the default), or `thread`."""


def translate(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Let the node run the `model.py`."""
    executor = model.parameters.get(EXECUTOR_PARAMETER, "process")
    if executor not in {"process", "thread"}:
        message = f"found {executor!r}, expected process or thread"
        field = f"parameters.{EXECUTOR_PARAMETER}"
        tables.problems.append(model.problem(field, message))
    decoupled = model.config.model_transaction_policy.decoupled
    node["backend"] = "TritonPythonDecoupled" if decoupled else "TritonPython"
    node["model"] = model.model_file
    node["executor"] = executor
    node["model_config"] = as_json(model.config)
