"""Asks a model of OpenVINO, before a run, whether it can compute with inputs of given shapes."""

from __future__ import annotations

import threading
from typing import Any

from ...text import message_of

MAX_KNOWN_SHAPES = 1000
"""Answers that are kept: an image of each size that comes is one."""

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of all inputs, in the model's order."""


class ShapeRules:
    """Infers a model's shapes, for one set of inputs after the other. Thread-safe.

    A run does not do this well: a kernel may read past its weights, and after a run that fails, the
    same stream may fail good runs for ever.
    """

    __slots__ = ("_lock", "_model", "_reasons")

    def __init__(self, model: Any) -> None:
        """`model` is kept, and changed."""
        self._model = model
        self._lock = threading.Lock()
        self._reasons: dict[Shapes, str] = {}

    def why_not(self, shapes: Shapes) -> str:
        """Return why the model can't compute with inputs of these shapes, "" if it can."""
        reason = self._reasons.get(shapes)
        if reason is None:
            with self._lock:
                reason = self._infer(shapes)
                if len(self._reasons) >= MAX_KNOWN_SHAPES:
                    self._reasons.clear()
                self._reasons[shapes] = reason
        return reason

    def _infer(self, shapes: Shapes) -> str:
        try:
            self._model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
        except RuntimeError as error:
            # The lines before name OpenVINO's source files.
            return message_of(error).strip().rpartition("\n")[2] or "OpenVINO gives no reason"
        return ""


def has_open_sizes(model: Any) -> bool:
    """Return whether an input has an open size besides the first, which is that of the batch."""
    return any(size.is_dynamic for port in model.inputs for size in list(port.partial_shape)[1:])
