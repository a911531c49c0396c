"""CUDA shared memory: regions on a GPU that clients register by CUDA IPC handles.

A client allocates memory on a GPU of this machine and registers its handle. An input is copied when
its request is read: to a tensor on the same GPU if the pipeline's first node works there, else to
the host. Outputs are copied from the host to the region. So a client that writes to its memory, or
ends, changes no request that has been read.

Python's own reference counts close the memory, as they do for regions in system memory. Registering
requires the same setting and token.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple

from penstock.backends.errors import InvalidRequest
from penstock.backends.gpu.ipc import HANDLE_BYTES, DriverError, ImportedMemory, NoGpuError
from penstock.backends.lazy_numpy import np

from ..http.helper_thread import on_helper_thread
from ..http.inputs.declared import Tensor
from ..http.json_text import check_unsigned
from .call import ProtocolCall, Route
from .models.model import Model
from .shared_memory import GROUP, Kind, SharedMemory, Slice, check_registering

ROOT = "/v2/cudasharedmemory"


class CudaRegion(NamedTuple):
    """A registered region: `byte_size` bytes on a GPU."""

    byte_size: int
    memory: ImportedMemory

    @property
    def kind(self) -> Kind:
        return "cuda"

    def describe(self, name: str) -> dict[str, Any]:
        """Return the region's status in the protocol's form."""
        return {"name": name, "device_id": self.memory.device, "byte_size": self.byte_size}

    def slice(self, name: str, offset: int, size: int) -> CudaSlice:
        return CudaSlice(name, self, offset, size)


class CudaSlice:
    """Some bytes of a region for one request. Its memory stays open until `release`."""

    __slots__ = ("_memory", "_name", "_start", "size")

    def __init__(self, name: str, region: CudaRegion, offset: int, size: int) -> None:
        self.size = size
        self._name = name
        self._memory = region.memory
        self._start = offset

    @property
    def copied(self) -> int:
        """The bytes that reading copies."""
        return self.size

    def read(self) -> memoryview:
        """Return a copy of the bytes on the host, aligned for every datatype."""
        return self._memory.read(self._start, self.size)

    def tensor(self, dtype: str, shape: Sequence[int]) -> Any:
        """Return a copy of the bytes as a tensor on their GPU. `dtype` is the name of torch's.

        Raises MemoryError if the GPU has no memory for it.
        """
        memory = self._memory  # held until the end: a client that leaves releases the slice
        import torch

        from penstock.backends.gpu.device import device_errors

        device = torch.device("cuda", memory.device)
        with device_errors(f"shared memory region '{self._name}'", device, "reading an input"):
            return memory.tensor(self._start, self.size, dtype, shape)

    def write(self, content: memoryview) -> None:
        """Write unsigned bytes, no more than `size`, to the beginning of the slice."""
        memory = self._memory  # as above
        memory.write(self._start, content)

    def release(self) -> None:
        """Let go of the memory. The slice can't be read or written any more."""
        del self._memory


def tensor_of(
    borrowed: Slice, expected: Tensor, model: Model, dtype: np.dtype[Any], shape: Sequence[int]
) -> Any:
    """Return a slice as a tensor on its GPU, or None if the input has to come to the host.

    It stays there if the model's first node works on GPUs and takes these elements as they are.
    """
    if (
        not isinstance(borrowed, CudaSlice)
        or not borrowed.size
        or expected.kind != "tensor"
        or (expected.datatype is not None and expected.datatype.dtype != dtype)
        or not model.begins_on_gpu
    ):
        return None
    return borrowed.tensor(dtype.name, shape)


def cuda_memory_routes(memory: SharedMemory) -> tuple[Route, ...]:
    """Return the routes of CUDA shared memory.

    Every client may ask for the status; registering and unregistering require the admin token.
    """

    async def status(call: ProtocolCall) -> list[dict[str, Any]]:
        return memory.status(call.names.get("region", ""), "cuda")

    async def register(call: ProtocolCall) -> None:
        check_registering(call)
        arguments = await call.json()
        name = call.names["region"]
        failed = f"failed to register shared memory region '{name}'"
        handle = _handle(arguments, failed)
        size = check_unsigned(arguments.get("byte_size"), f"{failed}: 'byte_size'")
        device = check_unsigned(arguments.get("device_id"), f"{failed}: 'device_id'")
        memory.check_new(name)
        if not size:
            raise InvalidRequest(f"{failed}: invalid args: 'byte_size' is 0")
        # The driver may have to start, which takes a second.
        opened = await on_helper_thread(_open, name, handle, device, size)
        memory.add(name, CudaRegion(size, opened))

    async def unregister(call: ProtocolCall) -> None:
        check_registering(call)
        memory.unregister(call.names.get("region", ""), "cuda")

    where = f"{ROOT}[/region/{{region}}]"
    return (
        Route("GET", f"{where}/status", GROUP, status),
        Route("POST", f"{ROOT}/region/{{region}}/register", GROUP, register),
        Route("POST", f"{where}/unregister", GROUP, unregister),
    )


def _handle(arguments: dict[str, Any], failed: str) -> bytes:
    """Read the handle of a request to register a region. Raises `InvalidRequest`."""
    given = arguments.get("raw_handle")
    if not isinstance(given, dict) or not isinstance(given.get("b64"), str):
        raise InvalidRequest(
            f"{failed}: Shared memory register request has no 'raw_handle' field: expected "
            '{"b64": …}, the base64 of a cudaIpcMemHandle_t'
        )
    try:
        handle = binascii.a2b_base64(given["b64"].encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        handle = b""
    if len(handle) != HANDLE_BYTES:
        raise InvalidRequest(
            f"{failed}: 'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t, of "
            f"{HANDLE_BYTES} bytes"
        )
    return handle


def _open(name: str, handle: bytes, device: int, size: int) -> ImportedMemory:
    """Open a region, whose name is for errors. Raises `InvalidRequest`."""
    failed = f"failed to register shared memory region '{name}'"
    try:
        return ImportedMemory(handle, device, size)
    except NoGpuError as error:
        raise InvalidRequest(
            f"failed to register CUDA shared memory region: '{name}', GPUs not supported: {error}"
        ) from None
    except DriverError as error:
        raise InvalidRequest(f"{failed}: failed to open CUDA IPC handle: {error}") from None
    except InvalidRequest as error:
        raise InvalidRequest(f"{failed}: invalid args: {error}") from None
