"""TorchEngine: the base of all engines that run on torch's tensors, TensorRT's included.

It loads a model, warms it up, reads items, and decides which of them share a run. A run itself is
in runner.py.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...base import UNBOUNDED, BatchRange, Context, Params, Signature
from ...errors import InvalidInput
from ...gpu.device import DeviceHalf, buckets, choose_device
from ...item import Item
from ...params import EngineParams
from ..probe_rows import first_rows, row_at
from ..reshape import Reshaping
from ..rows import PROBE_ROWS, RowProof, Run
from ..shapes import (
    UNBOUNDED_WARM_UP_BATCH,
    batch_first,
    parse_order,
    refuse_without_elements,
    shape_key,
    shape_text,
    shapes_of_last_profile,
    wrong_rows,
)
from ..warming import refusals_as_warnings, run_given_samples, warm_up_values, wrong_values
from .params import TorchParams
from .reading import Input, as_tensor, as_texts, to_array, to_arrays, to_inputs
from .runner import BatchMember, TorchRunner, key_of

logger = logging.getLogger("penstock.torch")


class TorchEngine(TorchRunner):
    """Runs a model on a GPU, or on the CPU of a machine without one.

    `data`: a tensor or array with the batch dimension first, N×..., for an item of N
    rows; or a list of them in the order of the model's inputs. `result`:
    the output as a tensor on the CPU, N×..., or a list of outputs.

    On a GPU, warm-up captures a CUDA graph for each bucket (batch sizes 1, 2, 4 ... `max`), and
    batches are padded up to the next bucket. That takes shapes known in advance: from `max`
    (`8x3x224x224`) or from `example_shapes`. Every batch ends with a wait for its stream, so an
    error that the device reports belongs to the batch that just ran.

    Items share a run only if the model is proven to keep rows apart (rows.py): at load where the
    shapes are known, otherwise by the first items that would share one. If it does not, each item
    runs alone, with any first axis.
    """

    parameters: ClassVar[type[Params] | None] = TorchParams

    warm_up_runs: ClassVar[int] = 1
    """The times that warm-up runs each bucket before it captures a graph."""

    dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
    """The dtypes that inputs must have, by the name that the file gives them; set by `load`."""

    probing = False
    """True while the model runs for a probe. Its runs must leave no trace in what compiles it."""
    can_capture = True
    """True if CUDA graphs may be captured of the model; set by `load`."""

    @property
    def batched(self) -> bool:
        """True if items may share a run."""
        return self.proof.batched

    @property
    def proven(self) -> bool:
        """True once `batched` is decided."""
        return self.proof.proven

    @property
    def undecided(self) -> bool:
        return not self.proven

    @classmethod
    def declared_range(cls, params: EngineParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: Any, context: Context) -> None:
        """Load the model.

        Raises BackendError, which names the path, for a missing or unreadable file; ConfigError for
        a key that does not fit the model.
        """
        self.params = params
        self.context = context
        self._half = DeviceHalf(
            self.choose_device(params, context), f"node {context.node!r}: {self.backend_name}"
        )
        self.device = str(self._half.device) if self._half.on_gpu else ""
        self._order = parse_order(params.output_reorder)
        if params.output_reorder and self._order is None:
            raise self._wrong(
                "output_reorder",
                f"{params.output_reorder!r} must hold each index once, as in '1,0'",
            )
        self.reshape = Reshaping(params, context)
        with self._half.errors("loading the model"), torch.no_grad():
            self.model = self.load(params, context, self._half.device)
        self._decide(params, context)
        self.signature = Signature.of(None, None, self.batched, self.input_axes)
        self._ran = 0  # rows of the last batch, padding included

    def first_axis(self) -> int:
        """Return the batch axis of the input that `max` gives first."""
        return self.input_axis(0)

    def _set_range(self, params: Any, context: Context) -> None:
        declared = params.declared_range(self.first_axis())
        bounds = (declared.max, context.max, self.model_range.max, UNBOUNDED)
        self.max = min(bound for bound in bounds if bound is not None) if self.batched else 1
        self.min = min(max(declared.min, context.min or 1, self.model_range.min), self.max)
        self._capacity = max(
            self.max if self.max != UNBOUNDED else UNBOUNDED_WARM_UP_BATCH, self.model_range.min
        )
        self._buckets = sorted(
            {max(size, self.model_range.min) for size in buckets(self._capacity)}
        )

    def _decide(self, params: Any, context: Context) -> None:
        """Decide whether items share runs, and set the batch range. Without shapes to probe with,
        or where the model refuses random rows, the first items that would share a run decide.
        """
        self.proof = RowProof(
            self._half.owner,
            params,
            context,
            logger,
            count=self.probe_rows,
            on_gpu=self._half.on_gpu,
        )
        self._set_range(params, context)
        if params.batched is not None or (self.max == 1 and self.model_range.min <= 1):
            return  # it is decided, or no run has more than one row
        values = warm_up_values(params, context)
        shapes = self.example_shapes()
        self.proof.at_load([lambda: self._probe_with(values), lambda: self._probe_randomly(shapes)])
        self._follow_proof()

    def _follow_proof(self) -> None:
        if not self.batched:
            self.can_capture = False
            self._set_range(self.params, self.context)

    def _probe_with(self, values: dict[str, NDArray[Any]] | None) -> str | None:
        """Probe with the rows of the values that the file gives for warm-up."""
        if values is None:
            return None
        names, given, axes = self._by_position(values)
        rows = [self._read_values(names, row).inputs for row in first_rows(given, axes)]
        if not rows:
            return None
        return self.proof.of_rows([to_arrays(row) for row in rows], self._prober(rows[0], names))

    def _probe_randomly(self, shapes: Sequence[tuple[Sequence[int], torch.dtype]]) -> str | None:
        if not shapes:
            return None
        like: list[Input] = [torch.empty(0, dtype=dtype) for _, dtype in shapes]
        ports = [
            (shape, array.dtype) for (shape, _), array in zip(shapes, to_arrays(like), strict=True)
        ]
        return self.proof.of_random_rows(ports, self._prober(like))

    def probe_rows(self) -> int:
        """Return the rows of a run of the probe."""
        return max(min(PROBE_ROWS, self._capacity), self.model_range.min)

    def prove(self, member: BatchMember) -> None:
        """Decide with rows made from an item's, unless another instance has decided."""
        first = [value[:1] for value in member.inputs]
        # The buffers may be tensors of the inference mode, which only change in it.
        with self.gradients_off():
            self.proof.of_item(to_arrays(first), self._prober(first, member.names))
        self._follow_proof()

    def _prober(self, like: list[Input], names: tuple[str, ...] = ()) -> Run:
        """Return the function that runs rows, as inputs of the kinds and dtypes of `like`."""
        return lambda rows: self.probe([to_inputs(row, like) for row in rows], names)

    def probe(self, rows: Sequence[list[Input]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        """Run rows together, padded as in a batch."""
        ran = max(len(rows), self.model_range.min)
        self.probing = True
        try:
            # The buffers outlive the probe, so they must not be tensors of the inference mode.
            inputs = self._assemble(list(rows), ran)
            with self.gradients_off(), self._half.errors("probing the model"):
                outputs = self._run_rows(inputs, names)
                fetched = iter(
                    self._half.fetch(
                        [output for output in outputs if isinstance(output, torch.Tensor)]
                    )
                )
        finally:
            self.probing = False
        arrays = [
            to_array(next(fetched))
            if isinstance(output, torch.Tensor)
            else np.array(output, object)
            for output in outputs[: 1 if self.scores_only else None]
        ]
        return [
            array[: len(rows)] if array.ndim and len(array) == ran else array for array in arrays
        ]

    def choose_device(self, params: Any, context: Context) -> torch.device:
        return choose_device(context.device)

    def load(self, params: Any, context: Context, device: torch.device) -> Any:
        """Load the model onto the device. Raises BackendError and ConfigError."""
        raise NotImplementedError

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """Return each input's shape after the batch dimension, and its dtype.

        Empty if they are not known before the first item comes.
        """
        return [
            (batch_first(shape, self.input_axis(index))[1:], self._input_dtype(index))
            for index, shape in enumerate(shapes_of_last_profile(self.params.max))
            if len(shape) > max(1, self.input_axis(index))
        ]

    def warm_up(self) -> None:
        """Run zeros, or the values that the file gives, at every bucket, largest first, and capture
        a CUDA graph of each.

        Nothing is run if the shapes are not known. What the model refuses is a warning.
        """
        if self.params.warm_up is False or run_given_samples(
            self, self.params, self.context, most=self.max
        ):
            return
        with refusals_as_warnings(self._half.owner, self.params, self.context, logger):
            values = warm_up_values(self.params, self.context)
            row = self._zeros() if values is None else self._given(values)
            if row is not None:
                self.warm_up_with(row)

    def _zeros(self) -> BatchMember | None:
        shapes, rows = self.example_shapes(), 1 if self.batched else self._capacity
        zeros: list[Input] = [torch.zeros((rows, *shape), dtype=dtype) for shape, dtype in shapes]
        return BatchMember({}, zeros, rows, (), ()) if shapes else None

    def _given(self, values: dict[str, NDArray[Any]]) -> BatchMember:
        """Return the values as an item: the first row of each, if items may share runs."""
        names, given, axes = self._by_position(values)
        return self._read_values(names, row_at(given, axes, 0) if self.batched else given)

    def _by_position(
        self, values: dict[str, NDArray[Any]]
    ) -> tuple[tuple[str, ...], Sequence[NDArray[Any]], list[int]]:
        """Return the values of a file, which `in_order` orders, and their batch axes. Raises
        ConfigError.
        """
        try:
            names, given = self.in_order(self.by_name(values))
        except InvalidInput as error:
            raise wrong_values(self.context, str(error)) from error
        return names, given, [self.input_axis(position) for position in range(len(given))]

    def _read_values(self, names: tuple[str, ...], values: Sequence[NDArray[Any]]) -> BatchMember:
        """Read values of a file as those of an item. Raises ConfigError."""
        try:
            return self.check_inputs({}, names, values)
        except InvalidInput as error:
            raise wrong_values(self.context, str(error)) from error

    def by_name(self, values: dict[str, NDArray[Any]]) -> Any:
        """Return the `data` of an item that has these inputs. Raises InvalidInput."""
        return values

    def warm_up_with(self, row: BatchMember) -> None:
        """Warm up with the inputs of a row, or of an item that does not share runs."""
        for rows in reversed(self._buckets):
            inputs = (
                self._assemble([row.inputs] * rows, rows) if self.batched else self._separate(row)
            )
            with self._half.errors("warming up"), self.gradients_off():
                outputs = self._run_rows(inputs, row.names)
                for _ in range(1, self.warm_up_runs):
                    self._run_rows(inputs, row.names)
                self._half.synchronize()
                if self._half.on_gpu and self.params.cuda_graphs and self.can_capture:
                    self._capture(inputs, rows, outputs)

    def _capture(self, inputs: list[Any], rows: int, outputs: list[Any]) -> None:
        if all(
            isinstance(output, torch.Tensor) and self.keeps_apart(output, rows)
            for output in outputs
        ):
            self._half.capture(key_of(inputs), lambda: self._run_rows(inputs))
        else:  # such outputs could not be cut back after a batch was padded up to the graph's size
            logger.info(
                "%s: no CUDA graph for batches of %d: the outputs do not have one row for each row "
                "of the inputs",
                self._half.owner,
                rows,
            )

    def forward(self, batch: list[Item]) -> None:
        groups: dict[Hashable, list[BatchMember]] = {}
        for item in batch:
            try:
                member = self._read(item)
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error
                continue
            groups.setdefault(member.kind, []).append(member)
        for members in groups.values():
            if not self.proven and (len(members) > 1 or self._is_padded(members[0].rows)):
                self.prove(members[0])
                if not self.batched:
                    self.forward(batch)
                    return
        together = self.batched and self.proven
        for members in groups.values():
            for sharing in [members] if together else [[member] for member in members]:
                try:
                    if self.batched:
                        self._run_group(sharing)
                    else:
                        self._run_alone(sharing[0])
                except Exception as error:
                    refuse_without_elements(
                        self.backend_name,
                        (
                            value.shape
                            for member in sharing
                            for value in member.inputs
                            if isinstance(value, torch.Tensor)
                        ),
                        (member.item for member in sharing),
                        error,
                        alone=len(batch) == 1,
                    )

    def close(self) -> None:
        held = [self.__dict__.pop("model", None)]
        half: DeviceHalf | None = getattr(self, "_half", None)
        if half is not None:
            half.close(held)
        super().close()

    def _read(self, item: Item) -> BatchMember:
        """Read the item's inputs into the model's order. Raises InvalidInput."""
        names, values = self.in_order(item["data"])
        return self.check_inputs(item, names, values)

    def check_inputs(
        self, item: Item, names: tuple[str, ...], values: Sequence[Any]
    ) -> BatchMember:
        """Return the values, which are in the model's order, as the inputs of an item. Raises
        InvalidInput.
        """
        size = item.get("request_size", 1)
        if len(values) == 1 and self._takes_plain_inputs:  # the hot path, with fewest calls
            only = as_tensor(values[0], self._first_label)
            sizes = only.shape
            if sizes and (not self.proof.batched or sizes[0] == size <= self.max):
                return BatchMember(
                    item, [only], sizes[0], names, (names, ((sizes[1:], only.dtype),))
                )
        inputs: list[Input] = []
        for position, value in enumerate(values):
            label = self.label(position)
            read = as_texts if position in self.texts else as_tensor
            given: Input = read(value, label)
            if (self.params.reshape or self.dtypes) and isinstance(given, torch.Tensor):
                name = names[position] if names else self.input_name(position)
                if name in self.reshape:
                    shape = self.reshape.input_shape(name, tuple(given.shape), label)
                    given = given.reshape(shape)
                given = given.to(self.dtypes.get(name, given.dtype))
            shape = given.shape if isinstance(given, torch.Tensor) else (len(given),)
            axis = self.input_axis(position)
            if len(shape) <= axis or (self.batched and shape[axis] != size):
                raise wrong_rows(label, item, shape, axis)
            if self.batched and size > self.max:
                raise InvalidInput(
                    f"{label}: expected at most {self.max} rows (max), found shape "
                    f"{shape_text(shape)}"
                )
            inputs.append(
                given.movedim(axis, 0) if axis and isinstance(given, torch.Tensor) else given
            )
        kind = tuple(
            [
                (tuple(value.shape[1:]), value.dtype) if isinstance(value, torch.Tensor) else None
                for value in inputs
            ]
        )
        return BatchMember(
            item, inputs, size if self.batched else len(inputs[0]), names, (names, kind)
        )

    @cached_property
    def _takes_plain_inputs(self) -> bool:
        """True if all inputs are tensors that have the batch first and go to the model as they
        come.
        """
        return not (self.texts or any(self.input_axes) or self.params.reshape or self.dtypes)

    @cached_property
    def _first_label(self) -> str:
        return self.label(0)

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        """Return the names and the values of the inputs in `data`, in the model's order.

        There are names only for a model that takes a dict. Raises InvalidInput.
        """
        return (), data if isinstance(data, list | tuple) else [data]

    def label(self, position: int) -> str:
        """Return the name that messages give an input."""
        return f"{self.backend_name}: input {position}"

    def input_name(self, position: int) -> str:
        """Return the name that the file gives an input, by its place in the model's order."""
        raise NotImplementedError

    def _input_dtype(self, index: int) -> torch.dtype:
        return (
            torch.uint8
            if index == 0 and (self.params.mean is not None or self.params.std is not None)
            else torch.float32
        )
