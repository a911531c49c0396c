"""TorchEngine: the base of all engines that run on torch's tensors, TensorRT's included.

It reads items, pads batches to sizes that CUDA graphs were captured for, and gives each item
results that own their memory.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ...base import UNBOUNDED, Backend, BatchRange, Context, Params, Signature
from ...errors import BackendError, ConfigError, DeviceError, InvalidInput, Problem
from ...gpu.device import DeviceHalf, buckets, choose_device
from ...item import Item
from ...params import EngineParams
from ...text import message_of
from ..rows import (
    PROBE_ROWS,
    first_reason,
    first_rows,
    further_rows_like,
    random_rows,
    row_at,
    rows_like,
    smallest_integers,
    verdict_of,
    why_mixed,
    wrong_rows,
)
from ..shapes import (
    UNBOUNDED_WARM_UP_BATCH,
    batch_first,
    parse_order,
    refuse_without_elements,
    shape_key,
    shape_text,
    shapes_of_last_profile,
)
from ..warming import refusals_as_warnings, warm_up_values, wrong_values
from .params import TorchParams
from .reading import as_tensor, as_texts

logger = logging.getLogger("penstock.torch")

Input: TypeAlias = torch.Tensor | list[str]


class BatchMember(NamedTuple):
    """An item of a batch, with its inputs read and checked."""

    item: Item
    inputs: list[Input]
    """In the model's order."""
    rows: int
    """Its share of the batch dimension."""
    names: tuple[str, ...]
    """The names of the inputs, for a model that takes a dict; else empty."""
    kind: Hashable
    """Members of one kind may share a run: their names, dtypes and shapes after the batch dimension
    are the same.
    """


