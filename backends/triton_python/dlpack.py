"""DLPack: tensors that other libraries made, without a copy.

NumPy reads and writes most of them. It has no bfloat16 and no memory of a GPU: those need torch,
and so does a model that uses them.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from .error import TritonModelException

CPU, CUDA, CUDA_HOST = 1, 2, 3
"""`DLDeviceType` of dlpack.h."""

_BFLOAT_CODE = 4
_NAME = b"dltensor"


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Described(NamedTuple):
    """The device of a capsule's tensor, and whether NumPy has its datatype."""

    device: tuple[int, int]
    is_bfloat: bool
    is_contiguous: bool


def is_capsule(value: Any) -> bool:
    """Return whether this is a PyCapsule."""
    return type(value).__name__ == "PyCapsule"


def describe(capsule: Any) -> Described:
    """Look at a capsule without using it up.

    Raises TritonModelException if it isn't one of DLPack, or was used already.
    """
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    try:
        address = pointer(capsule, _NAME)
    except ValueError as error:
        raise TritonModelException(
            f"the capsule is no tensor of DLPack, or was used before: {error}"
        ) from error
    tensor = _DLTensor.from_address(address)
    shape = tensor.shape[: tensor.ndim]
    return Described(
        (tensor.device_type, tensor.device_id),
        tensor.code == _BFLOAT_CODE,
        not tensor.strides or _is_c_order(shape, tensor.strides[: tensor.ndim]),
    )


def _is_c_order(shape: list[int], strides: list[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


class _Exporter:
    """Offers a capsule as NumPy and torch want it: by `__dlpack__`."""

    def __init__(self, capsule: Any, device: tuple[int, int]) -> None:
        self._capsule = capsule
        self._device = device

    def __dlpack__(self, **_: Any) -> Any:  # of NumPy's array API, with any options
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def array_of(capsule: Any, device: tuple[int, int]) -> np.ndarray:
    """Return the array of a capsule with memory of the CPU, which uses the capsule up."""
    return np.from_dlpack(_Exporter(capsule, (CPU, device[1])))


def torch_tensor_of(capsule: Any) -> Any:
    """Return the tensor of torch of a capsule, which uses the capsule up."""
    return _torch().from_dlpack(capsule)


def bfloat16_tensor(halves: np.ndarray) -> Any:
    """Return a tensor of torch of bfloat16 numbers that are given as uint16."""
    torch = _torch()
    return torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16)


def bfloat16_halves(tensor: Any) -> np.ndarray:
    """Return the bfloat16 numbers of a tensor of torch as uint16."""
    halves: np.ndarray = tensor.detach().cpu().contiguous().view(_torch().int16).numpy()
    return halves.view(np.uint16)


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise TritonModelException(
            "NumPy has neither bfloat16 nor memory of a GPU: such tensors need torch, "
            "pip install 'penstock-serve[torch]'"
        ) from error
    return torch
