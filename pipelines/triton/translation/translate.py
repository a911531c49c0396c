"""Translates a version of a Triton model into the tables that a pipeline's TOML file gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.backends.errors import ConfigError
from penstock.backends.suggestions import did_you_mean

from ...config.source import Tables, fit_name
from ..completion.complete import complete
from ..folders import CONFIG_FILE
from ..messages import ModelConfig, as_json
from ..model import TritonModel
from ..validate import validate
from . import ensemble, onnx, openvino, python, tensorrt, torch
from .instances import translate_instances
from .ports import translate_ports
from .scheduling import translate_scheduling
from .sequences import translate_sequences
from .warm_up import translate_warm_up

BACKENDS: Mapping[str, Callable[[TritonModel, Tables, dict[str, Any]], None]] = {
    "onnxruntime": onnx.translate,
    "pytorch": torch.translate,
    "tensorrt": tensorrt.translate,
    "openvino": openvino.translate,
    "python": python.translate,
    "ensemble": ensemble.translate,
}
"""Triton's backends -> what lets a node run them."""

LIMITS: Mapping[str, Any] = {"timeout": 3600, "max_wait": "none", "max_requests": 65_536}
"""Triton lets any number of requests wait and run for as long as they take. `max_memory` bounds
what they hold together.
"""
STUCK_AFTER_SECONDS = 3600


def translate(written: ModelConfig, folder: Path, version: str, file: str = "") -> Tables:
    """Return the tables of a version of the model in `folder`.

    `written` is its configuration as it is written, in `file`. Raises `ConfigError` if that is not
    valid, or if the model itself can't be read. Other mistakes are among the problems of the
    tables.
    """
    own_file = folder / CONFIG_FILE
    file = file or str(own_file if own_file.is_file() else folder)
    model = TritonModel(folder, version, complete(written, folder, version), written, file)
    node: dict[str, Any] = {}
    tables = Tables(
        fit_name(model.name),
        {model.node: node},
        pipeline={"name": fit_name(model.name), "version": version, "positional": True, **LIMITS},
        file=file,
        directory=folder.resolve(),
        model_config=as_json(model.config),
    )
    if tables.name != model.name:
        message = f"it is served as {tables.name!r}: other characters would break addresses"
        tables.warnings.append(model.problem("name", message))
    tables.problems += validate(model)
    if tables.problems:  # what follows relies on a valid configuration
        raise ConfigError(tables.problems)
    translate_node = BACKENDS.get(model.backend)
    if translate_node is None:
        hint = did_you_mean(model.backend, BACKENDS)
        message = f"there is no backend {model.backend!r}{hint}: expected {', '.join(BACKENDS)}"
        raise ConfigError([model.problem("backend", message)])
    if model.batched:
        node["max"] = model.config.max_batch_size
    else:
        tables.pipeline["batched"] = False
    tables.pipeline["version_policy"] = _policy_of(model)
    translate_ports(model, tables)
    if tables.problems:  # the engine's keys name the tensors
        raise ConfigError(tables.problems)
    translate_instances(model, tables, node)
    translate_scheduling(model, tables, node)
    translate_sequences(model, tables, node)
    translate_warm_up(model, tables, node)
    if model.config.response_cache.enable:
        tables.pipeline["cache"] = True
    translate_node(model, tables, node)
    if model.backend != "ensemble":
        node["stuck_after"] = STUCK_AFTER_SECONDS
    return tables


def _policy_of(model: TritonModel) -> Any:
    """Return the key `version_policy`. Versions that are not there are left out, as in Triton."""
    policy = model.config.version_policy
    if policy.HasField("specific"):
        named = [str(version) for version in dict.fromkeys(policy.specific.versions)]
        return {"specific": [name for name in named if (model.folder / name).is_dir()]}
    return "all" if policy.HasField("all") else {"latest": policy.latest.num_versions or 1}
