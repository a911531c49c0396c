"""Assign devices and bounds to the instances of a node."""

from __future__ import annotations

import threading
from collections.abc import Callable
from weakref import WeakSet

from penstock.backends.base import Backend, Context
from penstock.backends.gpu.free_memory import free_memory
from penstock.backends.loaded_files import LoadedFiles
from penstock.backends.shared_files import SharedFiles

from ..config.definition import NodeConfig, PipelineConfig


def context_of(
    config: NodeConfig,
    pipeline: PipelineConfig,
    instance_group: int,
    instance: int,
    files: LoadedFiles | None = None,
    *,
    device: str | None = None,
    shared_files: SharedFiles | None = None,
) -> Context:
    """Return the `Context` of one instance of an instance group.

    The instances take the node's devices in turn, unless `device` names one, and share its `files`
    and `shared_files`.
    """
    number = sum(other.instances for other in config.instance_groups[:instance_group]) + instance
    if device is None:
        device = config.devices[number % len(config.devices)] if config.devices else ""
    return Context(
        pipeline=pipeline.name,
        node=config.name,
        directory=pipeline.directory,
        instance=number,
        instances=sum(other.instances for other in config.instance_groups),
        min=config.instance_groups[instance_group].min,
        max=config.instance_groups[instance_group].max,
        device=device,
        files=LoadedFiles() if files is None else files,
        shared_files=shared_files,
    )


def device_of(backend: Backend) -> str:
    """Return the accelerator that a backend or one of its members took; "" if all use the CPU."""
    return backend.device or next(
        (device for child in backend.children if (device := device_of(child))), ""
    )


_placements: WeakSet[Placement] = WeakSet()
"""Those of all nodes of the process: what loads now does not show in the free memory yet."""
_listing = threading.Lock()  # nodes may be on several event loops


class Placement:
    """The devices of one node: which instances are where, and which devices have failed.

    An instance is its instance group and its number there. `failed` has the reason by the device,
    those that failed first before the others. `free`: the bytes that are free on a device, if that
    can be told.
    """

    def __init__(self, config: NodeConfig, free: Callable[[str], int | None] = free_memory) -> None:
        self.devices = tuple(dict.fromkeys(config.devices))
        self.failed: dict[str, str] = {}
        self._free = free
        self._loading: set[tuple[int, int]] = set()
        instances = [
            (group, instance)
            for group, those in enumerate(config.instance_groups)
            for instance in range(those.instances)
        ]
        self._most = -(-len(instances) // max(1, len(self.devices)))  # of a device
        # Groups may be made for the devices that are theirs in turn.
        self._may_move = len(config.instance_groups) == 1
        in_turn = config.devices or ("",)
        self._device_of = {
            key: in_turn[number % len(in_turn)] for number, key in enumerate(instances)
        }
        if (
            self._may_move
            and len(instances) % max(1, len(self.devices))
            and len(self.devices) == len(config.devices)
            and "cpu" not in self.devices
        ):
            self._device_of.clear()  # some get more than others: it depends on their memory
        with _listing:
            _placements.add(self)

    def place(self, instance: tuple[int, int]) -> str:
        """Return the device on which an instance is to load now; "": its engine chooses.

        It stays where it was, unless that device has failed and another one has room: fewer
        instances than its share. Of several the one with the most free memory is taken.
        """
        self._loading.add(instance)
        return self._choose(instance)

    def _choose(self, instance: tuple[int, int]) -> str:
        device = self._device_of.get(instance)
        if device is None or (device in self.failed and self._may_move):
            device = self._device_of[instance] = self._best_for(instance)
        return device

    def _best_for(self, instance: tuple[int, int]) -> str:
        others = [device for other, device in self._device_of.items() if other != instance]
        room = [device for device in self.devices if others.count(device) < self._most]
        failed = list(self.failed)

        def rank(device: str) -> tuple[int, int, float]:
            since = failed.index(device) + 1 if device in self.failed else 0
            with _listing:
                loading = sum(placement.loading(device) for placement in _placements)
            free = self._free(device)
            return since, others.count(device), -(1 if free is None else free) / (1 + loading)

        return min(room, key=rank)

    def count(self, device: str) -> int:
        """Count the instances that are, or are to be, on a device."""
        return list(self._device_of.values()).count(device)

    def loading(self, device: str) -> int:
        """Count the instances that load on a device."""
        return sum(self._device_of.get(instance) == device for instance in list(self._loading))

    def loaded(self, instance: tuple[int, int]) -> None:
        """Note that an instance serves, so its device works."""
        self._loading.discard(instance)
        self.failed.pop(self._device_of[instance], None)

    def fail(self, instance: tuple[int, int], reason: str) -> bool:
        """Note that the device of an instance has failed, or has no memory for it.

        Return whether another device is to take the instance, which works as far as is known.
        """
        self._loading.discard(instance)
        device = self._device_of[instance]
        self.failed.pop(device, None)
        self.failed[device] = reason
        return self._choose(instance) not in self.failed
