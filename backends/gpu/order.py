"""The order of work on a GPU between threads, for every backend that an executor runs.

Each thread works on a stream of its own, and a stream knows nothing of the others. Nothing here
imports torch: a process that hasn't started to use a GPU through torch is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from ..base import Backend
from ..item import Item

PLAIN_TYPES = frozenset({int, float, bool, str, bytes, type(None)})
"""Types that lists may hold by the thousands and that contain no tensor."""

MAX_SEARCHED_LEVELS = 8
"""The levels of lists and dicts that are searched for tensors."""

NO_DEVICE = nullcontext()


def keep_order(backend: Backend, device: str) -> None:
    """Wrap `forward` of a backend so that its GPU work is in order with that of other threads.

    It begins after the work that the default streams have now: a caller may have produced an item's
    tensors there without waiting. It returns once the device has finished the tensors that it
    leaves: readers are on other threads, with other streams. Errors that the device reports
    meanwhile belong to this batch.

    `device` is the one that the backend took; "": unknown.
    """
    forward = backend.forward
    errors = _reader_of_errors(type(backend).__name__)
    done: dict[Any, Any] = {}

    def finish(device: Any, torch: Any) -> None:
        """Wait until this thread's stream of a device has finished."""
        stream = torch.cuda.current_stream(device)
        if not stream.query():
            if device not in done:
                # blocking: the thread sleeps until the event, without the GIL
                done[device] = torch.cuda.Event(blocking=True)
            done[device].record(stream)
            done[device].synchronize()

    def in_order(batch: list[Item]) -> None:
        held: list[Any] = []
        torch: Any = None
        try:
            with errors(device) if device else NO_DEVICE:
                if (torch := torch_on_gpu()) is not None:
                    held = _wait_for_writers(torch, batch)
                forward(batch)
        except BaseException:
            for used in {tensor.device for tensor in held}:
                with suppress(Exception):  # the first error is the cause
                    finish(used, torch)
            raise
        if (torch := torch_on_gpu()) is not None:
            for used in {
                tensor.device for tensor in (*held, *tensors_in(torch, batch)) if tensor.is_cuda
            }:
                with errors(str(used)):
                    finish(used, torch)

    backend.forward = in_order  # type: ignore[method-assign]


def torch_on_gpu() -> Any:
    """Return torch if this process uses a GPU through it; else None."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    # Any part may be missing: another thread may be in the middle of importing torch.
    is_initialized = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    return torch if is_initialized is not None and is_initialized() else None


def _wait_for_writers(torch: Any, batch: list[Item]) -> list[Any]:
    """Have this thread's streams wait for the default ones, on all devices of the items' tensors.

    Return these tensors. They must be held until the stream that reads them has finished, so that
    their memory isn't given to others. Telling the allocator of each one (`record_stream`) would be
    a wait for the GIL for each.
    """
    tensors = [tensor for tensor in tensors_in(torch, batch) if tensor.is_cuda]
    for device in {tensor.device for tensor in tensors}:
        stream = torch.cuda.current_stream(device)
        if stream != (default := torch.cuda.default_stream(device)):
            stream.wait_stream(default)
    return tensors


def tensors_in(torch: Any, value: Any, depth: int = MAX_SEARCHED_LEVELS) -> Iterator[Any]:
    """Yield the tensors in a value: itself, or those in its lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        inner = value.values() if isinstance(value, dict) else value
        if not PLAIN_TYPES.issuperset(map(type, inner)):
            for element in inner:
                if type(element) not in PLAIN_TYPES:
                    yield from tensors_in(torch, element, depth - 1)


def _reader_of_errors(owner: str) -> Callable[[str], AbstractContextManager[None]]:
    """Return a function from a device's name to a context that translates its errors."""

    def errors(device: str) -> AbstractContextManager[None]:
        import torch

        from .device import device_errors

        return device_errors(owner, torch.device(device), "running a batch")

    return errors
