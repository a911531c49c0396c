"""Calls of models by name, as a backend makes them, become requests to pipelines.

composites/model_calls.py has their life; here is what they ask and answer.
"""

from __future__ import annotations

from typing import Any

from penstock.backends.errors import InvalidRequest
from penstock.backends.item import Item
from penstock.backends.server import ModelCall, Response

from .config.definition import PipelineConfig
from .named_tensors import item_of, tensors_of
from .sequences.step import Step

OWN_KEYS = frozenset({"data", "result", "error", "node_name", "request_size", "request_facts"})
"""The keys of an item that are no parameters."""


def request_of(call: ModelCall, config: PipelineConfig) -> Item:
    """Return the item that a call sends to a pipeline. Raises InvalidRequest."""
    for name in call.outputs:
        if config.outputs and all(port.name != name for port in config.outputs):
            raise InvalidRequest(f"unexpected inference output '{name}' for model '{config.name}'")
    if taken := OWN_KEYS & call.parameters.keys():
        raise InvalidRequest(f"parameter {min(taken)!r} can't be given: the server uses that name")
    return {**call.parameters, **item_of(config, call.inputs)}


def step_of(call: ModelCall, takes_sequences: bool) -> Step | None:
    """Return the step of a sequence that a call is; None for a pipeline that keeps none."""
    if not takes_sequences or not call.correlation_id:
        return None
    return Step(call.correlation_id, call.starts, call.ends, strict=True)


def response_of(config: PipelineConfig, outputs: tuple[str, ...], item: Item) -> Response:
    """Return the response that an answer is: the outputs that were asked for, all if none was."""
    found: dict[str, Any] = tensors_of(config, item)
    if outputs:
        found = {name: array for name, array in found.items() if name in outputs}
    return Response(found, parameters=item.get("response_parameters"))
