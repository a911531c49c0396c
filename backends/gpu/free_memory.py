"""The free memory of a GPU, read without taking a part of it.

torch and the driver say it only to a process that has a context on the GPU, which itself takes some
hundred MiB there. NVIDIA's management library (NVML), a part of the driver, needs none.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_ulonglong, c_void_p
from functools import cache
from typing import Any

from .ipc import NoGpuError, pci_bus_id


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def free_memory(device: str) -> int | None:
    """Return the free bytes of `cuda:N`, as this process counts. None: it can't be told."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    library = _library()
    if library is None:
        return None
    try:
        where = pci_bus_id(int(index or 0))
    except NoGpuError:
        return None
    handle, memory = c_void_p(), _Memory()
    if library.nvmlDeviceGetHandleByPciBusId_v2(where, byref(handle)):
        return None
    if library.nvmlDeviceGetMemoryInfo(handle, byref(memory)):
        return None
    return int(memory.free)


@cache
def _library() -> Any:
    """Open the library once. None: it is not here, or does not start."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        library.nvmlDeviceGetHandleByPciBusId_v2.argtypes = [c_char_p, POINTER(c_void_p)]
        library.nvmlDeviceGetMemoryInfo.argtypes = [c_void_p, POINTER(_Memory)]
        library.nvmlInit_v2.restype = c_int
    except (OSError, AttributeError):
        return None
    return None if library.nvmlInit_v2() else library
