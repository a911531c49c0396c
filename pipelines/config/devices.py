"""`device = "all"` and `device = "any"`: the GPUs of this machine in place of their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.backends.errors import Problem
from penstock.backends.gpu.ipc import gpu_count

from .definition import InstanceGroupConfig

ALL, ANY = "all", "any"


def on_gpu(device: str) -> bool:
    """Return whether a device of a file may be a GPU."""
    return device in {ALL, ANY} or device.startswith("cuda")


def with_names(
    devices: tuple[str, ...], groups: Sequence[InstanceGroupConfig], warnings: list[Problem]
) -> tuple[tuple[str, ...], tuple[InstanceGroupConfig, ...]]:
    """Return the names of a node's devices, and its groups with the instances for them.

    With "all" the instances of a file are for each GPU; with "any" they are all that there are.
    Without a GPU the engines choose, as if no device were given.
    """
    if devices not in {(ALL,), (ANY,)}:
        return devices, tuple(groups)
    count = gpu_count()
    if not count:
        message = f'found "{devices[0]}", but there is no GPU here: the engines choose their device'
        warnings.append(Problem(message, key="device"))
        return (), tuple(groups)
    if devices == (ALL,):
        groups = [replace(group, instances=group.instances * count) for group in groups]
    return tuple(f"cuda:{number}" for number in range(count)), tuple(groups)
