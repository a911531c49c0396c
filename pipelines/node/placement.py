"""Assign devices and bounds to the instances of a node."""

from __future__ import annotations

from penstock.backends.base import Backend, Context
from penstock.backends.loaded_files import LoadedFiles

from ..config.definition import NodeConfig, PipelineConfig


def context_of(
    config: NodeConfig,
    pipeline: PipelineConfig,
    instance_group: int,
    instance: int,
    files: LoadedFiles | None = None,
) -> Context:
    """Return the `Context` of one instance of an instance group.

    The instances take the node's devices in turn, and share its `files`.
    """
    number = sum(other.instances for other in config.instance_groups[:instance_group]) + instance
    return Context(
        pipeline=pipeline.name,
        node=config.name,
        directory=pipeline.directory,
        instance=number,
        instances=sum(other.instances for other in config.instance_groups),
        min=config.instance_groups[instance_group].min,
        max=config.instance_groups[instance_group].max,
        device=config.devices[number % len(config.devices)] if config.devices else "",
        files=LoadedFiles() if files is None else files,
    )


def device_of(backend: Backend) -> str:
    """Return the accelerator that a backend or one of its members took; "" if all use the CPU."""
    return backend.device or next(
        (device for child in backend.children if (device := device_of(child))), ""
    )
