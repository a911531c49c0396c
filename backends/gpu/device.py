"""The accelerator's half of an executor: its stream, its pinned and device buffers, its graphs.

Torch and TensorRT engines share it. All of it belongs to the thread of one executor. On the CPU the
same calls do the same work, without stream, pinning or graphs.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch

from .. import timeline
from ..errors import BackendError, DeviceError, PenstockError
from ..text import message_of
from .stream_spans import StreamSpans

logger = logging.getLogger("penstock.device")

_capturing = threading.Lock()
"""Held while a graph is captured: each capture empties the allocator's cache first."""

MAX_PASSING_BUFFERS = 4
"""Batch buffers kept for an input whose height and width vary. Each may take megabytes."""


def choose_device(wanted: str = "") -> torch.device:
    """Return the device that `cpu`, `cuda`, `cuda:1` or `1` names.

    "": the first GPU, or else the CPU.

    Raises BackendError for another name, and for a GPU that torch does not see.
    """
    if not wanted:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    name, _, index = ("cuda", "", wanted) if wanted.isdecimal() else wanted.partition(":")
    if name not in ("cpu", "cuda") or not (index or "0").isdecimal():
        raise BackendError(
            f"device {wanted!r}: expected cpu, cuda, or a GPU's number, as in cuda:1"
        )
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise BackendError(f"device {wanted!r}: torch sees {count} GPUs here")
    return torch.device("cuda", int(index or 0))


def buckets(largest: int) -> list[int]:
    """Return the batch sizes that are prepared: 1, 2, 4, 8 ... and `largest`.

    A batch is padded to the next of them.
    """
    sizes = []
    size = 1
    while size < largest:
        sizes.append(size)
        size *= 2
    return [*sizes, largest]


_streams = threading.local()
"""`_streams.of[device]`: the lease of this thread on that device."""

_choosing = threading.Lock()


class _Lease:
    """A thread's right to a stream.

    An object of our own, because weak references to torch's streams outlive them (seen with 2.11;
    the next garbage collection ends in a segmentation fault).
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream


_taken: WeakValueDictionary[tuple[torch.device, int], _Lease] = WeakValueDictionary()
"""The streams that threads hold, by the driver's handle. The end of a thread frees its own."""

STREAMS_PER_DEVICE = 32
"""torch hands out this many streams of a device in turn and then starts again, also with streams in
use.
"""


def own_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return this thread's own stream on the device, made its current one. None on the CPU."""
    if device.type != "cuda":
        return None
    leases: dict[torch.device, _Lease] = _streams.__dict__.setdefault("of", {})
    if device not in leases:
        torch.cuda.set_device(device)
        leases[device] = _unused_stream(device)
        torch.cuda.set_stream(leases[device].stream)
    return leases[device].stream


