"""The order of work on a GPU between threads, for whatever backend an executor runs: each thread asks for it on a stream of its own,
and a stream knows nothing of the others.

Nothing here imports torch. A process that has not begun to use a GPU by it is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from ..base import Backend
from ..item import Item

PLAIN = frozenset({int, float, bool, str, bytes, type(None)})
"""What lists may have by thousands, and no tensor is in."""

DEPTH = 8
"""How deep tensors are looked for in lists and dicts."""


def keep_order(backend: Backend, device: str) -> None:
    """Have `forward` begin behind what the default streams were asked for until then: a caller may have put an item's tensors there and
    not waited. Have it return when the device is through with the tensors that it leaves there (readers are on other threads, with other
    streams), and what the device reports meanwhile be this batch's. `device`: what the backend took; "": none that it says.
    """
    forward = backend.forward
    errors = _reader_of_errors(type(backend).__name__)
    done: dict[Any, Any] = {}

    def finish(device: Any, torch: Any) -> None:
        """Wait until this thread's stream of a device is through."""
        stream = torch.cuda.current_stream(device)
        if not stream.query():
            if device not in done:
                done[device] = torch.cuda.Event(
                    blocking=True
                )  # the thread sleeps until it, without the GIL
            done[device].record(stream)
            done[device].synchronize()

    def in_order(batch: list[Item]) -> None:
        held: list[Any] = []
        try:
            with errors(device) if device else nullcontext():
                if (torch := torch_on_gpu()) is not None:
                    held = _wait_for_writers(torch, batch)
                forward(batch)
        except BaseException:
            for there in {tensor.device for tensor in held}:
                with suppress(Exception):  # what the device reports now has another cause
                    finish(there, torch)
            raise
        if (torch := torch_on_gpu()) is not None:
            for there in {
                tensor.device for tensor in (*held, *tensors_in(torch, batch)) if tensor.is_cuda
            }:
                with errors(str(there)):
                    finish(there, torch)

    backend.forward = in_order  # type: ignore[method-assign]


def torch_on_gpu() -> Any:
    """torch, where this process uses a GPU by it; else None."""
    torch = sys.modules.get("torch")
    begun = getattr(
        getattr(torch, "cuda", None), "is_initialized", None
    )  # another thread may be importing it
    return torch if begun is not None and begun() else None


def _wait_for_writers(torch: Any, batch: list[Item]) -> list[Any]:
    """This thread's streams behind the default ones, of the devices that the items' tensors are on. Gives these tensors: their memory
    must not be handed out to others before the stream that reads it is through. They are held until then; telling the allocator of each
    (`record_stream`) would be a wait for the GIL for each.
    """
    tensors = [tensor for tensor in tensors_in(torch, batch) if tensor.is_cuda]
    for device in {tensor.device for tensor in tensors}:
        stream = torch.cuda.current_stream(device)
        if stream != (default := torch.cuda.default_stream(device)):
            stream.wait_stream(default)
    return tensors


def tensors_in(torch: Any, value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """The tensors in a value: itself, or those in its lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple) and depth:
        inner = value.values() if isinstance(value, dict) else value
        if not PLAIN.issuperset(map(type, inner)):
            for each in inner:
                if type(each) not in PLAIN:
                    yield from tensors_in(torch, each, depth - 1)


def _reader_of_errors(who: str) -> Callable[[str], AbstractContextManager[None]]:
    """For a device's name: what it reports meanwhile, in words."""

    def errors(device: str) -> AbstractContextManager[None]:
        import torch

        from .device import device_errors

        return device_errors(who, torch.device(device), "running a batch")

    return errors
