"""Prove that a model keeps the rows of a batch apart, so that items may share a run.

A model's shapes can't prove it: `x - mean(x, axis=0)` has a row for each row, and each depends on
all of them. So two different rows are run together, each with copies of itself, and each alone, and
the answers are compared. Engines do this when they load, with random rows, and where the shapes are
not known then, or the model refuses random rows, with rows made from the first item that would
share a run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..base import Context
from ..errors import ConfigError, DeviceError
from ..params import EngineParams
from ..text import message_of
from .probe_rows import Row, further_rows_like, random_rows, rows_like, smallest_integers
from .shapes import shape_text
from .sharing import shared

PROBE_ROWS = 3
"""The rows of a run of the probe, unless the batch is fixed. Of three, two rows make one order that
sorting changes (first, second, first) and one that turning round changes (second, first, first).
"""

TOLERANCE = 0.02
"""How far a row's answer alone may differ from that beside its copies, as a share of its largest
value. Kernels differ with the batch size, and 16 bits hold 2 to 3 digits.
"""

SHARE_OF_VALUE, SHARE_OF_LARGEST = 1e-3, 1e-5
"""How far a row's answer beside other rows may differ from that beside its copies, in the same
place of an equally large batch: as a share of each value, and of the largest. Only kernels that add
in no fixed order differ then. So it shows a small part of an answer that mixes rows (scores) beside
a large one that does not (boxes).
"""

Run: TypeAlias = Callable[[Sequence[Row]], Sequence[NDArray[Any]]]
"""Runs rows together, padded as in a batch, and returns the outputs without the padding."""


class RowProof:
    """Decides whether items may share the runs of one instance of an engine.

    `batched`: they may, as far as is known. `proven`: that is decided. An engine probes at load by
    `at_load`; as long as it is not proven, it calls `of_item` before the first run that items would
    share, or that is padded. All of a node's instances have one verdict.
    """

    __slots__ = (
        "_context",
        "_count",
        "_logger",
        "_names",
        "_on_gpu",
        "_owner",
        "_params",
        "_verdict",
        "batched",
        "proven",
    )

    def __init__(
        self,
        owner: str,
        params: EngineParams,
        context: Context,
        logger: logging.Logger,
        *,
        count: Callable[[], int],
        names: Sequence[str] = (),
        on_gpu: bool = False,
    ) -> None:
        """`owner` begins messages. `count` returns the rows of a run of the probe. `names` are
        those of the outputs.
        """
        self.batched = params.batched is not False
        self.proven = True
        self._owner = owner
        self._params = params
        self._context = context
        self._logger = logger
        self._count = count
        self._names = names
        self._on_gpu = on_gpu
        self._verdict = verdict_of(params)

    def refuse(self, reason: str) -> None:
        """Let each item run alone, and say why unless the file accepts that."""
        self._settle(reason)
        if self._params.batched is None and self._context.instance == 0:
            self._warn(reason)

    def at_load(self, probes: Iterable[Callable[[], str | None]]) -> None:
        """Decide by the first of the probes that the model does not refuse (`of_rows`)."""
        self.proven = False
        reason = self._verdict.at_load(lambda: first_reason(probes))
        if reason is not None:
            self._settle(reason)
        if self._context.instance != 0:
            return
        if reason:
            self._warn(reason)
        elif reason is None:
            self._logger.info(
                "%s: %s refuses random rows, or their shapes are not known: whether it keeps items "
                "apart is checked with the first items that could share a run",
                self._owner,
                self._params.model,
                extra=self._extra,
            )

    def of_item(self, row: Row, run: Run) -> None:
        """Decide with rows made from an item's, unless another instance has decided."""
        reason = self._verdict.of_items(lambda: self._like(row, run))
        if reason is not None:
            self._settle(reason)

    def of_rows(self, rows: Sequence[Row], run: Run, *, as_alone: bool = True) -> str | None:
        """Probe with two rows. Return why the model mixes rows, "" if it does not, None if it
        refuses these, or there are none.
        """
        if not rows:
            return None
        try:
            return self._why_mixed(rows, run, as_alone=as_alone)
        except (ConfigError, DeviceError):
            raise
        except Exception as error:  # models raise whatever their code raises
            self._log_refusal(error)
            return None

    def of_random_rows(
        self, ports: Sequence[tuple[Sequence[int], np.dtype[Any]]], run: Run
    ) -> str | None:
        """Probe with random rows: `ports` has each input's shape after the batch axis, and its
        dtype. Return what `of_rows` returns.
        """
        # An index out of bounds is an error on the CPU, and ends the process on a GPU.
        smallest = [0] if self._on_gpu else smallest_integers([dtype for _, dtype in ports])
        return first_reason(
            partial(self.of_rows, random_rows(ports, least), run) for least in smallest
        )

    def _like(self, row: Row, run: Run) -> str | None:
        """Probe with rows made from an item's. Return what `of_rows` returns: None also if the rows
        can't be made to differ.
        """
        rows = rows_like(row)
        try:
            run([row])
        except DeviceError:
            raise
        except Exception as error:  # `forward` reports it
            self._log_refusal(error)
            return None
        if not rows:
            return None
        try:
            reason = self._why_mixed(rows, run)
        except DeviceError:
            raise
        except Exception as error:  # models raise whatever their code raises
            reason = f"it can't be checked whether it keeps items apart: {message_of(error)}"
        if not reason:
            more = further_rows_like(row, on_gpu=self._on_gpu)
            found = first_reason(partial(self.of_rows, pair, run, as_alone=False) for pair in more)
            reason = found or ""
        if reason:
            self._warn(reason)
        return reason

    def _why_mixed(self, rows: Sequence[Row], run: Run, *, as_alone: bool = True) -> str:
        return why_mixed(rows, run, self._count(), self._names, as_alone=as_alone)

    def _settle(self, reason: str) -> None:
        self.proven = True
        if reason:
            self.batched = False

    @property
    def _extra(self) -> dict[str, str]:
        return {"pipeline": self._context.pipeline, "node": self._context.node}

    def _warn(self, reason: str) -> None:
        self._logger.warning(
            "%s runs each item of %s alone: %s; batched = false accepts that without this warning, "
            "batched = true lets items share runs all the same",
            self._owner,
            self._params.model,
            reason,
            extra=self._extra,
        )

    def _log_refusal(self, error: Exception) -> None:
        self._logger.debug(
            "%s: %s refuses a probe: %s", self._owner, self._params.model, message_of(error)
        )


