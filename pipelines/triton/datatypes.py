"""Triton's data types under the protocol's names."""

from __future__ import annotations

from .messages import model_config_pb2


def datatype_name(data_type: int) -> str | None:
    """Return the protocol's name of a ModelConfig's `data_type` (`FP32`, `BYTES`); None for
    `TYPE_INVALID`.
    """
    name: str = model_config_pb2().DataType.Name(data_type).removeprefix("TYPE_")
    return None if name == "INVALID" else "BYTES" if name == "STRING" else name


def type_name(data_type: int) -> str:
    """Return `TYPE_FP32` for messages."""
    name: str = model_config_pb2().DataType.Name(data_type)
    return name
