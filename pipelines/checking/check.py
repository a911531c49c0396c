"""Check pipelines: everything that can be found without running them."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.backends.errors import ConfigError

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
