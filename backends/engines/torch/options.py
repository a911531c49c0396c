"""Options of torch that hold for the whole process: two models that want them differently can't be loaded side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from ...errors import ConfigError, Problem

_lock = threading.Lock()
_set: dict[str, tuple[Any, str]] = {}
"""Option -> its value, and who asked for it first."""

JIT: dict[str, Callable[[bool], Any]] = {
    "ENABLE_JIT_EXECUTOR": torch._C._jit_set_profiling_executor,
    "ENABLE_JIT_PROFILING": torch._C._jit_set_profiling_mode,
    "ENABLE_TENSOR_FUSER": torch._C._jit_set_texpr_fuser_enabled,
}


def set_process_wide(option: str, value: Any, who: str, node: str) -> None:
    """Set an option once. Raises ConfigError where another model has set it to something else, or torch takes it no more."""
    with _lock:
        if option in _set:
            known, first = _set[option]
            if known != value:
                message = f"{value} wanted, but {first} has {known}: the option holds for the whole process, so all models must agree"
                raise ConfigError([Problem(message, node=node, key=option)])
            return
        try:
            _apply(option, value)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError([Problem(f"torch does not take {value} any more: {reason}", node=node, key=option)]) from error
        _set[option] = value, who


def _apply(option: str, value: Any) -> None:
    if option == "INTER_OP_THREAD_COUNT":
        if torch.get_num_interop_threads() != value:
            torch.set_num_interop_threads(value)  # torch allows it once, and before its first parallel work
    elif option == "INTRA_OP_THREAD_COUNT":
        torch.set_num_threads(value)
    elif option == "DISABLE_CUDNN":
        torch.backends.cudnn.enabled = not value
    else:
        JIT[option](value)
