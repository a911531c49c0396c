"""Triton's datatypes as NumPy has them.

BF16 has no dtype in NumPy. In items it is float32, as everywhere in Penstock; a model gets it by
DLPack.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from .error import TritonModelException


class DataType(IntEnum):
    """Triton's datatypes, with the numbers of `TRITONSERVER_DataType` and of model configs."""

    INVALID = 0
    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    FP32 = 11
    FP64 = 12
    BYTES = 13
    BF16 = 14


TYPE_OF: dict[DataType, type[np.generic]] = {
    DataType.BOOL: np.bool_,
    DataType.UINT8: np.uint8,
    DataType.UINT16: np.uint16,
    DataType.UINT32: np.uint32,
    DataType.UINT64: np.uint64,
    DataType.INT8: np.int8,
    DataType.INT16: np.int16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.FP16: np.float16,
    DataType.FP32: np.float32,
    DataType.FP64: np.float64,
    DataType.BYTES: np.object_,
}
"""The scalar type of NumPy for each datatype that it has."""

_BY_DTYPE = {np.dtype(kind): datatype for datatype, kind in TYPE_OF.items()}

TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    **{
        f"TYPE_{datatype.name}": kind
        for datatype, kind in TYPE_OF.items()
        if datatype not in {DataType.BOOL, DataType.BYTES}
    },
    "TYPE_BOOL": bool,
    "TYPE_STRING": np.object_,
}


def datatype_of(dtype: np.dtype[Any]) -> DataType:
    """Return the datatype of arrays of this dtype.

    Raises TritonModelException for a dtype that Triton does not have.
    """
    datatype = _BY_DTYPE.get(dtype.newbyteorder("=")) if dtype.kind != "S" else DataType.BYTES
    if datatype is None:
        raise TritonModelException(
            f"NumPy dtype is not supported. Found {dtype}"
            + (": use dtype=object for texts" if dtype.kind in "UT" else "")
        )
    return datatype


def datatype_named(name: str) -> DataType:
    """Return the datatype that a model config names: `TYPE_FP32`, or `FP32`; INVALID for none."""
    short = name.removeprefix("TYPE_")
    return DataType.__members__.get("BYTES" if short == "STRING" else short, DataType.INVALID)


def triton_to_numpy_type(data_type: int) -> type[np.generic] | None:
    """Return NumPy's type for a number of `DataType`; None if it has none."""
    return TYPE_OF[DataType(data_type)] if data_type in set(TYPE_OF) else None


def numpy_to_triton_type(data_type: Any) -> int | None:
    """Return the number of `DataType` for a type or dtype of NumPy; None if Triton has none."""
    if data_type == np.bytes_:
        return int(DataType.BYTES)
    return next((int(datatype) for datatype, kind in TYPE_OF.items() if data_type == kind), None)


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """Return NumPy's type for a name such as `TYPE_FP32`. Raises KeyError for one it has not."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 values that are bfloat16, as uint16."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bfloat16(halves: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 numbers that are given as uint16."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
