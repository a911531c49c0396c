"""`instance_group` as `instance_num` and `device`."""

from __future__ import annotations

from typing import Any

from ...config.source import Tables
from ..completion.complete import why_not_on_gpus
from ..model import TritonModel

TAKES_GPU = frozenset({"pytorch"})
"""The backends that take a GPU, if there is one, unless they are told of another device."""


def translate_instances(model: TritonModel, tables: Tables, node: dict[str, Any]) -> None:
    """Set how many instances the node has, and their devices in turn."""
    devices: list[str] = []
    for index, group in enumerate(model.config.instance_group):
        if group.kind == group.KIND_GPU and (why := why_not_on_gpus(model.backend)):
            message = f"found KIND_GPU, but the model runs on the CPU: {why}"
            tables.warnings.append(model.problem(f"instance_group[{index}].kind", message))
            devices += ["cpu"] * group.count
        elif group.kind == group.KIND_GPU:
            places = [f"cuda:{gpu}" for gpu in group.gpus] or ["cuda:0"]
            devices += [place for place in places for _ in range(group.count)]
        elif group.kind == group.KIND_CPU:
            devices += ["cpu"] * group.count
        else:
            devices += [""] * group.count  # the model places itself
    if len(devices) > 1:  # an ensemble has none
        node["instance_num"] = len(devices)
    # Without a device, engines take the first GPU that they can use.
    is_chosen = model.backend == "onnxruntime" and any(
        group.kind != group.KIND_AUTO for group in model.written.instance_group
    )
    on_gpus = any(device.startswith("cuda") for device in devices)
    if model.backend in TAKES_GPU or is_chosen or on_gpus:
        distinct = list(dict.fromkeys(devices))
        same = len({devices.count(device) for device in distinct}) == 1
        # Instances take the devices in turn.
        node["device"] = ",".join(distinct if same else devices)
