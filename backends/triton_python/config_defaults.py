"""The defaults in a model's configuration as Triton prints it, so that a file may leave them out.

They are those of protobuf: a field that has no presence is always printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EACH = "*"
"""The key of the template of a map's values."""

_QUEUE_POLICY: dict[str, Any] = {
    "timeout_action": "REJECT",
    "default_timeout_microseconds": 0,
    "allow_timeout_override": False,
    "max_queue_size": 0,
}
_OUTPUT: dict[str, Any] = {
    "name": "",
    "data_type": "TYPE_INVALID",
    "dims": [],
    "label_filename": "",
    "is_shape_tensor": False,
    "is_non_linear_format_io": False,
}
_INPUT: dict[str, Any] = {
    "name": "",
    "data_type": "TYPE_INVALID",
    "format": "FORMAT_NONE",
    "dims": [],
    "is_shape_tensor": False,
    "allow_ragged_batch": False,
    "optional": False,
    "is_non_linear_format_io": False,
}
_INSTANCE_GROUP: dict[str, Any] = {
    "name": "",
    "kind": "KIND_AUTO",
    "count": 0,
    "gpus": [],
    "secondary_devices": [],
    "profile": [],
    "passive": False,
    "host_policy": "",
}
_CONTROL: dict[str, Any] = {
    "kind": "CONTROL_SEQUENCE_START",
    "int32_false_true": [],
    "fp32_false_true": [],
    "bool_false_true": [],
    "data_type": "TYPE_INVALID",
}
_STATE: dict[str, Any] = {
    "input_name": "",
    "output_name": "",
    "data_type": "TYPE_INVALID",
    "dims": [],
    "initial_state": [{"data_type": "TYPE_INVALID", "dims": [], "name": ""}],
    "use_same_buffer_for_input_output": False,
    "use_growable_memory": False,
}

MODEL_CONFIG: dict[str, Any] = {
    "name": "",
    "platform": "",
    "backend": "",
    "runtime": "",
    "max_batch_size": 0,
    "input": [_INPUT],
    "output": [_OUTPUT],
    "batch_input": [],
    "batch_output": [],
    "instance_group": [_INSTANCE_GROUP],
    "default_model_filename": "",
    "cc_model_filenames": {},
    "metric_tags": {},
    "parameters": {EACH: {"string_value": ""}},
    "model_warmup": [
        {
            "name": "",
            "batch_size": 0,
            "inputs": {EACH: {"data_type": "TYPE_INVALID", "dims": []}},
            "count": 0,
        }
    ],
    "optimization": {
        "priority": "PRIORITY_DEFAULT",
        "gather_kernel_buffer_threshold": 0,
        "eager_batching": False,
    },
    "dynamic_batching": {
        "preferred_batch_size": [],
        "max_queue_delay_microseconds": 0,
        "preserve_ordering": False,
        "priority_levels": 0,
        "default_priority_level": 0,
        "priority_queue_policy": {EACH: _QUEUE_POLICY},
        "default_queue_policy": _QUEUE_POLICY,
    },
    "sequence_batching": {
        "max_sequence_idle_microseconds": 0,
        "control_input": [{"name": "", "control": [_CONTROL]}],
        "state": [_STATE],
        "iterative_sequence": False,
        "direct": {"max_queue_delay_microseconds": 0, "minimum_slot_utilization": 0.0},
        "oldest": {
            "max_candidate_sequences": 0,
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
        },
    },
    "model_transaction_policy": {"decoupled": False},
    "response_cache": {"enable": False},
}
"""A template. A list with a template is a list of messages, a dict with `EACH` a map of them, any
other dict that is not empty a message, which has no default. Everything else is the default itself.
"""


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the fields that it leaves out. Empty stays empty."""
    return _filled(config, MODEL_CONFIG) if config else {}


def without_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the fields that have their default. `with_defaults` brings
    them back.
    """
    return _pruned(config, MODEL_CONFIG)


def _filled(given: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        key: _default(of_field)
        for key, of_field in template.items()
        if key not in given and not _is_message(of_field)
    }
    return {key: _of_each(value, template.get(key), _filled) for key, value in given.items()} | (
        defaults
    )


def _pruned(given: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _of_each(value, template.get(key), _pruned)
        for key, value in given.items()
        if key not in template or _is_message(template[key]) or value != _default(template[key])
    }


def _of_each(value: Any, template: Any, change: Any) -> Any:
    """Change the messages in the value of a field."""
    if isinstance(template, list) and template and isinstance(value, list | tuple):
        return [change(each, template[0]) for each in value]
    if isinstance(template, dict) and template and isinstance(value, Mapping):
        if EACH in template:
            return {key: change(each, template[EACH]) for key, each in value.items()}
        return change(value, template)
    return value


def _is_message(template: Any) -> bool:
    return isinstance(template, dict) and bool(template) and EACH not in template


def _default(template: Any) -> Any:
    return [] if isinstance(template, list) else {} if isinstance(template, dict) else template
