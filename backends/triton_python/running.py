"""The model whose code runs: what its `pb_utils` works for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..server import Server
from .error import TritonModelException
from .instance_metrics import InstanceMetrics

_of_thread = threading.local()

GLOBAL = "__penstock_model__"
"""The name in the globals of a `model.py` that holds its `RunningModel`, for threads that the model
started itself.
"""


@dataclass(frozen=True, slots=True, eq=False)
class RunningModel:
    """One instance of a model. `folder`: that of its `model.py`. `server`: None if none serves.

    `beside`: the folders in which its imports are looked up last; none in a child process, which
    has them in `sys.path`. `package`: the name of the package of its modules; "" in a child.
    """

    folder: Path
    metrics: InstanceMetrics
    server: Server | None = None
    beside: tuple[str, ...] = ()
    package: str = ""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run the code of the model on this thread."""
        before = getattr(_of_thread, "model", None)
        _of_thread.model = self
        try:
            yield
        finally:
            _of_thread.model = before


def on_this_thread() -> RunningModel | None:
    """Return the model whose code an executor runs on this thread."""
    return getattr(_of_thread, "model", None)


def current() -> RunningModel | None:
    """Return the model whose code calls; None if it is no model's code."""
    model = on_this_thread()
    frame: FrameType | None = sys._getframe(1)
    while model is None and frame is not None:
        model = frame.f_globals.get(GLOBAL)
        frame = frame.f_back
    return model


def server() -> Server | None:
    """Return the server of the model whose code calls."""
    model = current()
    return None if model is None else model.server


def get_model_dir() -> str:
    """Return the folder of the `model.py` whose code calls."""
    model = current()
    if model is None:
        raise TritonModelException("get_model_dir: called outside of a model")
    return str(model.folder)
