"""Memory that another process has allocated on a GPU, opened by its CUDA IPC handle.

This calls NVIDIA's driver library, which every machine with a GPU has. So neither torch nor the
toolkit is needed, except to make tensors. Copies are finished when a function returns; they run
without the GIL, on the legacy default stream of the device, and wait for no other stream.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, InvalidRequest
from ..lazy_numpy import np

if TYPE_CHECKING:
    import torch

HANDLE_BYTES = 64
"""The size of a cudaIpcMemHandle_t, which is the driver's CUipcMemHandle."""

_LAZY_ENABLE_PEER_ACCESS = 1
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_LEGACY_STREAM = None


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", c_char * HANDLE_BYTES),)


_ADDRESS = c_uint64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetPCIBusId": (c_char_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuIpcOpenMemHandle_v2": (POINTER(_ADDRESS), _Handle, c_uint),
    "cuIpcCloseMemHandle": (_ADDRESS,),
    "cuMemGetAddressRange_v2": (POINTER(_ADDRESS), POINTER(c_size_t), _ADDRESS),
    "cuPointerGetAttribute": (c_void_p, c_int, _ADDRESS),
    "cuMemcpyDtoH_v2": (c_void_p, _ADDRESS, c_size_t),
    "cuMemcpyHtoD_v2": (_ADDRESS, c_void_p, c_size_t),
    "cuMemcpyDtoD_v2": (_ADDRESS, _ADDRESS, c_size_t),
    "cuStreamSynchronize": (c_void_p,),
}


class NoGpuError(BackendError):
    """Raised where there is no GPU, or no driver for one."""


class DriverError(BackendError):
    """Raised for a call of the driver that failed."""


class _Driver:
    """The driver's functions. They raise `DriverError` with the driver's own text."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise NoGpuError("this machine has no CUDA driver (libcuda.so.1)") from None
        self._functions: dict[str, Any] = {}
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        try:
            self.call("cuInit", 0)
        except DriverError as error:
            raise NoGpuError(f"the CUDA driver does not start: {error}") from None
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        self.devices = count.value
        """How many GPUs this process sees."""

    def call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            text = c_char_p()
            self._functions["cuGetErrorString"](code, byref(text))
            raise DriverError(
                text.value.decode() if text.value is not None else f"{name} returned {code}"
            )

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make the context that torch and all others use on a device that of this thread."""
        self.call("cuCtxPushCurrent_v2", _context(device))
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", byref(c_void_p()))


@cache
def _driver() -> _Driver:
    return _Driver()


def gpu_count() -> int:
    """Return how many GPUs this process sees."""
    try:
        return _driver().devices
    except NoGpuError:
        return 0


def pci_bus_id(device: int) -> bytes:
    """Return where a GPU of this process is, as in `0000:3b:00.0`.

    Raises NoGpuError if there is no such GPU.
    """
    number, where = c_int(), ctypes.create_string_buffer(32)
    try:
        _driver().call("cuDeviceGet", byref(number), device)
        _driver().call("cuDeviceGetPCIBusId", where, len(where), number.value)
    except DriverError as error:
        raise NoGpuError(f"cuda:{device}: {error}") from None
    return where.value


@cache
def _context(device: int) -> c_void_p:
    """Return the primary context of a device. The process keeps it, as torch does."""
    number, context = c_int(), c_void_p()
    _driver().call("cuDeviceGet", byref(number), device)
    _driver().call("cuDevicePrimaryCtxRetain", byref(context), number)
    return context


class ImportedMemory:
    """Memory of another process on a GPU, closed when nothing refers to it any more."""

    __slots__ = ("_address", "device")

    def __init__(self, handle: bytes, device: int, size: int) -> None:
        """Open `size` bytes of the memory that a handle of `HANDLE_BYTES` bytes stands for.

        Raises `NoGpuError`, `InvalidRequest` for a device that is not there or is not that of the
        memory and for memory that is smaller, and `DriverError` for a handle that can't be opened.
        """
        driver = _driver()
        if not 0 <= device < driver.devices:
            raise InvalidRequest(f"device {device} is not one of the {driver.devices} GPUs here")
        self.device = device
        address, base, whole, ordinal = _ADDRESS(), _ADDRESS(), c_size_t(), c_int()
        with driver.on(device):
            driver.call(
                "cuIpcOpenMemHandle_v2",
                byref(address),
                _Handle.from_buffer_copy(handle),
                _LAZY_ENABLE_PEER_ACCESS,
            )
            self._address = address.value  # from here on it is closed whatever happens
            driver.call("cuMemGetAddressRange_v2", byref(base), byref(whole), address)
            driver.call("cuPointerGetAttribute", byref(ordinal), _DEVICE_ORDINAL, address)
        if ordinal.value != device:
            raise InvalidRequest(f"the memory is on device {ordinal.value}, not on {device}")
        available = base.value + whole.value - address.value
        if size > available:
            raise InvalidRequest(f"the memory has {available} bytes, not {size}")

    def __del__(self) -> None:
        address = getattr(self, "_address", None)
        if address is None:
            return
        # A driver that fails here, as at the end of the process, has closed it.
        with contextlib.suppress(DriverError), _driver().on(self.device):
            _driver().call("cuIpcCloseMemHandle", address)

    def read(self, start: int, size: int) -> memoryview:
        """Copy bytes to the host, aligned for every datatype."""
        content: memoryview = np.empty(size, np.uint8).data
        if size:
            with _driver().on(self.device):
                _driver().call("cuMemcpyDtoH_v2", _pointer(content), self._address + start, size)
        return content

    def write(self, start: int, content: memoryview) -> None:
        """Copy unsigned bytes from the host."""
        if len(content):
            with _driver().on(self.device):
                _driver().call(
                    "cuMemcpyHtoD_v2", self._address + start, _pointer(content), len(content)
                )

    def tensor(self, start: int, size: int, dtype: str, shape: Sequence[int]) -> torch.Tensor:
        """Copy bytes to a new tensor on the same device. `dtype` is the name of torch's.

        Raises RuntimeError for a shape that no tensor can have.
        """
        import torch

        made = torch.empty(size, dtype=torch.uint8, device=f"cuda:{self.device}")
        tensor = made.view(getattr(torch, dtype)).reshape(tuple(shape))
        if size:
            with _driver().on(self.device):
                _driver().call("cuMemcpyDtoD_v2", made.data_ptr(), self._address + start, size)
                _driver().call("cuStreamSynchronize", _LEGACY_STREAM)
        return tensor


def _pointer(content: memoryview) -> int:
    """Return the address of a contiguous buffer of unsigned bytes."""
    address: int = np.frombuffer(content, np.uint8).ctypes.data
    return address
