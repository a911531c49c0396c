"""TorchRunner: one run of a model on torch's tensors, from its inputs to each item's results."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ...base import UNBOUNDED, Backend, BatchRange, Context
from ...errors import BackendError, ConfigError, Problem
from ...gpu.device import DeviceHalf
from ...item import Item
from ..reshape import Reshaping
from .reading import Input


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


class TorchRunner(Backend):
    """Assembles batches on the device, runs the model, and gives each item results that own their
    memory. `TorchEngine` decides which items share a run.
    """

    params: Any
    context: Context
    device: str
    reshape: Reshaping
    _half: DeviceHalf
    _order: list[int] | None
    _buckets: list[int]
    _capacity: int

    backend_name: ClassVar[str] = "TorchEngine"
    """The backend that files name (`TorchScriptTensor`); messages begin with it."""

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
    scores_only = False
    """True if the outputs after the first are derived from it: a classifier's classes, which may
    differ where two scores are nearly the same.
    """

    pads_always: ClassVar[bool] = False
    """True if a batch is padded to the next bucket also without a graph, because a size that has
    not run before takes long. Otherwise it is padded only up to the smallest that the model takes.
    """

    def input_axis(self, position: int) -> int:
        return self.input_axes[position] if position < len(self.input_axes) else 0

    def output_axis(self, position: int) -> int:
        return self.output_axes[position] if position < len(self.output_axes) else 0

    def _run_group(self, members: list[BatchMember]) -> None:
        total = sum(member.rows for member in members)
        ran = max(total, self.model_range.min)
        rows = self._padded_to(ran)
        with self.gradients_off():
            with self._half.errors("running a batch"):
                inputs = self._assemble([member.inputs for member in members], rows)
                with self._half.span("run", rows=total):
                    outputs = (
                        self._half.replay(key_of(inputs))
                        if self._half.on_gpu and not self.texts
                        else None
                    )
                    if outputs is not None or self.pads_always:
                        ran = rows
                    if outputs is None:
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
            if (self._half.on_gpu or self.pads_always) and not self.texts
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
        names = self.params.outputs
        if isinstance(answer, dict) and names and all(name in answer for name in names):
            return self.outputs_of([answer[name] for name in names])
        return self._ordered(self.outputs_of(answer))

    def outputs_of(self, answer: Any) -> list[Any]:
        """Return the outputs in the order in which the model gives them. Raises BackendError for
        what is neither a tensor nor a list of texts.
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
        return outputs

    def _ordered(self, outputs: list[Any]) -> list[Any]:
        if self._order is None:
            return outputs
        if self.params.outputs:
            if max(self._order) < len(outputs):
                return [outputs[index] for index in self._order]
            raise self._wrong(
                "outputs",
                f"{', '.join(self.params.outputs)} are wanted, but the model has {len(outputs)}",
            )
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
        if len(shares) == 1 and not (self.output_axes or self.params.reshape):
            for member, share in zip(members, shares[0], strict=True):
                member.item["result"] = share
            return
        for index, member in enumerate(members):
            results = [
                share[index].movedim(0, axis).contiguous()
                if (axis := self.output_axis(position))
                else share[index]
                for position, share in enumerate(shares)
            ]
            if self.params.reshape:
                results = [
                    self._reshaped(result, position) for position, result in enumerate(results)
                ]
            member.item["result"] = results[0] if len(results) == 1 else results

    def output_name(self, position: int) -> str:
        """Return the name of an output, by its place in `result`."""
        names = self.params.outputs
        return names[position] if position < len(names) else f"OUTPUT__{position}"

    def _reshaped(self, output: Any, position: int) -> Any:
        """Give an item's output the shape that the key `reshape` names. Texts become an array."""
        name = self.output_name(position)
        if name not in self.reshape:
            return output
        array = np.array(output, object) if isinstance(output, list) else output
        label = f"{self.backend_name}: output {name}"
        return array.reshape(self.reshape.output_shape(name, tuple(array.shape), label))

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

    def _wrong(self, key: str, message: str) -> ConfigError:
        return ConfigError([Problem(message, node=self.context.node, key=key)])


def key_of(inputs: Sequence[torch.Tensor]) -> Hashable:
    """Return the key of a CUDA graph: shapes, dtypes and addresses.

    A graph always reads the addresses that it was captured with.
    """
    return tuple([(tuple(tensor.shape), tensor.dtype, tensor.data_ptr()) for tensor in inputs])
