"""Options of torch that are not a model's own: those of the whole process, and those of a thread.

Of the process: two models that want them differently can't be loaded side by side. How many threads an operator uses belongs to the thread
that runs it (measured with torch 2.13 and OpenMP: `torch.set_num_threads` on one thread leaves the others that have run torch as they
are, and tells those that come later), so each executor has its own.
"""

from __future__ import annotations

import os
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
    """What the option was."""
    users: list[str]
    """Who asked for it, the first in front."""


_set: dict[str, Setting] = {}

JIT: dict[str, Callable[[bool], Any]] = {
    "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
    "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
}


def set_process_wide(option: str, value: Any, who: str, node: str) -> None:
    """Set an option once. Raises ConfigError where another model has set it to something else, or torch takes it no more."""
    with _lock:
        if (known := _set.get(option)) is not None:
            if known.value != value:
                message = (
                    f"{value} wanted, but {known.users[0]} has set it to {known.value}: the option holds for the whole process, until it "
                    "ends, so all models must agree"
                )
                raise ConfigError([Problem(message, node=node, key=option)])
            known.users.append(who)
            return
        try:
            before = _apply(option, value)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                [Problem(f"torch does not take {value} any more: {reason}", node=node, key=option)]
            ) from error
        _set[option] = Setting(value, before, [who])


def release(option: str, who: str) -> None:
    """Take back what a model that then failed to load has asked for. What nobody else wants is as it was before."""
    with _lock:
        setting = _set[option]
        setting.users.remove(who)
        if not setting.users:
            del _set[option]
            if setting.before is not None:
                _apply(option, setting.before)


def _apply(option: str, value: Any) -> Any:
    """What the option was before; None where it can't be set again."""
    if option == "INTER_OP_THREAD_COUNT":
        if torch.get_num_interop_threads() != value:
            torch.set_num_interop_threads(
                value
            )  # torch allows it once, and before its first parallel work
        return None
    if option == "DISABLE_CUDNN":
        disabled = not torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = not value
        return disabled
    before = torch._C._jit_texpr_fuser_enabled() if option == "ENABLE_TENSOR_FUSER" else None
    found = JIT[option](value)
    return found if before is None else before


def use_threads(count: int) -> None:
    """This thread's operators use so many threads. What threads of the application's own will use stays as it is."""
    with _lock:
        torch.get_num_threads()  # a thread's first question or operator takes over what others have set last: not after this
        usual: list[int] = []
        _elsewhere(lambda: usual.append(torch.get_num_threads()))
        torch.set_num_threads(count)
        _elsewhere(lambda: torch.set_num_threads(usual[0]))


def _elsewhere(work: Callable[[], Any]) -> None:
    """On a thread that has never run torch, and ends: what it sees and sets is what threads to come get."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