class TorchEngine(Backend):
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

    backend_name: ClassVar[str] = "TorchEngine"
    """The backend that files name (`TorchScriptTensor`); messages begin with it."""

    warm_up_runs: ClassVar[int] = 1
    """The times that warm-up runs each bucket before it captures a graph."""

    model: Any
    """The value that `load` returned."""
    texts: frozenset[int] = frozenset()
    """The positions of inputs that are lists of texts; set by `load`."""
    model_range = BatchRange(1, UNBOUNDED)
    """The batch sizes that the model itself can run; smaller batches are padded with zeros. Set by
    `load`.
    """
    input_axes: tuple[int, ...] = ()
    """The batch axis of each input, in the model's order; those beyond have it first. Set by
    `load`.
    """
    output_axes: tuple[int, ...] = ()
    """The batch axis of each output, in the order of `result`; those beyond have it first. Set by
    `load`.
    """
    batched = True
    """True if items may share a run."""
    proven = True
    """True once `batched` is decided."""
    probing = False
    """True while the model runs for a probe. Its runs must leave no trace in what compiles it."""
    scores_only = False
    """True if the outputs after the first are derived from it: a classifier's classes, which may
    differ where two scores are nearly the same.
    """
    can_capture = True
    """True if CUDA graphs may be captured of the model; set by `load`."""

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
        with self._half.errors("loading the model"), torch.no_grad():
            self.model = self.load(params, context, self._half.device)
        self._decide(params, context)
        self.signature = Signature.of(None, None, self.batched, self.input_axes)
        self._ran = 0  # rows of the last batch, padding included

    def input_axis(self, position: int) -> int:
        return self.input_axes[position] if position < len(self.input_axes) else 0

    def output_axis(self, position: int) -> int:
        return self.output_axes[position] if position < len(self.output_axes) else 0

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
        self.batched = params.batched is not False
        self._set_range(params, context)
        if params.batched is not None or (self.max == 1 and self.model_range.min <= 1):
            return  # it is decided, or no run has more than one row
        self.proven = False
        self._verdict = verdict_of(params)
        shapes = self.example_shapes()
        values = warm_up_values(params, context)
        if not shapes and values is None:
            return
        reason = self._verdict.at_load(
            lambda: first_reason(
                [lambda: self._probe_with(values), lambda: self._probe_randomly(shapes)]
            )
        )
        if reason is not None:
            self._settle(reason)
        if reason and context.instance == 0:
            self._tell(reason)

    def _probe_with(self, values: dict[str, NDArray[Any]] | None) -> str | None:
        """Probe with the rows of the values that the file gives for warm-up. Return what
        `_probe_randomly` returns.
        """
        if values is None:
            return None
        names, given, axes = self._by_position(values)
        rows = first_rows(given, axes)
        read = [self._read_values(names, row).inputs for row in rows]
        return self._try_probe(read, names) if read else None

    def _try_probe(
        self, rows: list[list[Input]], names: tuple[str, ...] = (), *, as_alone: bool = True
    ) -> str | None:
        try:
            return self._why_mixed(rows, names, as_alone=as_alone)
        except (ConfigError, DeviceError):
            raise
        except Exception as error:  # models raise whatever their code raises
            logger.debug("%s refuses a probe: %s", self._half.owner, message_of(error))
            return None

    def _probe_randomly(self, shapes: Sequence[tuple[Sequence[int], torch.dtype]]) -> str | None:
        """Probe with random rows. Return why the model mixes rows, "" if it does not, None if it
        refuses them, or their shapes are not known.
        """
        if not shapes:
            return None
        ports = [(shape, _numpy_dtype(dtype)) for shape, dtype in shapes]
        # An index out of bounds is an error on the CPU, and ends the process on a GPU.
        smallest = [0] if self._half.on_gpu else smallest_integers([dtype for _, dtype in ports])
        made = [random_rows(ports, least) for least in smallest]
        rows: list[list[list[Input]]] = [
            [[torch.from_numpy(part) for part in row] for row in some] for some in made
        ]
        return first_reason([partial(self._try_probe, some) for some in rows])

    def _probe_rows(self) -> int:
        return max(min(PROBE_ROWS, self._capacity), self.model_range.min)

    def _settle(self, reason: str) -> None:
        """Keep the answer of a probe: why items may not share runs, or ""."""
        self.proven = True
        if not reason:
            return
        self.batched = self.can_capture = False
        self._set_range(self.params, self.context)

    def _tell(self, reason: str) -> None:
        extra = {"pipeline": self.context.pipeline, "node": self.context.node}
        logger.warning(
            "%s runs each item of %s alone: %s; batched = false accepts that without this "
            "warning, batched = true lets items share runs all the same",
            self._half.owner,
            self.params.model,
            reason,
            extra=extra,
        )

    def _why_mixed(
        self, rows: list[list[Input]], names: tuple[str, ...] = (), *, as_alone: bool = True
    ) -> str:
        """Return why the rows may not share a run, or "". Raises what the model raises."""
        return why_mixed(
            rows, lambda some: self._probe(some, names), self._probe_rows(), as_alone=as_alone
        )

    def _probe(self, rows: Sequence[list[Input]], names: tuple[str, ...]) -> list[NDArray[Any]]:
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
            _as_array(next(fetched))
            if isinstance(output, torch.Tensor)
            else np.array(output, object)
            for output in outputs[: 1 if self.scores_only else None]
        ]
        return [
            array[: len(rows)] if array.ndim and len(array) == ran else array for array in arrays
        ]

    def _prove(self, member: BatchMember) -> None:
        """Decide with rows made from an item's, unless another instance has decided."""
        reason = self._verdict.of_items(lambda: self._probe_like(member))
        if reason is not None:
            self._settle(reason)

    def _probe_like(self, member: BatchMember) -> str | None:
        """Probe with rows made from an item's. Return why the model mixes rows, "" if it does not,
        None if the model refuses the item or its rows can't be made to differ.
        """
        first = [value[:1] for value in member.inputs]
        arrays = [
            _as_array(value) if isinstance(value, torch.Tensor) else np.array(value, object)
            for value in first
        ]
        rows = [_inputs_like(first, row) for row in rows_like(arrays)]
        try:
            self._probe([first], member.names)
        except DeviceError:
            raise
        except Exception as error:  # `forward` reports it
            logger.debug("%s refuses a probe: %s", self._half.owner, message_of(error))
            return None
        if not rows:
            return None
        try:
            reason = self._why_mixed(rows, member.names)
        except DeviceError:
            raise
        except Exception as error:  # models raise whatever their code raises
            reason = f"it can't be checked whether it keeps items apart: {message_of(error)}"
        if not reason:
            more = further_rows_like(arrays, on_gpu=self._half.on_gpu)
            pairs = [[_inputs_like(first, row) for row in pair] for pair in more]
            reason = (
                first_reason(
                    partial(self._try_probe, pair, member.names, as_alone=False) for pair in pairs
                )
                or ""
            )
        if reason:
            self._tell(reason)
        return reason

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
        if self.params.warm_up is False:
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
            self._half.capture(_key(inputs), lambda: self._run_rows(inputs))
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
                # The buffers may be tensors of the inference mode, which only change in it.
                with self.gradients_off():
                    self._prove(members[0])
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
        inputs: list[Input] = []
        for position, value in enumerate(values):
            label = self.label(position)
            read = as_texts if position in self.texts else as_tensor
            given: Input = read(value, label)
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

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        """Return the names and the values of the inputs in `data`, in the model's order.

        There are names only for a model that takes a dict. Raises InvalidInput.
        """
        return (), data if isinstance(data, list | tuple) else [data]

    def label(self, position: int) -> str:
        """Return the name that messages give an input."""
        return f"{self.backend_name}: input {position}"

    def _run_group(self, members: list[BatchMember]) -> None:
        total = sum(member.rows for member in members)
        ran = max(total, self.model_range.min)
        rows = self._padded_to(ran)
        with self.gradients_off():
            with self._half.errors("running a batch"):
                inputs = self._assemble([member.inputs for member in members], rows)
                with self._half.span("run", rows=total):
                    outputs = (
                        self._half.replay(_key(inputs))
                        if self._half.on_gpu and not self.texts
                        else None
                    )
                    if outputs is not None:
                        ran = rows
                    else:  # without a graph, pad only up to the smallest batch that the model takes
                        outputs = self._run_rows(
                            [values[:ran] for values in inputs], members[0].names
                        )
            fetched = iter(
                self._half.fetch([output for output in outputs if isinstance(output, torch.Tensor)])
            )
        outputs = [
            next(fetched) if isinstance(output, torch.Tensor) else output for output in outputs
        ]
        if len(members) > 1 or ran > total:
            self._check_apart(outputs, ran)
        self._ran = ran
        self._share_out(members, outputs)

    def _padded_to(self, ran: int) -> int:
        return (
            next((size for size in self._buckets if size >= ran), ran)
            if self._half.on_gpu and not self.texts
            else ran
        )

    def _is_padded(self, rows: int) -> bool:
        return self._padded_to(max(rows, self.model_range.min)) > rows

    def _run_alone(self, member: BatchMember) -> None:
        """Run an item as it is, with no padding: its first axis may not be a batch."""
        with self.gradients_off():
            with self._half.errors("running an item"):
                inputs = self._separate(member)
                with self._half.span("run", rows=member.rows):
                    outputs = self._run_rows(inputs, member.names)
            fetched = iter(
                self._half.fetch([output for output in outputs if isinstance(output, torch.Tensor)])
            )
        self._ran = member.rows
        self._share_out(
            [member],
            [next(fetched) if isinstance(output, torch.Tensor) else output for output in outputs],
        )

    def _separate(self, member: BatchMember) -> list[Any]:
        """Return the inputs on the device. Their first axes may differ."""
        return [
            self._assemble([[value]], len(value), index)[0]
            for index, value in enumerate(member.inputs)
        ]

    def gradients_off(self) -> AbstractContextManager[Any]:
        return torch.inference_mode()

    def _assemble(self, members: list[list[Input]], rows: int, start: int = 0) -> list[Any]:
        """Return the inputs on the device, each padded to `rows`. `start` is the model's position
        of the first of them.
        """
        inputs: list[Any] = []
        for index, first in enumerate(members[0], start):
            if isinstance(first, torch.Tensor):
                tensors: Any = [member[index - start] for member in members]
                inputs.append(
                    self._half.assemble(
                        index, tensors, rows, self._capacity, self.travels_as(index, first)
                    )
                )
            else:
                inputs.append([text for member in members for text in member[index - start]])
        return inputs

    def travels_as(self, index: int, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype in which an input goes to the device.

        Doubles go as float32: they are NumPy's default dtype, and models rarely take them.
        """
        return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype

    def _run_rows(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        """Run the model on inputs that are on the device and have the batch first, as its outputs
        have. Inside, each tensor's batch is where the model has it.
        """
        if any(self.input_axes):
            inputs = [
                value.movedim(0, axis) if (axis := self.input_axis(position)) else value
                for position, value in enumerate(inputs)
            ]
        outputs = self._run(inputs, names)
        return (
            [
                self._batch_first(output, position) if self.output_axis(position) else output
                for position, output in enumerate(outputs)
            ]
            if any(self.output_axes)
            else outputs
        )

    def _batch_first(self, output: Any, position: int) -> torch.Tensor:
        axis = self.output_axis(position)
        if not isinstance(output, torch.Tensor) or output.ndim <= axis:
            kind = f"{output.ndim} axes" if isinstance(output, torch.Tensor) else "texts"
            raise self._wrong("batch_axis", f"gives axis {axis} for an output that has {kind}")
        return output.movedim(axis, 0)

    def _run(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        """Run the model on inputs that are on the device.

        Return its outputs in the order of `result`.
        """
        raise NotImplementedError

    def order(self, answer: Any) -> list[Any]:
        """Return the model's answer as a list of outputs, in the order that `result` has.

        Outputs are tensors, and lists of texts. Raises BackendError for anything else.
        """
        if isinstance(answer, dict):
            outputs = list(answer.values())
        elif isinstance(answer, list | tuple) and not all(isinstance(text, str) for text in answer):
            outputs = list(answer)
        else:
            outputs = [answer]
        for output in outputs:
            if not isinstance(output, torch.Tensor) and not (
                isinstance(output, list) and all(isinstance(text, str) for text in output)
            ):
                raise BackendError(
                    f"{self.backend_name}: the model returned a {type(output).__name__}: expected "
                    "a tensor, or several"
                )
        if self._order is None:
            return outputs
        if len(self._order) != len(outputs):
            raise self._wrong(
                "output_reorder",
                f"{self.params.output_reorder!r} names {len(self._order)} outputs, but the model "
                f"has {len(outputs)}",
            )
        return [outputs[index] for index in self._order]

    def _check_apart(self, outputs: list[Any], ran: int) -> None:
        for index, output in enumerate(outputs):
            if not self.keeps_apart(output, ran):
                rows = (
                    f"{len(output)} rows" if isinstance(output, list) or output.ndim else "no rows"
                )
                raise BackendError(
                    f"{self.backend_name}: output {index} has {rows} for a batch of {ran}: the "
                    "model does not keep items apart; set batched = false"
                )

    def keeps_apart(self, output: Any, rows: int) -> bool:
        """Return whether an output has a row for each row of the batch."""
        return (isinstance(output, list) or output.ndim > 0) and len(output) >= rows

    def _share_out(self, members: list[BatchMember], outputs: list[Any]) -> None:
        counts = [member.rows for member in members]
        shares = [self._shares(output, counts) for output in outputs]
        for index, member in enumerate(members):
            results = [
                share[index].movedim(0, axis).contiguous()
                if (axis := self.output_axis(position))
                else share[index]
                for position, share in enumerate(shares)
            ]
            member.item["result"] = results[0] if len(results) == 1 else results

    def _shares(self, output: Any, counts: list[int]) -> Sequence[Any]:
        """Return each member's share of an output, as copies.

        A view would keep the whole batch in memory until the last item is read.
        """
        if isinstance(output, list):
            ends = list(accumulate(counts))
            return [
                output[end - count : end] if self.keeps_apart(output, self._ran) else output
                for end, count in zip(ends, counts, strict=True)
            ]
        output = output.detach()
        if not self.keeps_apart(output, self._ran):
            return [output.clone(memory_format=torch.contiguous_format) for _ in counts]
        # One call for all members, because each call may have to wait for the GIL.
        copies: Sequence[Any] = torch.ops.aten.split_with_sizes_copy(output[: sum(counts)], counts)
        return copies

    def _input_dtype(self, index: int) -> torch.dtype:
        return (
            torch.uint8
            if index == 0 and (self.params.mean is not None or self.params.std is not None)
            else torch.float32
        )

    def _wrong(self, key: str, message: str) -> ConfigError:
        return ConfigError([Problem(message, node=self.context.node, key=key)])


def _inputs_like(inputs: Sequence[Input], row: Sequence[NDArray[Any]]) -> list[Input]:
    """Return the values of a row as inputs of the same kinds and dtypes."""
    return [
        torch.from_numpy(part.copy()).to(like.dtype)
        if isinstance(like, torch.Tensor)
        else part.tolist()
        for part, like in zip(row, inputs, strict=True)
    ]


def _as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor as an array, bfloat16 (which NumPy lacks) and its like as float32."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float64):
        tensor = tensor.float()
    array: NDArray[Any] = tensor.contiguous().numpy()
    return array


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return NumPy's dtype for the values of an input of this dtype."""
    return _as_array(torch.empty(0, dtype=dtype)).dtype


def _key(inputs: Sequence[torch.Tensor]) -> Hashable:
    """Return the key of a CUDA graph: shapes, dtypes and addresses.

    A graph always reads the addresses that it was captured with.
    """
    return tuple([(tuple(tensor.shape), tensor.dtype, tensor.data_ptr()) for tensor in inputs])
