"""What engines on the GPU half have in common: reading items, batches in buckets, graphs, and answers that own their memory."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch

from ...base import UNBOUNDED, Backend, BatchRange, Context, Params
from ...errors import BackendError, ConfigError, InvalidInput, Problem
from ...gpu.device import DeviceHalf, buckets, choose_device
from ...item import Item
from ...params import EngineParams
from .params import TorchParams
from .reading import as_tensor, as_texts, indices, shapes_in

logger = logging.getLogger("penstock.torch")

UNBOUNDED_LARGEST = 8
"""The batch to prepare for where the node does not say how large batches get."""

Input: TypeAlias = torch.Tensor | list[str]


class Member(NamedTuple):
    """One item of a batch, read. Items of one `kind` may share a run."""

    item: Item
    inputs: list[Input]
    rows: int
    names: tuple[str, ...]
    kind: Hashable


class TorchEngine(Backend):
    """Runs a model on a GPU, or on the CPU where there is none.

    `data`: a tensor or array with the batch dimension, N x ..., N = `request_size` (1 where the item has none), or a list of them in
    the order of the model's inputs. `result`: the output as a tensor on the CPU, N x ..., or a list of them.

    On a GPU, batches are padded up to a bucket (1, 2, 4 ... `max`) where a CUDA graph was captured for it, at warm-up: where `max`
    tells the shapes (`8x3x224x224`) or `example_shapes` knows them. What the device reports is of the batch that just ran: every
    batch ends with a wait for its stream.
    """

    parameters: ClassVar[type[Params] | None] = TorchParams

    warm_up_runs: ClassVar[int] = 1

    model: Any
    texts: frozenset[int] = frozenset()
    """The inputs that are lists of texts; set by `load`."""
    model_range = BatchRange(1, UNBOUNDED)
    """The batches that the model itself can run: smaller ones are padded with zeros; set by `load`."""
    can_capture = True
    """False where the model would not stand it; set by `load`."""

    @classmethod
    def declared_range(cls, params: EngineParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        """What one run may not mix: shapes behind the batch dimension, and dtypes."""
        data = item.get("data")
        if isinstance(data, list | tuple):
            return tuple(
                [
                    (tuple(array.shape[1:]), array.dtype) if hasattr(array, "shape") else None
                    for array in data
                ]
            )
        return (
            (tuple(data.shape[1:]), data.dtype)
            if isinstance(data, np.ndarray | torch.Tensor)
            else None
        )

    def init(self, params: Any, context: Context) -> None:
        """Raises BackendError, naming the path, for a missing or unreadable model; ConfigError for a key that does not fit it."""
        self.params = params
        self.context = context
        self._half = DeviceHalf(
            self.choose_device(params, context), f"node {context.node!r}: {type(self).__name__}"
        )
        self.device = str(self._half.device) if self._half.on_gpu else ""
        self._order = indices(params.output_reorder)
        if params.output_reorder and self._order is None:
            raise self._wrong(
                "output_reorder",
                f"{params.output_reorder!r} must hold each index once, as in '1,0'",
            )
        with self._half.errors("loading the model"), torch.no_grad():
            self.model = self.load(params, context, self._half.device)
        declared = params.declared_range()
        bounds = [
            bound
            for bound in (declared.max, context.max, self.model_range.max)
            if bound is not None and bound != UNBOUNDED
        ]
        self.max = min(bounds, default=UNBOUNDED)
        self.min = min(max(declared.min, context.min or 1, self.model_range.min), self.max)
        self._capacity = max(
            self.max if self.max != UNBOUNDED else UNBOUNDED_LARGEST, self.model_range.min
        )
        self._ran = 0  # rows of the batch that ran last, padding included
        self._buckets = sorted(
            {max(size, self.model_range.min) for size in buckets(self._capacity)}
        )

    def choose_device(self, params: Any, context: Context) -> torch.device:
        return choose_device(context.device)

    def load(self, params: Any, context: Context, device: torch.device) -> Any:
        """The model on the device."""
        raise NotImplementedError

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """Shape behind the batch dimension and dtype of each input, as far as they are known before an item comes; else empty."""
        return [
            (shape[1:], self._input_dtype(index))
            for index, shape in enumerate(shapes_in(self.params.max))
            if len(shape) > 1
        ]

    def warm_up(self) -> None:
        """Run zeros at every bucket, largest first, and capture graphs of it; not where the shapes are not known."""
        shapes = self.example_shapes()
        if not shapes:
            return
        for rows in reversed(self._buckets):
            zeros: list[Input] = [
                torch.zeros((rows, *shape), dtype=dtype) for shape, dtype in shapes
            ]
            inputs = self._assemble([zeros], rows)
            with self._half.errors("warming up"), self.gradients_off():
                outputs = self._run(inputs)
                for _ in range(1, self.warm_up_runs):
                    self._run(inputs)
                self._half.synchronize()
                if self._half.on_gpu and self.params.cuda_graphs and self.can_capture:
                    self._capture(inputs, rows, outputs)

    def _capture(self, inputs: list[Any], rows: int, outputs: list[Any]) -> None:
        if all(
            isinstance(output, torch.Tensor) and self.keeps_apart(output, rows)
            for output in outputs
        ):
            self._half.capture(_key(inputs), lambda: self._run(inputs))
        else:  # a batch that is padded up to the graph's size could not be cut back
            logger.info(
                "%s: no graph for batches of %d: its outputs do not have a row for each of theirs",
                self._half.who,
                rows,
            )

    def forward(self, batch: list[Item]) -> None:
        groups: dict[Hashable, list[Member]] = {}
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
            self._run_group(members)

    def close(self) -> None:
        held = [self.__dict__.pop("model", None)]
        half: DeviceHalf | None = getattr(self, "_half", None)
        if half is not None:
            half.close(held)
        super().close()

    def _read(self, item: Item) -> Member:
        """The item's inputs, in the model's order."""
        names, values = self.in_order(item["data"])
        size = item.get("request_size", 1)
        inputs: list[Input] = []
        for position, value in enumerate(values):
            label = self.label(position)
            found = as_texts(value, label) if position in self.texts else as_tensor(value, label)
            rows = (
                found.shape[0]
                if isinstance(found, torch.Tensor) and found.ndim
                else len(found)
                if isinstance(found, list)
                else None
            )
            if rows != size:
                shape = (
                    "x".join(map(str, found.shape)) or "()"
                    if isinstance(found, torch.Tensor)
                    else str(rows)
                )
                raise InvalidInput(
                    f"{label}: expected {size} (the item's request_size) as batch dimension, got shape {shape}"
                )
            inputs.append(found)
        kind = tuple(
            [
                (tuple(each.shape[1:]), each.dtype) if isinstance(each, torch.Tensor) else None
                for each in inputs
            ]
        )
        return Member(item, inputs, size, names, (names, kind))

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        """What `data` holds, in the model's order; names only where the model wants them. Raises InvalidInput."""
        return (), data if isinstance(data, list | tuple) else [data]

    def label(self, position: int) -> str:
        """An input, in messages."""
        return f"{type(self).__name__}: input {position}"

    def _run_group(self, members: list[Member]) -> None:
        total = sum(member.rows for member in members)
        ran = max(total, self.model_range.min)
        rows = (
            next((size for size in self._buckets if size >= ran), ran)
            if self._half.on_gpu and not self.texts
            else ran
        )
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
                    else:  # no graph: no padding either, but what the model needs
                        outputs = self._run([each[:ran] for each in inputs], members[0].names)
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

    def gradients_off(self) -> AbstractContextManager[Any]:
        return torch.inference_mode()

    def _assemble(self, members: list[list[Input]], rows: int) -> list[Any]:
        inputs: list[Any] = []
        for index, first in enumerate(members[0]):
            if isinstance(first, torch.Tensor):
                parts: Any = [member[index] for member in members]
                inputs.append(
                    self._half.assemble(
                        index, parts, rows, self._capacity, self.travels_as(index, first)
                    )
                )
            else:
                inputs.append([text for member in members for text in member[index]])
        return inputs

    def travels_as(self, index: int, tensor: torch.Tensor) -> torch.dtype:
        """The dtype in which an input goes to the device. Doubles, which NumPy makes wherever nobody says otherwise, are what models
        take as float32.
        """
        return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype

    def _run(self, inputs: Sequence[Any], names: tuple[str, ...] = ()) -> list[Any]:
        """The model's outputs in order, of inputs on the device."""
        raise NotImplementedError

    def order(self, found: Any) -> list[Any]:
        """The outputs in the order in which `result` holds them: tensors, and lists of texts."""
        if isinstance(found, dict):
            outputs = list(found.values())
        elif isinstance(found, list | tuple) and not all(isinstance(each, str) for each in found):
            outputs = list(found)
        else:
            outputs = [found]
        for output in outputs:
            if not isinstance(output, torch.Tensor) and not (
                isinstance(output, list) and all(isinstance(each, str) for each in output)
            ):
                raise BackendError(
                    f"{type(self).__name__}: the model answers a {type(output).__name__}; expected a tensor, or several"
                )
        if self._order is None:
            return outputs
        if len(self._order) != len(outputs):
            raise self._wrong(
                "output_reorder",
                f"{self.params.output_reorder!r} names {len(self._order)} outputs, the model has {len(outputs)}",
            )
        return [outputs[index] for index in self._order]

    def _check_apart(self, outputs: list[Any], ran: int) -> None:
        for index, output in enumerate(outputs):
            if not self.keeps_apart(output, ran):
                found = (
                    f"{len(output)} rows" if isinstance(output, list) or output.ndim else "no rows"
                )
                raise BackendError(
                    f"{type(self).__name__}: output {index} has {found} for a batch of {ran}: the model does not keep items apart; "
                    "set max = 1"
                )

    def keeps_apart(self, output: Any, rows: int) -> bool:
        """Whether an output has a row for each row of the batch."""
        return (isinstance(output, list) or output.ndim > 0) and len(output) >= rows

    def _share_out(self, members: list[Member], outputs: list[Any]) -> None:
        counts = [member.rows for member in members]
        shares = [self._shares(output, counts) for output in outputs]
        for index, member in enumerate(members):
            parts = [share[index] for share in shares]
            member.item["result"] = parts[0] if len(parts) == 1 else parts

    def _shares(self, output: Any, counts: list[int]) -> Sequence[Any]:
        """What each member has of an output. Copies: a view would keep the whole batch alive as long as the slowest reader of one item."""
        if isinstance(output, list):
            ends = list(accumulate(counts))
            return [
                output[end - count : end] if self.keeps_apart(output, self._ran) else output
                for end, count in zip(ends, counts, strict=True)
            ]
        output = output.detach()
        if not self.keeps_apart(output, self._ran):
            return [output.clone(memory_format=torch.contiguous_format) for _ in counts]
        # One call for all: beside other threads, each is a wait for the GIL.
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


def _key(inputs: Sequence[torch.Tensor]) -> Hashable:
    """Of a batch where it lies: a graph reads the addresses that it was captured with."""
    return tuple([(tuple(tensor.shape), tensor.dtype, tensor.data_ptr()) for tensor in inputs])