class Verdict:
    """What the instances of a node know of their model: why it mixes rows, "" if it keeps them
    apart, or None until one of them has found out. The others wait for a probe that runs.
    """

    __slots__ = ("__weakref__", "_lock", "_params", "_probed", "reason")

    def __init__(self, params: object) -> None:
        self._params = params  # alive, so that no other node's params get its id
        self._lock = threading.Lock()
        self._probed = False
        self.reason: str | None = None

    def at_load(self, probe: Callable[[], str | None]) -> str | None:
        """Return the reason. The first instance to ask runs `probe`, which returns None if the
        model can't be probed with random rows.
        """
        with self._lock:
            if self.reason is None and not self._probed:
                self.reason = probe()
                self._probed = True
            return self.reason

    def of_items(self, probe: Callable[[], str | None]) -> str | None:
        """Return the reason. As long as there is none, run `probe`."""
        with self._lock:
            if self.reason is None:
                self.reason = probe()
            return self.reason


def verdict_of(params: object) -> Verdict:
    """Return the verdict of the node whose instances have this one object as their params."""
    verdict: Verdict = shared(("rows", id(params)), lambda: Verdict(params))
    return verdict


def first_reason(probes: Iterable[Callable[[], str | None]]) -> str | None:
    """Run probes until one tells why the model mixes rows. Return "" if none does, None if the
    model refuses all of them.
    """
    found: str | None = None
    for probe in probes:
        reason = probe()
        if reason:
            return reason
        found = reason if found is None else found
    return found


def why_mixed(
    rows: Sequence[Row],
    run: Run,
    count: int,
    names: Sequence[str] = (),
    *,
    as_alone: bool = True,
) -> str:
    """Run two rows together, in two orders of `count` rows, each with copies of itself, and each
    alone. Return why they may not share a run, or "" where the answers are the same.

    `run` returns the outputs of a run, without the rows of padding. `names` are those of the
    outputs; without them messages give their positions. Without `as_alone`, answers alone may have
    other values, as those of numbers that 16 bits can't hold. Raises what `run` raises.
    """

    def outputs(some: Sequence[Row]) -> list[tuple[object, NDArray[Any]]]:
        arrays = run(some)
        return list(zip(names or range(len(arrays)), arrays, strict=True))

    turns = ([place % 2 for place in range(count)], [int(place == 0) for place in range(count)])
    together = [(turn, outputs([rows[which] for which in turn])) for turn in turns]
    for which, row in enumerate(rows[:count]):
        alone, copies = outputs([row]), outputs([row] * count)
        for some, length in ((alone, 1), (copies, count), *((own, count) for _, own in together)):
            for name, output in some:
                if output.ndim == 0 or len(output) != length:
                    shape = shape_text(output.shape)
                    return f"output {name} has shape {shape} for a batch of {length}"
        for index, (name, copy) in enumerate(copies):
            one = alone[index][1][0]
            if (
                as_alone and not all(_is_close(part, one, 0, TOLERANCE) for part in copy)
            ) or not all(
                _is_close(own[index][1][place], copy[place], SHARE_OF_VALUE, SHARE_OF_LARGEST)
                for turn, own in together
                for place in range(count)
                if turn[place] == which
            ):
                return f"output {name} of a row changes with the other rows of its batch"
    return ""


def _is_close(one: Any, other: Any, of_value: float, of_largest: float) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    if one.dtype.kind == "f":
        one, other = one.astype(np.float64), other.astype(np.float64)
    largest = np.abs(other[np.isfinite(other)]).max(initial=0)
    return bool(np.allclose(one, other, rtol=of_value, atol=of_largest * largest, equal_nan=True))
