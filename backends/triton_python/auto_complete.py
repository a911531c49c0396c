"""Complete a model's config by its own `auto_complete_config`, in a process of its own.

`python -m penstock.backends.triton_python.auto_complete MODEL.PY`: the config comes as JSON on
standard input. What the model prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import BackendError, ConfigError, Problem
from ..process.environment import child_environment
from . import model_file
from .instance import describe
from .instance_metrics import InstanceMetrics
from .model_config import ModelConfig
from .running import RunningModel

TIMEOUT_SECONDS = 300.0
"""The longest that a model's imports and its `auto_complete_config` may take together."""


def complete(model: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config as `auto_complete_config` of the `model.py` makes it.

    `config`: as Triton's JSON has it. It is returned as it is if the model has no such function.
    Raises ConfigError with the model's words if that fails.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", __name__, str(model.absolute())],
            input=json.dumps(config).encode(),
            stdout=subprocess.PIPE,
            env=child_environment(),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        text = f"auto_complete_config did not return within {TIMEOUT_SECONDS:g} s"
        raise ConfigError([Problem(text, str(model))]) from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        text = f"auto_complete_config ended its process with code {child.returncode}"
        raise ConfigError([Problem(text, str(model))]) from None
    if "error" in answer:
        raise ConfigError([Problem(answer["error"], str(model))])
    completed: dict[str, Any] = answer["config"]
    return completed


def completed_by(model: Path, config: str) -> dict[str, Any]:
    """Import the model in this process, and let it complete its config, which is JSON.

    Return what `complete` reads: the config, or an error.
    """
    try:
        cls = model_file.load(RunningModel(model.parent, InstanceMetrics(None)), model)
        given: Any = ModelConfig(config)
        if hasattr(cls, "auto_complete_config"):
            given = cls.auto_complete_config(given)
        if not isinstance(given, ModelConfig):
            name = json.loads(config).get("name", model.parent.parent.name)
            return {
                "error": f"auto_complete_config function in model '{name}' must return a valid "
                "pb.ModelConfig object."
            }
        return {"config": given.as_dict()}
    except BackendError as error:
        return {"error": str(error)}
    except BaseException as error:  # SystemExit too: it is an answer like others
        return {"error": f"auto_complete_config failed: {describe(error)}"}


def main() -> None:
    """Answer on what was standard output, which is standard error for the model."""
    answer = os.dup(1)
    os.dup2(2, 1)
    text = json.dumps(completed_by(Path(sys.argv[1]), sys.stdin.read()))
    with os.fdopen(answer, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
