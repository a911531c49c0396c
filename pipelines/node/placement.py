"""Where a node's instances run: what each is told of its place, and which device it took."""

from __future__ import annotations

from penstock.backends.base import Backend, Context

from ..config.definition import NodeConfig, PipelineConfig


def context_of(config: NodeConfig, pipeline: PipelineConfig, group: int, instance: int) -> Context:
    """The place of one instance of an `&` group. The instances take the node's devices in turn."""
    number = sum(other.instances for other in config.groups[:group]) + instance
    return Context(
        pipeline=pipeline.name,
        node=config.name,
        directory=pipeline.directory,
        instance=number,
        instances=sum(other.instances for other in config.groups),
        min=config.groups[group].min,
        max=config.groups[group].max,
        device=config.devices[number % len(config.devices)] if config.devices else "",
    )


def device_of(backend: Backend) -> str:
    """The accelerator that a backend or a member of it took; "": all run on the CPU."""
    return backend.device or next(
        (found for child in backend.children if (found := device_of(child))), ""
    )
