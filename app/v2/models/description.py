"""Metadata, readiness and configuration of models.

The configuration has the shape of Triton's ModelConfig.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.backends.errors import NotReady
from penstock.pipelines.config.definition import QueuePolicy
from penstock.pipelines.node.node import Node

from ...http.inputs.datatypes import DATATYPES, Datatype
from ...http.inputs.declared import ANY_SIZE, Tensor
from ..call import ProtocolAnswer, ProtocolCall, ProtocolError, Route, json_answer
from .model import Model, Models
from .model_config import version_policy_of
from .sequence_batching import sequence_batching_of

PLATFORM = "penstock"
MODEL_NOT_READY = "Model version not ready"
"""Triton's words. The repository's index has the reason."""

MODEL_PATH = "/v2/models/{model}[/versions/{version}]"


class ModelNotReadyError(ProtocolError):
    """Raised for a model that is known and can't take requests now."""

    def __init__(self) -> None:
        super().__init__(400, MODEL_NOT_READY)


def description_routes(models: Models) -> tuple[Route, ...]:
    """Return the routes that describe a model."""

    def model_of(call: ProtocolCall) -> Model:
        return models.get(call.names["model"], call.names["version"])

    async def metadata(call: ProtocolCall) -> dict[str, Any]:
        model = model_of(call)
        return metadata_of(model, [one.config.version for one in models.versions(model.name)])

    async def config(call: ProtocolCall) -> dict[str, Any]:
        return config_of(model_of(call))

    async def ready(call: ProtocolCall) -> ProtocolAnswer:
        try:
            model = model_of(call)
        except NotReady:
            raise ModelNotReadyError from None
        if model.pipeline.not_ready:
            raise ModelNotReadyError
        return json_answer({"name": model.name, "ready": True})

    return (
        Route("GET", MODEL_PATH, "metadata", metadata),
        Route("GET", f"{MODEL_PATH}/config", "model-config", config),
        Route("GET", f"{MODEL_PATH}/ready", "health", ready),
    )


def metadata_of(model: Model, versions: list[str]) -> dict[str, Any]:
    """Return what `GET /v2/models/{model}` answers. `versions`: those that are loaded."""
    own = model.pipeline.config.model_config
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM if own is None else own.get("platform") or own.get("backend", ""),
        "inputs": [_metadata(tensor, model) for tensor in model.inputs],
        "outputs": [_metadata(tensor, model) for tensor in model.outputs],
    }


def _metadata(tensor: Tensor, model: Model) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": _datatype(tensor).name,
        "shape": list(_shape(tensor, model)),
        **({"optional": True} if tensor.optional else {}),
    }


def _shape(tensor: Tensor, model: Model) -> tuple[int, ...]:
    """Return the shape, with the batch dimension if there is one; -1 for each unknown size."""
    if tensor.shape is not None:
        return tensor.shape
    return ANY_SIZE * (2 if model.max_batch_size else 1)


def _datatype(tensor: Tensor) -> Datatype:
    """Return the datatype to report.

    Clients expect one. If the pipeline's file does not say, it is BYTES, which can hold anything:
    each answer names its own.
    """
    return tensor.datatype or DATATYPES["BYTES"]


def config_of(model: Model) -> dict[str, Any]:
    """Return what `GET /v2/models/{model}/config` answers.

    The fields are those of Triton's ModelConfig, with the values that pipelines have. A Triton
    model answers its own.
    """
    own = model.pipeline.config.model_config
    if own is not None:  # an engine may know tensors that it leaves out
        return {
            **own,
            "input": own["input"] or _inputs(model),
            "output": own["output"] or _outputs(model),
        }
    config: dict[str, Any] = {
        "name": model.name,
        "platform": "",
        "backend": PLATFORM,
        "runtime": "",
        "version_policy": version_policy_of(model.pipeline.config),
        "max_batch_size": model.max_batch_size,
        "input": _inputs(model),
        "output": _outputs(model),
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "instance_group": [_instance_group(node) for node in model.pipeline.nodes],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": model.streams},
        "response_cache": {"enable": model.pipeline.config.cache},
    }
    entry_point = model.pipeline.plan.default
    sequences = sequence_batching_of(model.pipeline)
    if sequences is not None:  # instead of the other one: ModelConfig has one of them
        config["sequence_batching"] = sequences
    elif entry_point is not None and entry_point.root.config.combine:
        # Of models without a batch too: ModelConfig has the queue's policy nowhere else.
        entry_node, pipeline = entry_point.root.config, model.pipeline.config
        config["dynamic_batching"] = {
            "preferred_batch_size": [model.max_batch_size] if model.max_batch_size > 1 else [],
            "max_queue_delay_microseconds": round(entry_node.batching_timeout * 1000),
            "preserve_ordering": False,
            "priority_levels": entry_node.priority_levels,
            "default_priority_level": entry_node.default_priority,
            "default_queue_policy": _queue_policy(
                entry_node.queue_policies[0]
                if entry_node.queue_policies and not entry_node.priority_levels
                else QueuePolicy(pipeline.queue_size, pipeline.queue_timeout)
            ),
            "priority_queue_policy": {
                str(level): _queue_policy(policy)
                for level, policy in enumerate(entry_node.queue_policies, 1)
                if entry_node.priority_levels
            },
        }
    return config


def _queue_policy(policy: QueuePolicy) -> dict[str, Any]:
    return {  # 0: no bound
        "timeout_action": "DELAY" if policy.delays else "REJECT",
        "default_timeout_microseconds": _at_most((policy.timeout or 0) * 1e6, 2**53),
        "allow_timeout_override": True,
        "max_queue_size": _at_most(policy.max_queue_size or 0, 2**31 - 1),
    }


def _inputs(model: Model) -> list[dict[str, Any]]:
    return [
        {
            **_tensor_config(tensor, model),
            "format": "FORMAT_NONE",
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": tensor.optional,
            "is_non_linear_format_io": False,
        }
        for tensor in model.inputs
    ]


def _outputs(model: Model) -> list[dict[str, Any]]:
    labels = {
        port.name: Path(port.labels).name
        for port in model.pipeline.config.outputs
        if port.labels is not None
    }
    return [
        {
            **_tensor_config(tensor, model),
            "label_filename": labels.get(tensor.name, ""),
            "is_shape_tensor": False,
            "is_non_linear_format_io": False,
        }
        for tensor in model.outputs
    ]


def _at_most(value: float, most: int) -> int:
    """Round a value; 0 if its field can't hold it."""
    return round(value) if value <= most else 0


def _instance_group(node: Node) -> dict[str, Any]:
    devices = max(1, len(node.config.devices), len(node.devices))
    return {
        "name": node.name,
        "kind": "KIND_GPU" if node.devices else "KIND_CPU",
        # ModelConfig counts the instances on each device.
        "count": max(1, sum(group.instances for group in node.config.instance_groups) // devices),
        "gpus": sorted(int(device[5:]) for device in node.devices if device.startswith("cuda:")),
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }


def _tensor_config(tensor: Tensor, model: Model) -> dict[str, Any]:
    """Describe an input or output as ModelConfig does.

    If there is a batch dimension, the shape is that of a row: without the -1 that the shape in the
    metadata begins with.
    """
    name = _datatype(tensor).name
    shape = _shape(tensor, model)
    if model.max_batch_size and shape[:1] == ANY_SIZE:
        shape = shape[1:]
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{'STRING' if name == 'BYTES' else name}",
        "dims": list(shape),
    }
