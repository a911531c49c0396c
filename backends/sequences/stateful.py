"""Gives a backend the sequences of its items, and tells it when they end."""

from __future__ import annotations

import logging
from contextlib import suppress

from ..base import Backend, Context
from ..errors import BackendError
from ..item import Item
from .definition import SequenceConfig
from .sequence import Sequence, StepMessage

logger = logging.getLogger("penstock.sequences")


class SequenceStates:
    """The sequences of one backend instance, by serial. Used by one thread."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sequences: dict[int, Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def begin(self, step: StepMessage) -> Sequence:
        """Return the sequence of a step that begins. Raises BackendError if its state was lost."""
        sequence = self._sequences.get(step.serial)
        if sequence is None:
            if not step.first:
                raise BackendError(
                    f"the state of sequence {step.id!r} was lost with the instance that had it: "
                    "start the sequence again"
                )
            sequence = self._sequences[step.serial] = Sequence(step.id, step.slot)
        sequence.end = step.end
        return sequence

    def end(self, serial: int, reason: str) -> None:
        """Forget a sequence, and call its `on_end`. Never raises."""
        sequence = self._sequences.pop(serial, None)
        if sequence is not None:
            self._end(sequence, reason)

    def close(self) -> None:
        """End all sequences with "unload"."""
        while self._sequences:
            _, sequence = self._sequences.popitem()
            self._end(sequence, "unload")

    def _end(self, sequence: Sequence, reason: str) -> None:
        if sequence.on_end is None:
            return
        try:
            sequence.on_end(reason)
        except BaseException:  # SystemExit too: it is the backend's, and the thread goes on
            logger.exception(
                "node %s: on_end of sequence %r failed",
                self._context.node,
                sequence.id,
                extra={"pipeline": self._context.pipeline, "node": self._context.node},
            )


def with_sequences(backend: Backend, config: SequenceConfig, context: Context) -> Backend:
    """Return what runs in place of the backend of a node that keeps state.

    Raises `ConfigError` if its model does not have the tensors of the table.
    """
    wrapped = backend
    if config.controls or config.state:
        from .tensors import SequenceTensors  # imports numpy

        wrapped = SequenceTensors(backend, config, context)
    return StatefulBackend(wrapped, context, type(backend).__name__)


class StatefulBackend(Backend):
    """Wraps the backend of a node that keeps state, in the process in which it runs.

    Items come with a `StepMessage` in `sequence`. The backend sees the `Sequence` there, and
    nothing is there afterwards.
    """

    def __init__(self, inner: Backend, context: Context, name: str) -> None:
        """`name`: that of the backend, for errors."""
        self.children = (inner,)
        self.min, self.max = inner.min, inner.max
        self.signature = inner.signature
        self._inner = inner
        self._name = name
        self._states = SequenceStates(context)

    def forward(self, batch: list[Item]) -> None:
        items = list(batch)  # the backend may change its list
        try:
            sequences = [self._states.begin(item["sequence"]) for item in items]
            before = [sequence.state for sequence in sequences]
            for item, sequence in zip(items, sequences, strict=True):
                item["sequence"] = sequence
            try:
                self._inner.forward(batch)
            except BaseException:
                for sequence, state in zip(sequences, before, strict=True):
                    sequence.state = state
                raise
        except BaseException as error:
            name_backend(error, self._name)
            raise
        for item, sequence, state in zip(items, sequences, before, strict=True):
            item.pop("sequence", None)
            if "error" in item:
                sequence.state = state
            else:
                sequence.start = False

    def end_sequences(self, ends: tuple[tuple[int, str], ...]) -> None:
        for serial, reason in ends:
            self._states.end(serial, reason)

    def close(self) -> None:
        self._states.close()
        super().close()


def name_backend(error: BaseException, name: str) -> None:
    """Note which backend raised an error, for its message: not the one that wraps it."""
    if not hasattr(error, "penstock_backend"):
        with suppress(Exception):  # an error with slots
            error.penstock_backend = name  # type: ignore[attr-defined]
