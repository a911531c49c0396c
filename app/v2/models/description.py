"""What models say of themselves: metadata, readiness, and the configuration in Triton's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.backends.errors import NotReady
from penstock.pipelines.node.node import Node

from ..call import Answer, ProtocolCall, ProtocolError, Route, json_answer
from ..tensors import DATATYPES, Datatype
from .model import ANY, Model, Models, Tensor

PLATFORM = "penstock"
NOT_READY = "Model version not ready"
"""Triton's words; the repository's index has the reason."""

_MODEL = "/v2/models/{model}[/versions/{version}]"


def description_routes(models: Models) -> tuple[Route, ...]:
    def model_of(call: ProtocolCall) -> Model:
        return models.get(call.names["model"], call.names["version"])

    async def metadata(call: ProtocolCall) -> Any:
        return metadata_of(model_of(call))

    async def config(call: ProtocolCall) -> Any:
        return config_of(model_of(call))

    async def ready(call: ProtocolCall) -> Answer:
        try:
            model = model_of(call)
        except NotReady:
            raise ProtocolError(400, NOT_READY) from None
        if model.pipeline.not_ready:
            raise ProtocolError(400, NOT_READY)
        return json_answer({"name": model.name, "ready": True})

    return (
        Route("GET", _MODEL, "metadata", metadata),
        Route("GET", f"{_MODEL}/config", "model-config", config),
        Route("GET", f"{_MODEL}/ready", "health", ready),
    )


def metadata_of(model: Model) -> dict[str, Any]:
    """As `GET /v2/models/{model}` answers it."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": [_described(each, model) for each in model.inputs],
        "outputs": [_described(each, model) for each in model.outputs],
    }


def _described(tensor: Tensor, model: Model) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": _datatype(tensor).name,
        "shape": list(_shape(tensor, model)),
    }


def _shape(tensor: Tensor, model: Model) -> tuple[int, ...]:
    """With the batch dimension where there is one, of what is not known, too."""
    return tensor.shape if tensor.shape is not None else ANY * (2 if model.max_batch_size else 1)


def _datatype(tensor: Tensor) -> Datatype:
    """Clients want one. Where a pipeline's file does not say, it is the one that can hold anything: an answer names its own."""
    return tensor.datatype or DATATYPES["BYTES"]


def config_of(model: Model) -> dict[str, Any]:
    """As `GET /v2/models/{model}/config` answers it: the names of Triton's ModelConfig, for what pipelines have."""
    labels = {
        port.name: Path(port.labels).name
        for port in model.pipeline.config.outputs
        if port.labels is not None
    }
    found: dict[str, Any] = {
        "name": model.name,
        "platform": "",
        "backend": PLATFORM,
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": model.max_batch_size,
        "input": [
            {
                **_configured(each, model),
                "format": "FORMAT_NONE",
                "is_shape_tensor": False,
                "allow_ragged_batch": False,
                "optional": False,
                "is_non_linear_format_io": False,
            }
            for each in model.inputs
        ],
        "output": [
            {
                **_configured(each, model),
                "label_filename": labels.get(each.name, ""),
                "is_shape_tensor": False,
                "is_non_linear_format_io": False,
            }
            for each in model.outputs
        ],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [
            {
                "name": node.name,
                "kind": "KIND_GPU" if node.devices else "KIND_CPU",
                "count": _count(node),
                "gpus": sorted(
                    int(device[5:]) for device in node.devices if device.startswith("cuda:")
                ),
                "secondary_devices": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
            for node in model.pipeline.nodes
        ],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }
    entry_point = model.pipeline.plan.default
    if entry_point is not None and (
        model.max_batch_size > 1 or entry_point.root.config.priority_levels
    ):
        entry, whole = entry_point.root.config, model.pipeline.config
        found["dynamic_batching"] = {
            "preferred_batch_size": [model.max_batch_size] if model.max_batch_size > 1 else [],
            "max_queue_delay_microseconds": round(entry.batching_timeout * 1000),
            "preserve_ordering": False,
            "priority_levels": entry.priority_levels,
            "default_priority_level": entry.default_priority,
            "default_queue_policy": {  # 0: no bound
                "timeout_action": "REJECT",
                "default_timeout_microseconds": _at_most(whole.timeout * 1e6, 2**53),
                "allow_timeout_override": True,
                "max_queue_size": _at_most(whole.max_requests, 2**31 - 1),
            },
            "priority_queue_policy": {},
        }
    return found


def _at_most(value: float, most: int) -> int:
    """What its field can hold; else 0."""
    return round(value) if value <= most else 0


def _count(node: Node) -> int:
    """Instances on each device, as ModelConfig counts them."""
    return max(
        1,
        sum(group.instances for group in node.config.groups)
        // max(1, len(node.config.devices), len(node.devices)),
    )


def _configured(tensor: Tensor, model: Model) -> dict[str, Any]:
    """Its shape is that of a row, where there is a batch: what stands behind the -1 that metadata begin with."""
    name = _datatype(tensor).name
    shape = _shape(tensor, model)
    if model.max_batch_size and shape[:1] == ANY:
        shape = shape[1:]
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{'STRING' if name == 'BYTES' else name}",
        "dims": list(shape),
    }
