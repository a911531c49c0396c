"""Triton's ModelConfig as protobuf messages, which Triton's client brings along."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.backends.errors import ConfigError, Problem

MODULE = "tritonclient.grpc.model_config_pb2"

ModelConfig = Any
"""A `ModelConfig` message. protobuf makes the classes at import, so no type checker knows them."""


_loading = threading.Lock()


def model_config_pb2() -> Any:
    """Return the module of the messages. Raises `ConfigError` if it isn't installed.

    It is read from its file: its package imports grpc, which serving a repository doesn't need.
    """
    with _loading:  # each load would make classes of its own
        return _load()


@functools.cache
def _load() -> Any:
    if MODULE in sys.modules:
        return sys.modules[MODULE]
    try:
        package = importlib.util.find_spec("tritonclient")
        if package is None or package.submodule_search_locations is None:
            raise ImportError("there is no tritonclient")
        file = Path(next(iter(package.submodule_search_locations)), "grpc", "model_config_pb2.py")
        return _module_of(file)
    except (ImportError, OSError) as error:
        message = (
            f"Triton's model repositories need tritonclient and protobuf, which can't be "
            f"imported ({error}): pip install 'penstock-serve[triton]'"
        )
        raise ConfigError([Problem(message)]) from error


def _module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("penstock_model_config_pb2", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def new_config() -> ModelConfig:
    """Return an empty `ModelConfig`."""
    return model_config_pb2().ModelConfig()


def as_json(message: Any) -> dict[str, Any]:
    """Return a message as Triton prints it: names of fields as in the file, scalar fields at their
    default too, 64-bit integers as numbers.
    """
    from google.protobuf import json_format

    text = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _with_numbers(text, message.DESCRIPTOR)


def _with_numbers(value: dict[str, Any], descriptor: Any) -> dict[str, Any]:
    """Turn the texts that protobuf's JSON has for 64-bit integers into numbers, and put the fields
    in the order of their declaration.
    """
    return {
        field.name: _with_number(value[field.name], field)
        for field in descriptor.fields
        if field.name in value
    }


def _with_number(value: Any, field: Any) -> Any:
    if isinstance(value, list):
        return [_with_number(member, field) for member in value]
    if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return int(value)
    if field.message_type is None:
        return value
    if field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {key: _with_number(member, inner) for key, member in value.items()}
    return _with_numbers(value, field.message_type)
