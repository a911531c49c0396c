"""Which TensorRT there is: `tensorrt` 10 or 11, or `tensorrt_rtx`. They have one Python API, and all else here is written against that."""

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

MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""The libraries in the order in which they are looked for, each with the modules that may hold it."""

OLDEST = 10
"""Of `tensorrt`: the first without bindings by index."""

INSTALL = (
    "install one: pip install 'penstock-serve[tensorrt]' (tensorrt, for the machine's GPU), or pip install --no-deps "
    "tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs (tensorrt_rtx, which also builds where there is no GPU)"
)

LEVELS = {"verbose": 4, "info": 3, "warning": 2, "error": 1}
"""`log_level` -> the least of TensorRT's severities that is passed on."""

SEVERITIES = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""TensorRT's severities, 0 to 4, as Python's."""


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    name: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    trt: Any
    """The module."""
    logger: Any
    """Its one logger of this process: TensorRT keeps the first it is given, for good."""

    @property
    def is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def runtime(self, where: str, *, on_gpu: bool) -> Any:
        """An `IRuntime`. Raises BackendError where there is no GPU, which TensorRT itself would say less clearly."""
        if not on_gpu:
            raise BackendError(
                f"{where}: TensorRT runs on an NVIDIA GPU, and torch sees none here; OnnxTensor and ModelTensor run .onnx files on the CPU"
            )
        return self.trt.Runtime(self.logger)

    @contextmanager
    def listening(self, level: str | None = None) -> Iterator[list[str]]:
        """What TensorRT reports as errors meanwhile, in this process; `level` as `log_level`."""
        said: list[str] = []
        self.logger.listen(said, LEVELS[level or "warning"])
        try:
            yield said
        finally:
            self.logger.forget(said)


def find_library(wanted: str = "") -> Library:
    """The library of that name, or the first that is installed. Raises BackendError that says what to install."""
    reasons = []
    for name in (wanted,) if wanted else MODULES:
        if name not in MODULES:
            raise BackendError(
                f"there is no TensorRT library {name!r}: expected {' or '.join(MODULES)}"
            )
        found = _load(name)
        if isinstance(found, Library):
            return found
        reasons.append(found)
    raise BackendError(f"TensorRT is not here ({'; '.join(reasons)}): {INSTALL}")


@cache
def _load(name: str) -> Library | str:
    """The library, or why it can't be used."""
    reason = f"{name} is not installed"
    for module in MODULES[name]:
        try:
            trt = import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                reason = f"{module} can't be imported: {error}"
            continue
        except (ImportError, OSError) as error:  # a shared library that it needs is not there
            reason = f"{module} can't be imported: {error}"
            continue
        version = str(trt.__version__)
        if name == "tensorrt" and int(re.match(r"\d*", version)[0] or 0) < OLDEST:  # type: ignore[index]
            return f"tensorrt is {version}, expected {OLDEST} or later"
        return Library(name, version, trt, _make_logger(trt))
    return reason


def _make_logger(trt: Any) -> Any:
    """TensorRT's messages as those of the logger `penstock.tensorrt`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._listeners: list[tuple[list[str], int]] = []

        def log(self, severity: Any, msg: str) -> None:
            """Called on whatever thread TensorRT is at work. An exception here would end the process."""
            rank = int(severity)
            with self._lock:
                listeners = list(self._listeners)
            if rank <= max((level for _, level in listeners), default=LEVELS["warning"]):
                log.log(SEVERITIES[min(rank, len(SEVERITIES) - 1)], "%s", msg)
            if rank <= LEVELS["error"]:
                for said, _ in listeners:
                    said.append(msg)

        def listen(self, said: list[str], level: int) -> None:
            with self._lock:
                self._listeners.append((said, level))

        def forget(self, said: list[str]) -> None:
            with self._lock:
                self._listeners = [each for each in self._listeners if each[0] is not said]

    return Logger()
