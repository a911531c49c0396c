"""Check pipelines: everything that can be found without running them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from penstock.backends.errors import ConfigError, Problem
from penstock.backends.operators.labels import read_labels

from ..composites.called_models import joined
from ..config.definition import PipelineConfig
from .callees import callee_findings
from .finding import Finding
from .flow import Flow
from .opened import Opened, open_pipeline


def check_pipelines(configs: Iterable[PipelineConfig], whole: bool) -> list[Opened]:
    """Open the files of pipelines and look for what would fail, or answer nonsense.

    `whole`: Python logic can call no other pipelines than these.
    """
    configs = list(configs)
    others = {config.name: config for config in configs}
    checked = []
    for config in configs:
        opened = open_pipeline(config)
        opened.findings += [
            *_label_files(config),
            *Flow(opened).run(),
            *callee_findings(config, others, whole),
            *_ensemble_findings(config, configs, whole),
        ]
        opened.findings = list(dict.fromkeys(opened.findings))
        checked.append(opened)
    return checked


def _ensemble_findings(
    config: PipelineConfig, others: Iterable[PipelineConfig], whole: bool
) -> Iterable[Finding]:
    """Yield what keeps an ensemble from calling its models."""
    found = {(other.name, key): other for other in others for key in ("", other.version)}
    try:
        joined(config, lambda *name_and_version: found.get(name_and_version))
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(problem, warning=not whole)


def _label_files(config: PipelineConfig) -> Iterable[Finding]:
    """Yield the label files of declared outputs that can't be read: /v2 would fail on them."""
    for port in config.outputs:
        if port.labels is None:
            continue
        beside = config.directory / port.labels
        path = beside if beside.exists() else Path(port.labels)
        try:
            read_labels(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            message = f"the labels {path} can't be read: {reason}"
            key = f"outputs.{port.name}.labels"
            yield Finding(Problem(message, config.source, "pipeline", key))
