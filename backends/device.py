"""The accelerator's half of an executor: its stream, its pinned and device buffers, its graphs. Torch and TensorRT engines share it.

All of it belongs to one executor's thread. On the CPU the same calls do the same work without stream, pinning or graphs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from .base import Backend
from .errors import BackendError, DeviceError
from .item import Item

logger = logging.getLogger("penstock.device")

_capturing = threading.Lock()
"""One capture at a time: each empties the allocator's cache first."""

MAX_SHAPES = 4
"""Batch buffers kept for an input whose height and width vary; each may be megabytes."""


def choose_device(wanted: str = "") -> torch.device:
    """The device that `cpu`, `cuda`, `cuda:1` or `1` names; "": the first GPU where there is one. BackendError where it is not there."""
    if not wanted:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device("cuda", int(wanted)) if wanted.isdecimal() else torch.device(wanted)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = torch.device("cuda", device.index or 0)
        if device.index is not None and device.index >= count:
            raise BackendError(f"device {wanted!r}: torch sees {count} GPUs here")
    return device


def buckets(largest: int) -> list[int]:
    """The batch sizes that are prepared: 1, 2, 4, 8 ... and the largest. A batch is padded up to the next of them."""
    sizes = []
    size = 1
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]


_streams = threading.local()
"""`_streams.of[device]`: this thread's stream there."""


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """This thread's own stream on the device, made its current one; None on the CPU."""
    if device.type != "cuda":
        return None
    streams: dict[torch.device, torch.cuda.Stream] = _streams.__dict__.setdefault("of", {})
    if device not in streams:
        torch.cuda.set_device(device)
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(streams[device])
    return streams[device]


def wait_after(backend: Backend) -> None:
    """Have `forward` return when the device is through with what it leaves there: readers are on other threads, with other streams."""
    forward = backend.forward
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def forward_and_wait(batch: list[Item]) -> None:
        forward(batch)
        if any(isinstance(value, torch.Tensor) and value.is_cuda for item in batch for value in item.values()):
            done.record()
            done.synchronize()

    backend.forward = forward_and_wait  # type: ignore[method-assign]


class Buffer:
    """Where the batch of one input is put together: `host` (pinned where there is a GPU) and `device`, both rows x shape.

    On the CPU both are one.
    """

    __slots__ = ("device", "host")

    def __init__(self, rows: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.host = torch.zeros((rows, *shape), dtype=dtype, pin_memory=on_gpu)
        self.device = torch.zeros((rows, *shape), dtype=dtype, device=device) if on_gpu else self.host


class DeviceHalf:
    """Made on the executor's thread, whose current stream it becomes. `who` is for messages: the node and the engine."""

    def __init__(self, device: torch.device, who: str) -> None:
        self.device = device
        self.who = who
        self.stream: torch.cuda.Stream | None = None
        self._buffers: dict[tuple[int, tuple[int, ...], torch.dtype], Buffer] = {}
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]] = {}
        if device.type == "cuda":
            with self.errors("taking the device"):
                self.stream = own_stream(device)
                self._pool = torch.cuda.graph_pool_handle()
                # blocking: the thread sleeps until the event, instead of asking for it again and again
                self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    @property
    def on_gpu(self) -> bool:
        return self.stream is not None

    def close(self) -> None:
        """Give the memory back."""
        self._graphs.clear()
        self._buffers.clear()
        if self.on_gpu:
            with suppress(RuntimeError):  # a device that is gone has nothing to give
                torch.cuda.synchronize(self.device)
                torch.cuda.empty_cache()

    # a batch's way

    def assemble(self, index: int, parts: Sequence[torch.Tensor], rows: int, capacity: int, dtype: torch.dtype) -> torch.Tensor:
        """The batch of input `index` on the device, rows x shape: `parts` (on the host or any device, n x shape) one after another, zeros
        behind them up to `rows`. One copy to the device; kept until the next batch.
        """
        shape = tuple(parts[0].shape[1:])
        key = index, shape, dtype
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer.host) < rows:
            if buffer is None and sum(other[0] == index for other in self._buffers) >= MAX_SHAPES and not self._graphs:
                self._buffers.clear()
            buffer = self._buffers[key] = Buffer(max(rows, capacity), shape, dtype, self.device)
        start = 0
        if self.stream is not None and any(part.is_cuda for part in parts):
            for part in parts:
                if part.is_cuda:
                    part.record_stream(self.stream)  # its allocator must not hand it out before this stream has read it
                buffer.device[start : start + len(part)].copy_(part, non_blocking=True)
                start += len(part)
            buffer.device[start:rows].zero_()
            return buffer.device[:rows]
        for part in parts:
            buffer.host[start : start + len(part)].copy_(part)
            start += len(part)
        buffer.host[start:rows].zero_()
        if self.stream is not None:
            buffer.device[:rows].copy_(buffer.host[:rows], non_blocking=True)
        return buffer.device[:rows]

    def fetch(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs on the host; the thread sleeps until the device is through with all that was asked of it."""
        if self.stream is None:
            return list(outputs)
        with self.errors("running a batch"):
            copies = [torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in outputs]
            for copy, output in zip(copies, outputs, strict=True):
                copy.copy_(output, non_blocking=True)
            self.synchronize()
        return copies

    def synchronize(self) -> None:
        """Wait until the stream is through; the GIL is free meanwhile."""
        if self.stream is not None:
            self._done.record(self.stream)
            self._done.synchronize()

    # graphs

    def capture(self, key: Any, run: Callable[[], list[torch.Tensor]]) -> bool:
        """Keep the work of `run` (on buffers that stay where they are) as a graph under `key`. False where it can't be captured."""
        if self.stream is None:
            return False
        with _capturing:
            for _ in range(2):  # libraries choose their algorithms, and allocate, before
                run()
            self.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
                    outputs = run()
            except (RuntimeError, NotImplementedError) as error:
                logger.warning("%s: runs without CUDA graphs, its work can't be captured: %s", self.who, str(error).splitlines()[0])
                torch.cuda.set_stream(self.stream)
                self.synchronize()
                return False
            torch.cuda.set_stream(self.stream)
        self._graphs[key] = graph, outputs
        return True

    def replay(self, key: Any) -> list[torch.Tensor] | None:
        """Run the graph of that key; its outputs hold until the next one runs. None where there is none."""
        found = self._graphs.get(key)
        if found is None:
            return None
        found[0].replay()
        return found[1]

    # failures

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """What the device reports, in words: MemoryError with what was asked for and what is free; DeviceError for what it won't recover
        from. Both fail the whole batch and are not tried again.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{self.who}: out of memory on {self.device} while {doing}: {self._free()}; torch says: {error}") from error
        except RuntimeError as error:
            if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in str(error):
                raise DeviceError(f"{self.who}: {self.device} failed while {doing}: {str(error).splitlines()[0]}") from error
            raise

    def _free(self) -> str:
        try:
            free, total = torch.cuda.mem_get_info(self.device)
        except RuntimeError:
            return "how much is free can't be read"
        return f"{free / 2**20:,.0f} MiB of {total / 2**20:,.0f} are free"
