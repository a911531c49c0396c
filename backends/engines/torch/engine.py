"""What the torch engines have in common: reading items, batches in buckets, graphs, and answers that own their memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch

from ...base import UNBOUNDED, Backend, BatchRange, Context, Params
from ...device import DeviceHalf, buckets, choose_device
from ...errors import BackendError, ConfigError, InvalidInput, Problem
from ...item import Item
from ..params import EngineParams
from .params import TorchParams

UNBOUNDED_LARGEST = 8
"""The batch to prepare for where the node does not say how large batches get."""

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Model = Callable[..., Any]
"""Of the inputs in order: a tensor, or a tuple, list or dict of tensors."""

Input: TypeAlias = torch.Tensor | list[str]


class Member(NamedTuple):
    """One item of a batch, read. Items of one `kind` may share a run."""

    item: Item
    inputs: list[Input]
    rows: int
    names: tuple[str, ...]
    kind: Hashable


class TorchEngine(Backend):
    """Runs a model by torch, on a GPU where there is one.

    `data`: a tensor or array with the batch dimension, N x ..., N = `request_size` (1 where the item has none), or a list of them in
    the order of the model's inputs. `result`: the output as a tensor on the CPU, N x ..., or a list of them. With `mean` or `std` the
    first input may be uint8: it travels so, and becomes (x - mean) / std on the device.

    On a GPU, batches are padded up to a bucket (1, 2, 4 ... `max`) where a CUDA graph was captured for it, at warm-up: where `max`
    tells the shapes (`8x3x224x224`) or `example_shapes` knows them. What the device reports is of the batch that just ran: every
    batch ends with a wait for its stream.
    """

    parameters: ClassVar[type[Params] | None] = TorchParams

    model: Model
    texts: frozenset[int] = frozenset()
    """The inputs that are lists of texts; set by `load`."""

    @classmethod
    def declared_range(cls, params: EngineParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        """What one run may not mix: shapes behind the batch dimension, and dtypes."""
        data = item.get("data")
        if isinstance(data, list | tuple):
            return tuple([(tuple(array.shape[1:]), array.dtype) if hasattr(array, "shape") else None for array in data])
        return (tuple(data.shape[1:]), data.dtype) if isinstance(data, np.ndarray | torch.Tensor) else None

    def init(self, params: TorchParams, context: Context) -> None:
        """Raises BackendError, naming the path, for a missing or unreadable model; ConfigError for a key that does not fit it."""
        self.params = params
        self.context = context
        self._half = DeviceHalf(choose_device(context.device), f"node {context.node!r}: {type(self).__name__}")
        self.device = str(self._half.device) if self._half.on_gpu else ""
        declared = params.declared_range()
        bounds = [bound for bound in (declared.max, context.max) if bound is not None and bound != UNBOUNDED]
        self.max = min(bounds, default=UNBOUNDED)
        self.min = min(max(declared.min, context.min or 1), self.max)
        self._capacity = self.max if self.max != UNBOUNDED else UNBOUNDED_LARGEST
        self._buckets = buckets(self._capacity)
        self._mean = self._statistic("mean", params.mean)
        self._std = self._statistic("std", params.std)
        self._precision = PRECISIONS.get(params.precision or "")
        self._order = _indices(params.output_reorder)
        if params.output_reorder and self._order is None:
            raise self._wrong("output_reorder", f"{params.output_reorder!r} must hold each index once, as in '1,0'")
        with self._half.errors("loading the model"), self.gradients_off():
            self.model = self.load(params, context, self._half.device)

    def load(self, params: Any, context: Context, device: torch.device) -> Model:
        """The model on the device."""
        raise NotImplementedError

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """Shape behind the batch dimension and dtype of each input, as far as they are known before an item comes; else empty."""
        return [(shape[1:], self._input_dtype(index)) for index, shape in enumerate(_shapes(self.params.max)) if len(shape) > 1]

    def warm_up(self) -> None:
        """Run zeros at every bucket, largest first, and capture graphs of it; not where the shapes are not known."""
        shapes = self.example_shapes()
        if not shapes:
            return
        for rows in reversed(self._buckets):
            zeros: list[Input] = [torch.zeros((rows, *shape), dtype=dtype) for shape, dtype in shapes]
            inputs = self._assemble([zeros], rows)
            with self._half.errors("warming up"), self.gradients_off():
                self._run(inputs)
                self._half.synchronize()
                if self._half.on_gpu and self.params.cuda_graphs:
                    self._half.capture(_key(inputs), lambda inputs=inputs: self._run(inputs))  # type: ignore[misc]

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
        self.__dict__.pop("model", None)
        half: DeviceHalf | None = getattr(self, "_half", None)
        if half is not None:
            half.close()
        super().close()

    def _read(self, item: Item) -> Member:
        """The item's inputs, in the model's order."""
        names, values = self.in_order(item["data"])
        size = item.get("request_size", 1)
        inputs: list[Input] = []
        for position, value in enumerate(values):
            found = as_texts(value) if position in self.texts else as_tensor(value, type(self).__name__, position)
            rows = found.shape[0] if isinstance(found, torch.Tensor) and found.ndim else len(found) if isinstance(found, list) else None
            if rows != size:
                shape = "x".join(map(str, found.shape)) or "()" if isinstance(found, torch.Tensor) else str(rows)
                expected = f"expected {size} (the item's request_size) as batch dimension"
                raise InvalidInput(f"{type(self).__name__}: input {position}: {expected}, got shape {shape}")
            inputs.append(found)
        kind = tuple([(tuple(each.shape[1:]), each.dtype) if isinstance(each, torch.Tensor) else None for each in inputs])
        return Member(item, inputs, size, names, (names, kind))

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        """What `data` holds, in the model's order; names only where the model wants them. Raises InvalidInput."""
        return (), data if isinstance(data, list | tuple) else [data]

    def _run_group(self, members: list[Member]) -> None:
        total = sum(member.rows for member in members)
        rows = next((size for size in self._buckets if size >= total), total) if self._half.on_gpu and not self.texts else total
        with self.gradients_off():
            with self._half.errors("running a batch"):
                inputs = self._assemble([member.inputs for member in members], rows)
                outputs = self._half.replay(_key(inputs)) if self._half.on_gpu and not self.texts else None
                if outputs is None:  # no graph: no padding either
                    outputs = self._run([each[:total] for each in inputs], members[0].names)
            fetched = iter(self._half.fetch([output for output in outputs if isinstance(output, torch.Tensor)]))
        self._share_out(members, [next(fetched) if isinstance(output, torch.Tensor) else output for output in outputs])

    def gradients_off(self) -> AbstractContextManager[Any]:
        return torch.inference_mode()

    def _assemble(self, members: list[list[Input]], rows: int) -> list[Any]:
        inputs: list[Any] = []
        for index, first in enumerate(members[0]):
            if isinstance(first, torch.Tensor):
                parts: Any = [member[index] for member in members]
                inputs.append(self._half.assemble(index, parts, rows, self._capacity, _travels_as(first)))
            else:
                inputs.append([text for member in members for text in member[index]])
        return inputs

    def _run(self, inputs: Sequence[Input], names: tuple[str, ...] = ()) -> list[Any]:
        """The model's outputs in order, of inputs on the device."""
        ready = [
            each if not isinstance(each, torch.Tensor) else self._normalised(each) if index == 0 else self._cast(each)
            for index, each in enumerate(inputs)
        ]
        outputs = self.order(self.call(ready, names))
        if self._precision is None:
            return outputs
        return [output.float() if isinstance(output, torch.Tensor) and output.is_floating_point() else output for output in outputs]

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        return self.model(*inputs)

    def order(self, found: Any) -> list[Any]:
        """The outputs in the order in which `result` holds them: tensors, and lists of texts."""
        if isinstance(found, dict):
            outputs = list(found.values())
        elif isinstance(found, list | tuple) and not all(isinstance(each, str) for each in found):
            outputs = list(found)
        else:
            outputs = [found]
        wrong = next((output for output in outputs if not isinstance(output, torch.Tensor | list)), None)
        if wrong is not None:
            raise BackendError(f"{type(self).__name__}: the model answers a {type(wrong).__name__}; expected a tensor, or several")
        if self._order is None:
            return outputs
        if len(self._order) != len(outputs):
            raise self._wrong(
                "output_reorder", f"{self.params.output_reorder!r} names {len(self._order)} outputs, the model has {len(outputs)}"
            )
        return [outputs[index] for index in self._order]

    def _share_out(self, members: list[Member], outputs: list[Any]) -> None:
        total = sum(member.rows for member in members)
        lengths = [len(output) if isinstance(output, list) or output.ndim else 0 for output in outputs]
        if len(members) > 1 and min(lengths) < total:
            index = lengths.index(min(lengths))
            raise BackendError(
                f"{type(self).__name__}: output {index} has {lengths[index]} rows for a batch of {total}: the model does not keep items "
                "apart; set max = 1"
            )
        start = 0
        for member in members:
            # Copies: a view would keep the whole batch alive as long as the slowest reader of one item.
            parts = [
                output[start : start + member.rows] if isinstance(output, list)
                else output[start : start + member.rows].clone() if length >= total
                else output.clone()
                for output, length in zip(outputs, lengths, strict=True)
            ]  # fmt: skip
            member.item["result"] = parts[0] if len(parts) == 1 else parts
            start += member.rows

    def _normalised(self, tensor: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std on the device, computed in float32 (16 bits lose digits)."""
        if self._mean is None and self._std is None:
            return self._cast(tensor)
        value = tensor.to(torch.float32)
        if self._mean is not None:
            value = value - _along_channels(self._mean, tensor)
        if self._std is not None:
            value = value / _along_channels(self._std, tensor)
        return self._cast(value)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._precision) if self._precision is not None and tensor.is_floating_point() else tensor

    def _input_dtype(self, index: int) -> torch.dtype:
        return torch.uint8 if index == 0 and (self._mean is not None or self._std is not None) else torch.float32

    def _statistic(self, key: str, values: tuple[float, ...] | None) -> torch.Tensor | None:
        if values is None:
            return None
        if key == "std" and 0 in values:
            raise self._wrong(key, f"must not contain 0, found {values}")
        return torch.tensor(values, dtype=torch.float32, device=self._half.device)

    def _wrong(self, key: str, message: str) -> ConfigError:
        return ConfigError([Problem(message, node=self.context.node, key=key)])


def _travels_as(tensor: torch.Tensor) -> torch.dtype:
    """Doubles, which NumPy makes wherever nobody says otherwise, are what models take as float32."""
    return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype


def as_texts(value: Any) -> list[str]:
    """An input of text: a list of str, or an array of such. Raises InvalidInput."""
    texts = value.tolist() if isinstance(value, np.ndarray) else [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str | bytes) for text in texts):
        raise InvalidInput(f"expected a list of texts, got {type(value).__name__}")
    try:
        return [text if isinstance(text, str) else text.decode() for text in texts]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"expected texts in UTF-8: {error}") from None


def as_tensor(value: Any, engine: str, position: int) -> torch.Tensor:
    """The value as a tensor, without a copy. Raises InvalidInput for what is none."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        # Arrays that can't be shared with torch are copied: other byte order, negative strides, not writable (torch would warn).
        if not value.dtype.isnative or any(stride < 0 for stride in value.strides) or not value.flags.writeable:
            value = np.array(value, value.dtype.newbyteorder("="))
        return torch.from_numpy(value)
    kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise InvalidInput(f"{engine}: input {position}: expected a tensor or an array of numbers, got {kind}")


def _along_channels(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The values shaped so that they lie along the channels: the second axis, or the last where only that one has as many."""
    count = len(values)
    if count == 1:
        return values
    if tensor.ndim > 1 and tensor.shape[1] == count:
        return values.view(1, count, *[1] * (tensor.ndim - 2))
    if tensor.ndim > 1 and tensor.shape[-1] == count:
        return values
    raise InvalidInput(
        f"mean and std have {count} values, and no axis of the image {'x'.join(map(str, tensor.shape))} has as many channels"
    )


def _indices(text: str | None) -> list[int] | None:
    """`"1,0"` as [1, 0]; None where it is not given, or no order."""
    found = [int(part) if part.strip().isdecimal() else -1 for part in (text or "").split(",")]
    return found if sorted(found) == list(range(len(found))) else None


def _key(inputs: Sequence[torch.Tensor]) -> Hashable:
    return tuple([(tuple(tensor.shape), tensor.dtype) for tensor in inputs])


def _shapes(text: str | None) -> list[tuple[int, ...]]:
    """The shapes in `max` (last profile), by input; a bare batch size is a shape of one number."""
    if text is None:
        return []
    return [tuple(int(size) for size in shape.split("x")) for shape in text.split(";")[-1].split(",")]
