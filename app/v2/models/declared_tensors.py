"""The tensors of a configuration that a load brings, compared with the model's own: its `input` and
`output`, and those of `sequence_batching`.

They change nothing, so they must say what the server reports of the model (`description.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.backends.errors import InvalidRequest

from .config_fields import list_of
from .description import config_of
from .model import Model


def check_tensors(config: Mapping[str, Any], model: Model) -> None:
    """Raise `InvalidRequest` if the configuration declares other tensors than the model has.

    A list that is missing or empty declares nothing. The order is free.
    """
    own = config_of(model)
    for key in ("input", "output"):
        declared = list_of(config.get(key), key)
        if declared:
            _check_list(key, declared, {tensor["name"]: tensor for tensor in own[key]})
    sequences, given = own.get("sequence_batching"), config.get("sequence_batching")
    if sequences is not None and isinstance(given, dict):
        for key in ("control_input", "state"):
            if given.get(key) and not _says(given[key], sequences[key]):
                raise _invalid(
                    f"'{key}' of 'sequence_batching' is {_shown(given[key])}, and the model's is "
                    f"{_shown(sequences[key])}"
                )


def _check_list(
    key: str, declared: list[Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> None:
    names = [tensor.get("name") for tensor in declared]
    if not all(isinstance(name, str) for name in names) or sorted(map(str, names)) != sorted(own):
        raise _invalid(
            f"'{key}' has {_shown(names)}, expected the model's own: {_shown(list(own))}"
        )
    for tensor in declared:
        name = tensor["name"]
        for field, value in tensor.items():
            if field not in own[name]:
                if field == "reshape" and value in (None, {}):
                    continue
                raise _invalid(
                    f"'{field[:100]}' of {key} '{name}' can't be set here, expected one of "
                    f"{', '.join(own[name])}"
                )
            expected = own[name][field]
            if value is not None and not _same(value, expected):
                raise _invalid(
                    f"'{field}' of {key} '{name}' is {_shown(value)}, and the model's is "
                    f"{_shown(expected)}"
                )


def _same(value: Any, expected: Any) -> bool:
    """Return whether two values are the same. protobuf's JSON has int64 as strings."""
    if isinstance(expected, list):
        return isinstance(value, list) and list(map(str, value)) == list(map(str, expected))
    return type(value) is type(expected) and bool(value == expected)


def _says(given: Any, own: Any) -> bool:
    """Return whether all that `given` has is in `own`. A field that is empty says nothing."""
    if isinstance(own, dict):
        return isinstance(given, dict) and all(
            value in (None, [], "") or (key in own and _says(value, own[key]))
            for key, value in given.items()
        )
    if isinstance(own, list):
        return (
            isinstance(given, list)
            and len(given) == len(own)
            and all(_says(*pair) for pair in zip(given, own, strict=True))
        )
    return bool(given == own) or str(given) == str(own)


def _shown(value: Any) -> str:
    return json.dumps(value)[:200]


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid config override: {problem}")
