"""Memory for outputs whose shape depends on the data."""

from __future__ import annotations

from typing import Any

import torch

from .library import log


def make_allocator(trt: Any, device: torch.device) -> Any:
    """Make an `IOutputAllocator` on memory of torch, which grows with the largest output."""

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self._memory = torch.empty(0, dtype=torch.uint8, device=device)
            self._shape: tuple[int, ...] = ()

        def reallocate_output(
            self, tensor_name: str, memory: int, size: int, alignment: int
        ) -> int:
            """Return the address for an output of `size` bytes.

            TensorRT calls this during a run. No exception may pass through TensorRT, so 0 says that
            there is no memory.
            """
            if size > len(self._memory) or not len(self._memory):
                try:
                    self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=device)
                except RuntimeError as error:
                    log.error("output %s: no memory for %d bytes: %s", tensor_name, size, error)
                    return 0
            return self._memory.data_ptr()

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self._shape = tuple(shape)

        def tensor(self, dtype: torch.dtype) -> torch.Tensor:
            """Return what the last run wrote. The next run overwrites it."""
            count = 1
            for size in self._shape:
                count *= size
            return self._memory[: count * dtype.itemsize].view(dtype).reshape(self._shape)

    return OutputAllocator()
