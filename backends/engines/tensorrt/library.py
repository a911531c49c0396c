"""The TensorRT that is installed: `tensorrt` 10 or 11, or `tensorrt_rtx`.

Both have one Python API, against which the rest of this package is written.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from ...errors import BackendError

log = logging.getLogger("penstock.tensorrt")

LIBRARY_MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""The libraries in order of preference, each with the Python modules that may provide it."""

OLDEST_MAJOR_VERSION = 10
"""The oldest `tensorrt` that works. Earlier ones address inputs and outputs by index, not by name.
"""

HOW_TO_INSTALL = (
    "install one: pip install 'penstock-serve[tensorrt]' (tensorrt, for the machine's GPU), or "
    "pip install --no-deps tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs "
    "(tensorrt_rtx, which also builds on machines without a GPU)"
)

LOG_LEVELS = {"verbose": 4, "info": 3, "warning": 2, "error": 1}
"""`log_level` -> the least severe of TensorRT's severities that is logged."""

PYTHON_LOG_LEVELS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""TensorRT's severities, 0 to 4, as Python's."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """An installed TensorRT."""

    name: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    trt: Any
    """The Python module."""
    logger: Any
    """The process's only `ILogger` for it: TensorRT keeps the first one that it is given."""

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def runtime(self, where: str, *, on_gpu: bool) -> Any:
        """Make an `IRuntime`.

        Raises BackendError without a GPU: TensorRT's own message is less clear.
        """
        if not on_gpu:
            raise BackendError(
                f"{where}: TensorRT runs on an NVIDIA GPU, but torch sees none here; OnnxTensor "
                "and ModelTensor run .onnx files on the CPU"
            )
        return self.trt.Runtime(self.logger)

    @contextmanager
    def listening(self, level: str | None = None) -> Iterator[list[str]]:
        """Collect the errors that TensorRT reports in this process until the block ends.

        `level` is a `log_level`; "warning" by default.
        """
        reported: list[str] = []
        self.logger.listen(reported, LOG_LEVELS[level or "warning"])
        try:
            yield reported
        finally:
            self.logger.forget(reported)


def find_library(wanted: str = "") -> Library:
    """Return the library named `wanted`, or the first that is installed.

    Raises BackendError, which says what to install.
    """
    reasons = []
    for name in (wanted,) if wanted else LIBRARY_MODULES:
        if name not in LIBRARY_MODULES:
            raise BackendError(
                f"there is no TensorRT library {name!r}: expected {' or '.join(LIBRARY_MODULES)}"
            )
        library = _load(name)
        if isinstance(library, Library):
            return library
        reasons.append(library)
    raise BackendError(f"TensorRT can't be used ({'; '.join(reasons)}): {HOW_TO_INSTALL}")


@cache
def _load(name: str) -> Library | str:
    """Import a library. Return it, or a text that says why it can't be used."""
    reason = f"{name} is not installed"
    for module in LIBRARY_MODULES[name]:
        try:
            trt = import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                reason = f"{module} can't be imported: {error}"
            continue
        except (ImportError, OSError) as error:  # a shared library that it needs is missing
            reason = f"{module} can't be imported: {error}"
            continue
        version = str(trt.__version__)
        if name == "tensorrt" and int(re.match(r"\d*", version)[0] or 0) < OLDEST_MAJOR_VERSION:  # type: ignore[index]
            return f"tensorrt is {version}, expected {OLDEST_MAJOR_VERSION} or later"
        return Library(name, version, trt, _make_logger(trt))
    return reason


def _make_logger(trt: Any) -> Any:
    """Make an `ILogger` that passes TensorRT's messages to the logger `penstock.tensorrt`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._listeners: list[tuple[list[str], int]] = []

        def log(self, severity: Any, msg: str) -> None:
            """Log a message.

            TensorRT calls this on any of its threads, and an exception from here would end the
            process.
            """
            rank = int(severity)
            with self._lock:
                listeners = list(self._listeners)
            if rank <= max((level for _, level in listeners), default=LOG_LEVELS["warning"]):
                log.log(PYTHON_LOG_LEVELS[min(rank, len(PYTHON_LOG_LEVELS) - 1)], "%s", msg)
            if rank <= LOG_LEVELS["error"]:
                for reported, _ in listeners:
                    reported.append(msg)

        def listen(self, reported: list[str], level: int) -> None:
            """Append errors to `reported`, and log messages up to `level`, until `forget`."""
            with self._lock:
                self._listeners.append((reported, level))

        def forget(self, reported: list[str]) -> None:
            with self._lock:
                self._listeners = [
                    listener for listener in self._listeners if listener[0] is not reported
                ]

    return Logger()