def _unused_stream(device: torch.device) -> _Lease:
    with _choosing:
        lease = _Lease(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
        for _ in range(STREAMS_PER_DEVICE):
            if (device, lease.stream.cuda_stream) not in _taken:
                _taken[device, lease.stream.cuda_stream] = lease
                return lease
            lease = _Lease(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    logger.warning(
        "%s: more than %d threads use it; this one shares a stream and captures no graphs",
        device,
        STREAMS_PER_DEVICE,
    )
    return lease


def _is_own(device: torch.device, stream: torch.cuda.Stream) -> bool:
    lease = _taken.get((device, stream.cuda_stream))
    return lease is not None and lease.stream is stream


class Buffer:
    """The memory in which the batch of one input is assembled.

    `host` (pinned if there is a GPU) and `device` are both rows × shape; on the CPU they are one.
    `kept`: a graph reads it.
    """

    __slots__ = ("device", "host", "kept")

    def __init__(
        self, rows: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> None:
        on_gpu = device.type == "cuda"
        self.host = torch.zeros((rows, *shape), dtype=dtype, pin_memory=on_gpu)
        self.device = (
            torch.zeros((rows, *shape), dtype=dtype, device=device) if on_gpu else self.host
        )
        self.kept = False


_lost: list[Any] = []
"""Objects on a failed device. They are never freed: torch ends the process if that fails."""


class DeviceHalf:
    """The device as one executor uses it. Create it on the executor's thread.

    Its stream becomes the current one of the thread. `owner` names the node and the engine, for
    messages.
    """

    def __init__(self, device: torch.device, owner: str) -> None:
        self.device = device
        self.owner = owner
        self.stream: torch.cuda.Stream | None = None
        self._spans: StreamSpans | None = None
        self._buffers: dict[tuple[int, tuple[int, ...], torch.dtype, int], Buffer] = {}
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]] = {}
        if device.type == "cuda":
            with self.errors("taking the device"):
                self.stream = own_stream(device)
                self._spans = StreamSpans(device, self.stream)
                self._pool: Any = torch.cuda.graph_pool_handle()  # None: a capture failed
                # blocking: the thread sleeps until the event instead of polling
                self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    @property
    def on_gpu(self) -> bool:
        return self.stream is not None

    def close(self, held: list[Any] | None = None) -> None:
        """Free the memory once the stream has finished.

        `held` is emptied: the caller's other objects on the device.
        """
        held = [] if held is None else held
        try:
            self.synchronize()
        except RuntimeError:
            _lost.append((self._graphs, self._buffers, list(held)))
            self._graphs, self._buffers = {}, {}
            held.clear()
            return
        with self.no_captures():  # libraries free memory by waiting for the whole device
            held.clear()
            self._graphs.clear()
            self._buffers.clear()
        self.clean()

    @contextmanager
    def no_captures(self) -> Iterator[None]:
        """Let no thread capture a graph during the block, which may wait for the whole device."""
        if not self.on_gpu:
            yield
            return
        with _capturing:
            yield

    def clean(self) -> None:
        """Give memory that torch keeps for later back to the device."""
        if self.on_gpu:
            with _capturing:  # a graph under capture uses memory that must stay
                try:
                    torch.cuda.empty_cache()
                except RuntimeError as error:
                    logger.warning(
                        "%s: torch keeps memory of the device: %s", self.owner, message_of(error)
                    )

    # one batch

    def assemble(
        self,
        index: int,
        tensors: Sequence[torch.Tensor],
        rows: int,
        capacity: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return the batch of input `index` on the device: rows × shape, valid until the next one.

        It is `tensors` (n × shape each, on the host or any device) one after another, then zeros up
        to `rows`. It takes one copy to the device.
        """
        buffer = self._buffer(index, tuple(tensors[0].shape[1:]), dtype, rows, capacity)
        start = 0
        if self.stream is not None and any(tensor.is_cuda for tensor in tensors):
            # Tensors on a device are complete: order.py has waited for them.
            with self.span("copy", rows=rows):
                if all(
                    tensor.device == self.device and tensor.dtype == dtype for tensor in tensors
                ):
                    start = sum(
                        [tensor.shape[0] for tensor in tensors]
                    )  # `len` of a tensor is Python
                    torch.cat(list(tensors), out=buffer.device[:start])
                else:
                    for tensor in tensors:
                        buffer.device[start : start + len(tensor)].copy_(tensor, non_blocking=True)
                        start += len(tensor)
                if start < rows:
                    buffer.device[start:rows].zero_()
            return buffer.device[:rows]
        with timeline.span("assembly", rows=rows):
            start = sum([tensor.shape[0] for tensor in tensors])
            # One call for all: while other threads run, each call waits for the GIL.
            torch.cat(list(tensors), out=buffer.host[:start])
            if start < rows:
                buffer.host[start:rows].zero_()
        if self.stream is not None:
            with self.span("copy", rows=rows):
                buffer.device[:rows].copy_(buffer.host[:rows], non_blocking=True)
        return buffer.device[:rows]

    def _buffer(
        self, index: int, shape: tuple[int, ...], dtype: torch.dtype, rows: int, capacity: int
    ) -> Buffer:
        """Return the buffer of an input.

        A batch above `capacity` gets a second, larger buffer: graphs hold the first one's address.
        """
        size = capacity if rows <= capacity else 1 << (rows - 1).bit_length()
        key = index, shape, dtype, size
        if key not in self._buffers:
            passing = [
                other
                for other, buffer in self._buffers.items()
                if other[0] == index and not buffer.kept
            ]
            if len(passing) >= MAX_PASSING_BUFFERS:
                for other in passing:
                    del self._buffers[other]
            self._buffers[key] = Buffer(size, shape, dtype, self.device)
        return self._buffers[key]

    def fetch(self, outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs on the host.

        The thread sleeps until the device has finished all its work.
        """
        if self.stream is None:
            return list(outputs)
        with self.errors("running a batch"):
            copies = [
                torch.empty(output.shape, dtype=output.dtype, pin_memory=True) for output in outputs
            ]
            with self.span("copy back"):
                for copy, output in zip(copies, outputs, strict=True):
                    copy.copy_(output, non_blocking=True)
            self.synchronize()
        return copies

    def synchronize(self) -> None:
        """Wait until the stream has finished, without the GIL."""
        if self.stream is not None:
            self._done.record(self.stream)
            self._done.synchronize()
            if self._spans is not None:
                self._spans.place()

    def span(self, name: str, **arguments: int) -> AbstractContextManager[None]:
        """Record on the timeline how long the work queued in the block takes on its stream.

        On the CPU it is the time of this thread.
        """
        return (timeline if self._spans is None else self._spans).span(name, **arguments)

    # graphs

    def capture(self, key: Any, run: Callable[[], list[torch.Tensor]]) -> bool:
        """Keep the work of `run` as a graph under `key`. Return False if it can't be captured.

        `run` must use buffers whose addresses stay the same.
        """
        if self.stream is None or self._pool is None or not _is_own(self.device, self.stream):
            return False
        # The driver forbids waiting for the whole device during a capture, on any thread: that is
        # why this package waits for streams and events.
        with _capturing, torch.cuda.device(self.device):
            for _ in range(2):  # libraries choose algorithms and allocate in the first runs
                run()
            self.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"
                ):
                    outputs = run()
            except Exception as error:  # of torch, or of the model; it has just run without one
                logger.warning(
                    "%s: runs without CUDA graphs: its work can't be captured: %s",
                    self.owner,
                    (message_of(error).splitlines() or [type(error).__name__])[0],
                )
                torch.cuda.set_stream(self.stream)
                self._give_up_graphs(graph)
                return False
            torch.cuda.set_stream(self.stream)
        self._graphs[key] = graph, outputs
        for buffer in self._buffers.values():
            buffer.kept = True
        return True

    def _give_up_graphs(self, graph: torch.cuda.CUDAGraph) -> None:
        """Clean up after a failed capture.

        If the driver could not end the capture, torch leaves its pool open: it would keep sending
        this stream's memory to it (seen with 2.11). It does not release that pool then. If the
        driver could, `reset` releases it: a second release would break the pools of all later
        captures, and take the memory of this instance's other graphs.
        """
        index: Any = self.device.index  # torch's stubs disagree about its type
        was_open = self._undone(torch._C._cuda_endAllocateToPool, index, self._pool)
        self._undone(graph.reset)
        if was_open:
            self._undone(torch._C._cuda_releasePool, index, self._pool)
        self._pool = None  # no further attempt: it would fail in the same way
        self.synchronize()

    def _undone(self, undo: Callable[..., Any], *arguments: Any) -> bool:
        """Return whether torch took this call: it refuses one for what it has undone itself."""
        try:
            undo(*arguments)
        except RuntimeError as error:
            logger.debug("%s: %s", self.owner, error)
            return False
        return True

    def replay(self, key: Any) -> list[torch.Tensor] | None:
        """Run the graph of that key and return its outputs, valid until the next run.

        None without a graph.
        """
        captured = self._graphs.get(key)
        if captured is None:
            return None
        captured[0].replay()
        return captured[1]

    def drop_graphs(self) -> None:
        """Free all graphs, once the stream has finished."""
        self.synchronize()
        self._graphs.clear()

    # failures

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate the errors of the device (`device_errors`)."""
        with device_errors(self.owner, self.device, doing):
            yield


@contextmanager
def device_errors(owner: str, device: torch.device, doing: str) -> Iterator[None]:
    """Translate a device's errors in the block into MemoryError or DeviceError.

    MemoryError says how much is free. DeviceError is for failures that the device won't recover
    from. Both fail the whole batch and are not retried.
    """
    try:
        yield
    except PenstockError:
        raise
    except RuntimeError as error:
        text = message_of(error)
        reason = (
            text
            if isinstance(error, torch.OutOfMemoryError)
            else _line_with(text, *OUT_OF_MEMORY_TEXTS)
        )
        if reason:
            raise MemoryError(
                f"{owner}: out of memory on {device} while {doing}: {free_memory(device)}; "
                f"{getattr(error, 'library', 'torch')} says: {reason}"
            ) from error
        reason = _line_with(text, *FAILURE_TEXTS)
        if reason or isinstance(error, getattr(torch, "AcceleratorError", ())):
            raise DeviceError(
                f"{owner}: {device} failed while {doing}: {reason or text.splitlines()[0]}"
            ) from error
        raise


OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",
    "Failed to allocate memory",
    "Available memory of",
)
FAILURE_TEXTS = (
    "CUDA error",
    "CUDA failure",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_EXECUTION_FAILED",
)
"""Texts of errors of torch and ONNX Runtime: TorchScript, cuDNN and AOTInductor raise plain
RuntimeErrors, and ONNX Runtime none that tell the device's failures from others.
"""


def _line_with(text: str, *signs: str) -> str:
    return next(
        (line.strip() for line in text.splitlines() if any(sign in line for sign in signs)), ""
    )


def free_memory(device: torch.device) -> str:
    """Return how much memory of the device is free, in words."""
    try:
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
        else:
            page = os.sysconf("SC_PAGE_SIZE")
            free, total = page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    except (RuntimeError, ValueError, AttributeError):  # a failed device; a system without sysconf
        return "the free memory is unknown"
    return f"{free / 2**20:,.0f} MiB of {total / 2**20:,.0f} are free"
