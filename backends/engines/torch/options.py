"""Options of torch that hold for the whole process, or for a thread.

Two models that want different values of a process-wide option can't be loaded side by side. The
number of threads of an operator belongs to the thread that runs it, so each executor sets its own.
(Measured with torch 2.13 and OpenMP: `torch.set_num_threads` changes the thread that calls it and
threads that have not used torch yet, and leaves the others as they are.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ConfigError, Problem

_lock = threading.Lock()


@dataclass(slots=True)
class Setting:
    value: Any
    before: Any
    """The option's value before; None if it can't be restored."""
    users: list[str]
    """The nodes that asked for it, in the order in which they did."""


_set: dict[str, Setting] = {}
"""The options that models have set, by name."""

JIT_SETTERS: dict[str, Callable[[bool], Any]] = {
    "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
    "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
}


def set_process_wide(option: str, value: Any, user: str, node: str) -> None:
    """Set an option for the whole process, on behalf of `user`.

    Raises ConfigError if another model has set another value, or if it is too late for torch to
    change it.
    """
    with _lock:
        if (known := _set.get(option)) is not None:
            if known.value != value:
                message = (
                    f"{value} wanted, but {known.users[0]} has set it to {known.value}: "
                    "the option holds for the whole process until it ends, so all models must agree"
                )
                raise ConfigError([Problem(message, node=node, key=option)])
            known.users.append(user)
            return
        try:
            before = _apply(option, value)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                [Problem(f"torch does not take {value} any more: {reason}", node=node, key=option)]
            ) from error
        _set[option] = Setting(value, before, [user])


def release(option: str, user: str) -> None:
    """Withdraw the option of a model that failed to load.

    If no other model wants it, the option gets its former value back.
    """
    with _lock:
        setting = _set[option]
        setting.users.remove(user)
        if not setting.users:
            del _set[option]
            if setting.before is not None:
                _apply(option, setting.before)


def _apply(option: str, value: Any) -> Any:
    """Set an option of torch. Return its value before, or None if it can't be set twice."""
    if option == "INTER_OP_THREAD_COUNT":
        if torch.get_num_interop_threads() != value:
            # torch allows this once, and only before its first parallel work.
            torch.set_num_interop_threads(value)
        return None
    if option == "DISABLE_CUDNN":
        disabled = not torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = not value
        return disabled
    before = torch._C._jit_texpr_fuser_enabled() if option == "ENABLE_TENSOR_FUSER" else None
    returned = JIT_SETTERS[option](value)  # the former value; the fuser's setter returns None
    return returned if before is None else before


def use_threads(count: int) -> None:
    """Let operators that this thread runs use `count` threads each.

    Threads of the application keep their own number.
    """
    with _lock:
        # The first call on a thread adopts what other threads set last. It must come before those
        # below.
        torch.get_num_threads()
        usual: list[int] = []
        _run_on_new_thread(lambda: usual.append(torch.get_num_threads()))
        torch.set_num_threads(count)
        _run_on_new_thread(lambda: torch.set_num_threads(usual[0]))


def _run_on_new_thread(work: Callable[[], Any]) -> None:
    """Run `work` on a new thread: it reads and sets what later threads will adopt."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
