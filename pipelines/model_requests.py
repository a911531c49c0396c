"""Calls of models by name, as a backend makes them, become requests to pipelines.

composites/model_calls.py has their life; here is what they ask and answer.
"""

from __future__ import annotations

from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import (
    NOT_PARAMETERS,
    SEQUENCE_END,
    SEQUENCE_START,
    Item,
    RequestFacts,
)
from penstock.backends.server import ModelCall, Response

from .config.definition import PipelineConfig
from .config.tables import numpy_type
from .named_tensors import item_of, tensors_of
from .sequences.step import Step


def request_of(call: ModelCall, config: PipelineConfig) -> Item:
    """Return the item that a call sends to a pipeline. Raises InvalidRequest."""
    for name in call.outputs:
        if config.outputs and all(port.name != name for port in config.outputs):
            raise InvalidRequest(f"unexpected inference output '{name}' for model '{config.name}'")
    if taken := NOT_PARAMETERS & call.parameters.keys():
        raise InvalidRequest(f"parameter {min(taken)!r} can't be given: the server uses that name")
    item: Item = {**call.parameters, **item_of(config, call.inputs)}
    if config.takes_request_facts:
        flags = call.starts * SEQUENCE_START | call.ends * SEQUENCE_END
        item["request_facts"] = RequestFacts(
            call.correlation_id, flags, call.timeout, call.outputs or None, call.request_id
        )
    return item


def step_of(call: ModelCall, takes_sequences: bool) -> Step | None:
    """Return the step of a sequence that a call is; None for a pipeline that keeps none."""
    if not takes_sequences or not call.correlation_id:
        return None
    return Step(call.correlation_id, call.starts, call.ends, strict=True)


def response_of(config: PipelineConfig, outputs: tuple[str, ...], item: Item) -> Response:
    """Return the response that an answer is: the outputs that were asked for, all if none was."""
    found = {
        name: _on_cpu(array)
        for name, array in tensors_of(config, item).items()
        if not outputs or name in outputs
    }
    halves = {port.name for port in config.outputs if numpy_type(port.dtype) == "bfloat16"}
    parameters = item.get("response_parameters")
    return Response(found, parameters=parameters, bfloat16=frozenset(halves & found.keys()))


def _on_cpu(array: Any) -> Any:
    """Return an array of NumPy: BF16 as float32."""
    if not hasattr(array, "detach"):  # not a tensor of torch
        return array
    array = array.detach().cpu()
    return (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
