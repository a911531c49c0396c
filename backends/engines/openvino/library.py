"""OpenVINO's library: one Core for the process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ...errors import BackendError

_lock = threading.Lock()
_core: Any = None
_importing = threading.Lock()

TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import packages of OpenVINO in the block, without those of Intel's statistics.

    `import openvino` alone sends an event to Google Analytics, unasked, and writes to the home
    directory. Where the package openvino_telemetry is missing, its users do without.
    """
    with _importing:
        is_out = sys.modules.setdefault(TELEMETRY, None) is None  # type: ignore[arg-type]  # not found, to Python's import
        try:
            yield
        finally:
            if is_out:
                del sys.modules[TELEMETRY]


def core() -> Any:
    """Return the Core of this process. Raises BackendError if OpenVINO is not installed.

    There is one, and it is kept. The CPU plugin sets the signal stack of the thread that makes it,
    and gives the memory back on the thread that frees it. If the first thread still runs then, its
    next signal ends the process. So a thread makes the Core and ends, and no one frees it.
    """
    global _core
    try:
        with without_telemetry():
            import openvino
    except ModuleNotFoundError as error:
        raise BackendError(
            "OpenvinoTensor needs extra openvino, which is not installed here: "
            "pip install 'penstock-serve[openvino]'"
        ) from error
    with _lock:
        if _core is None:
            with ThreadPoolExecutor(1, "openvino") as thread:
                _core = thread.submit(_made, openvino.Core).result()
        return _core


def _made(make: Callable[[], Any]) -> Any:
    made = make()
    made.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return made


def capabilities() -> frozenset[str]:
    """Return what the processor computes natively, in OpenVINO's words: FP32, BF16, INT8."""
    return frozenset(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
