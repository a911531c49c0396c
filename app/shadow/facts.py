"""Reads the facts of a request that decide where it goes and how its answers are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.backends.errors import PenstockError
from penstock.backends.memory import Reservation, budget
from penstock.pipelines.sequences.step import MAX_ID, MAX_ID_CHARACTERS

from ..http.helper_thread import PARSE_OFF_LOOP_BYTES, on_helper_thread
from ..http.json_text import JsonLimits, parse_json

_KEYS = (b"sequence_id", b"shared_memory_region", b"classification")
"""A request with any of these facts has one of these words in its JSON. Most have none, and are not
parsed for them.
"""


class Facts(NamedTuple):
    """`sequence`: the id of the sequence that the request is a step of; None for no step.

    `shared`: it uses shared memory. `classes`: the outputs that it wants as so many best classes.
    """

    sequence: int | str | None = None
    start: bool = False
    end: bool = False
    shared: bool = False
    classes: Mapping[str, int] = {}


NO_FACTS = Facts()


async def facts_of_json(text: bytes, limits: JsonLimits) -> Facts:
    """Return the facts of an infer request, of the JSON in its body.

    There are none in what is not JSON, or is not as the protocol says: Triton refuses that.
    """
    if not any(key in text for key in _KEYS):
        return NO_FACTS
    memory = Reservation(budget)
    try:
        if len(text) < PARSE_OFF_LOOP_BYTES:
            document = parse_json(text, limits, memory)
        else:
            document = await on_helper_thread(parse_json, text, limits, memory)
        return _facts(document)
    except (PenstockError, TypeError, AttributeError):
        return NO_FACTS._replace(shared=b"shared_memory_region" in text)
    finally:
        memory.close()


def _facts(document: Any) -> Facts:
    parameters = document.get("parameters") or {}
    tensors = [*(document.get("inputs") or ()), *(document.get("outputs") or ())]
    given = [(tensor.get("name"), tensor.get("parameters") or {}) for tensor in tensors]
    return Facts(
        _sequence(parameters.get("sequence_id")),
        parameters.get("sequence_start") is True,
        parameters.get("sequence_end") is True,
        any("shared_memory_region" in one for _, one in given),
        {name: one["classification"] for name, one in given if "classification" in one},
    )


def _sequence(given: Any) -> int | str | None:
    """Return the id of a sequence; None for 0 and "", which stand for none, and for one that no
    server takes.
    """
    if type(given) is int and 0 < given <= MAX_ID:
        return given
    if type(given) is str and 0 < len(given) <= MAX_ID_CHARACTERS:
        return given
    return None


def facts_of_message(text: bytes, request: Any) -> Facts:
    """Return the facts of a ModelInferRequest, of its bytes without raw contents.

    `request`: the message's class.
    """
    if not any(key in text for key in _KEYS):
        return NO_FACTS
    message = request.FromString(text)
    parameters = {name: _chosen(value) for name, value in message.parameters.items()}
    tensors = (*message.inputs, *message.outputs)
    return Facts(
        _sequence(parameters.get("sequence_id")),
        parameters.get("sequence_start") is True,
        parameters.get("sequence_end") is True,
        any("shared_memory_region" in tensor.parameters for tensor in tensors),
        {
            tensor.name: _chosen(tensor.parameters["classification"])
            for tensor in message.outputs
            if "classification" in tensor.parameters
        },
    )


def _chosen(value: Any) -> Any:
    field = value.WhichOneof("parameter_choice")
    return None if field is None else getattr(value, field)
