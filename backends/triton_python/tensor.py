"""`Tensor`: a named array of a request or a response."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dlpack
from .datatypes import TYPE_OF, DataType, datatype_of, from_bfloat16, to_bfloat16
from .error import TritonModelException
from .strings import as_text, element_bytes


class Tensor:
    """A named tensor: an array of NumPy, or a tensor of torch on a GPU.

    Of BF16 it has the numbers' halves as uint16, as NumPy has no dtype for them.
    """

    __slots__ = ("_array", "_datatype", "_name", "_on_gpu")

    def __init__(self, name: str, numpy_array: np.ndarray) -> None:
        """Raises TritonModelException for an empty name and for a dtype that Triton has not."""
        name = as_text(name, "Tensor: name")
        if not isinstance(numpy_array, np.ndarray | np.generic):
            raise TypeError(
                f"Tensor: expected an array of NumPy, found {type(numpy_array).__name__}"
            )
        array = np.asarray(numpy_array)
        datatype = datatype_of(array.dtype)
        native = array.dtype if datatype is DataType.BYTES else TYPE_OF[datatype]
        self._set(name, datatype, np.asarray(array, native, order="C"))

    def _set(
        self, name: str, datatype: DataType, array: np.ndarray | None, on_gpu: Any = None
    ) -> None:
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        self._name = name
        self._datatype = datatype
        self._array = array
        self._on_gpu = on_gpu

    def __repr__(self) -> str:
        return f"<Tensor {self._name} {self._datatype.name} {self.shape()}>"

    @classmethod
    def of_item(cls, name: str, datatype: DataType, value: Any) -> Tensor:
        """Make a tensor of what an item has: an array, a tensor of torch, or what NumPy makes one
        of. Raises TypeError or ValueError if it is not one of this datatype.
        """
        tensor = cls.__new__(cls)
        if getattr(value, "is_cuda", False):
            tensor._set(name, datatype, None, value.detach().contiguous())
            return tensor
        if hasattr(value, "detach"):  # a tensor of torch
            value = value.detach().cpu()
            value = value.float().numpy() if str(value.dtype) == "torch.bfloat16" else value.numpy()
        if datatype is DataType.BF16:
            tensor._set(name, datatype, to_bfloat16(_cast(value, np.float32, name)))
        elif datatype is DataType.BYTES:
            tensor._set(name, datatype, _strings(value))
        else:
            tensor._set(name, datatype, _cast(value, TYPE_OF[datatype], name))
        return tensor

    def item_value(self) -> np.ndarray:
        """Return the array for an item, in memory of the CPU: strings are bytes, BF16 is float32.

        It is a view of the tensor's memory where that is possible.
        """
        if self._datatype is DataType.BF16:
            halves = dlpack.bfloat16_halves(self._on_gpu) if self._array is None else self._array
            return from_bfloat16(halves)
        if self._array is None:
            on_cpu: np.ndarray = self._on_gpu.detach().cpu().numpy()
            return on_cpu
        return _strings(self._array) if self._datatype is DataType.BYTES else self._array

    def name(self) -> str:
        """Return the name."""
        return self._name

    def shape(self) -> list[int]:
        """Return the sizes of all dimensions."""
        return list((self._on_gpu if self._array is None else self._array).shape)

    def triton_dtype(self) -> DataType:
        """Return the datatype, with Triton's number."""
        return self._datatype

    def is_cpu(self) -> bool:
        """Return whether it is in memory of the CPU."""
        return self._array is not None

    def as_numpy(self) -> np.ndarray:
        """Return the array. Raises TritonModelException for BF16 and for memory of a GPU."""
        if self._array is None:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        if self._datatype is DataType.BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and "
                "from_dlpack() instead."
            )
        return self._array

    def to_dlpack(self) -> Any:
        """Return a capsule of DLPack. Raises TritonModelException for strings."""
        return self.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        if self._datatype is DataType.BYTES:
            raise TritonModelException("DLPack does not have support for string tensors.")
        if self._array is None:
            return self._on_gpu.__dlpack__(stream=stream)
        if self._datatype is DataType.BF16:
            return dlpack.bfloat16_tensor(self._array).__dlpack__()
        writable = self._array if self._array.flags.writeable else self._array.copy()
        return writable.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        if self._array is None:
            device, number = self._on_gpu.__dlpack_device__()
            return int(device), number
        return dlpack.CPU, 0

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """Make a tensor of a capsule, or of what has `__dlpack__`, without a copy.

        Raises TritonModelException if it is not contiguous or not of a device that Triton has.
        """
        name = as_text(name, "Tensor: name")
        capsule = tensor
        if not dlpack.is_capsule(tensor):
            if not hasattr(tensor, "__dlpack__") or not hasattr(tensor, "__dlpack_device__"):
                raise TritonModelException(
                    "Provided tensor is not supported. Tensor must be a DLPack capsule or have "
                    "`__dlpack__` and `__dlpack_device__` attributes"
                )
            capsule = tensor.__dlpack__()
        described = dlpack.describe(capsule)
        device = described.device
        if device[0] not in {dlpack.CPU, dlpack.CUDA, dlpack.CUDA_HOST}:
            raise TritonModelException(
                f"DLDevice type {device[0]} is not support by Python backend."
            )
        if not described.is_contiguous:
            raise TritonModelException(
                "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored "
                "in C-Order are supported."
            )
        made = Tensor.__new__(Tensor)
        if device[0] == dlpack.CUDA:
            on_gpu = dlpack.torch_tensor_of(capsule)
            made._set(name, _datatype_of_torch(on_gpu), None, on_gpu)
        elif described.is_bfloat:
            halves = dlpack.bfloat16_halves(dlpack.torch_tensor_of(capsule))
            made._set(name, DataType.BF16, halves)
        else:
            array = dlpack.array_of(capsule, device)
            made._set(name, datatype_of(array.dtype), array)
        return made


def _datatype_of_torch(tensor: Any) -> DataType:
    name = str(tensor.dtype).removeprefix("torch.")
    return DataType.BF16 if name == "bfloat16" else datatype_of(np.dtype(name))


def _cast(value: Any, kind: type[np.generic], name: str) -> np.ndarray:
    """Return what an item has as an array of this type. Lists are converted, arrays are not."""
    if isinstance(value, np.ndarray) and value.dtype != kind:
        raise TypeError(f"input '{name}' has dtype {value.dtype}, expected {np.dtype(kind)}")
    return np.asarray(value, kind, order="C")


def _strings(value: Any) -> np.ndarray:
    """Return an array of bytes, in objects. The array itself if it is one already."""
    array = np.asarray(value, np.object_)
    flat = array.ravel().tolist()
    if all(type(element) is bytes for element in flat):
        return array
    strings = np.empty(len(flat), np.object_)
    strings[:] = [element_bytes(element) for element in flat]
    return strings.reshape(array.shape)
