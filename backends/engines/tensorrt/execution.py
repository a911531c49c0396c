"""Run an engine on torch's tensors: execution contexts, addresses, and outputs.

The shape of an output may depend on the data.

This was written against the signatures and docstrings of TensorRT's bindings. It has run with 8.5
only (see docs/reference/tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ...base import BatchRange, Context
from ...errors import BackendError, InvalidInput
from ..shapes import check_batch_axes, shape_text, with_batch
from ..torch.reading import dtype_text
from ..warming import RefusedRunError
from .allocator import make_allocator
from .library import Library
from .loaded import LoadedEngine, ProfileHolder, failure
from .profiles import Profile, ShapeRange, describe, fitting

TORCH_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "FP8": torch.float8_e4m3fn,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
"""TensorRT's types of inputs and outputs -> torch's dtypes."""


class EngineTensor(NamedTuple):
    """An input or output of the engine. -1 in `shape` stands for any size.

    The batch is on `axis`.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    axis: int = 0

    def __str__(self) -> str:
        shape = shape_text([None if size == -1 else size for size in self.shape])
        return f"{dtype_text(self.dtype)} of shape {shape}"


class ProfileInGraphError(BackendError):
    """Raised if the only context that a profile can have belongs to a captured graph."""


class Execution:
    """The execution contexts of one instance.

    Call it with the inputs on the device, in the engine's order; it returns the outputs. All of
    them have the batch first, wherever the engine has it.

    Each profile has its own context, made when first used, because changing a context's profile
    waits for the device. A context whose run was captured in a CUDA graph runs nothing else, since
    the graph uses the context's memory and must find it unchanged. Where TensorRT gives a profile
    to one context, a batch runs in the smallest fitting profile that no other instance has.
    """

    def __init__(
        self,
        library: Library,
        engine: LoadedEngine,
        where: str,
        device: torch.device,
        stream: int,
        *,
        batch_axis: Mapping[str, int] | None = None,
        context: Context | None = None,
    ) -> None:
        """Read the engine's tensors and profiles. `context` is that of the instance.

        `batch_axis` has the axes of tensors, by name, that have the batch not first. Raises
        ConfigError if it does not fit.
        """
        self.where = where
        self._context = context = context or Context()
        self._library = library
        self._loaded = engine
        self._engine = engine.cuda_engine
        self._device = device
        self._stream = stream
        trt = library.trt
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        self.inputs = [
            self._port(name)
            for name in names
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        ]
        self.outputs = [
            self._port(name)
            for name in names
            if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        ]
        axes = batch_axis or {}
        ranks = {port.name: len(port.shape) for port in (*self.inputs, *self.outputs)}
        check_batch_axes(axes, ranks, context.node)
        self.inputs, self.outputs = (
            [port._replace(axis=axes.get(port.name, 0)) for port in ports]
            for ports in (self.inputs, self.outputs)
        )
        self.profiles = [
            self._profile(index) for index in range(self._engine.num_optimization_profiles)
        ]
        batches = {port.shape[port.axis] if port.shape else None for port in self.inputs}
        if len(batches) != 1 or None in batches:
            ports = ", ".join(f"{port.name} ({port})" for port in self.inputs)
            raise BackendError(
                f"{where}: expected inputs with the batch as their first axis, open in all of them "
                f"or of one size in all; found {ports}; batch_axis = {{ NAME = 1 }} names another "
                "axis"
            )
        self._chooses = any(-1 in port.shape for port in self.inputs)
        """False for fixed shapes: all contexts are in the one profile from the start, and TensorRT
        8 would refuse to choose it for a second one.
        """
        self._contexts: dict[int, _Context] = {}
        self._captured: list[_Context] = []

    @property
    def range(self) -> BatchRange:
        """The batch sizes that the profiles take."""
        name, axis = self.inputs[0].name, self.inputs[0].axis
        return BatchRange(
            min(profile[name].min[axis] for profile in self.profiles),
            max(profile[name].max[axis] for profile in self.profiles),
        )

    def largest(self, inner: Mapping[str, Sequence[int]]) -> int:
        """Return the largest batch of items whose shapes, without the batch axis, are `inner`.

        0 if no profile takes them.
        """
        fitting = [
            profile
            for profile in self.profiles
            if all(
                profile[port.name].holds_inner(inner[port.name], port.axis) for port in self.inputs
            )
        ]
        first = self.inputs[0]
        return max((profile[first.name].max[first.axis] for profile in fitting), default=0)

    def close(self) -> None:
        """Free the contexts. The stream must have finished."""
        self._free([*self._contexts.values(), *self._captured])
        self._contexts.clear()
        self._captured.clear()

    def free_captured(self) -> None:
        """Free the contexts of graphs that are gone."""
        self._free(self._captured)
        self._captured.clear()

    def _free(self, contexts: Sequence[_Context]) -> None:
        self._loaded.free(
            [context.holder for context in contexts], [context.take() for context in contexts]
        )

    def rows(self, count: int, inner: Sequence[Sequence[int]]) -> int:
        """Return how many rows a batch of `count` must be padded to, so that some profile takes it.

        That is `count`, or the least batch of a profile that begins later. `inner` has the shapes
        of the inputs, without the batch axis. Raises InvalidInput if no profile takes the batch.
        """
        fitting = [count] if self._fitting(count, inner) else []
        first = self.inputs[0]
        later = (profile[first.name].min[first.axis] for profile in self.profiles)
        fitting += [size for size in sorted(later) if size > count and self._fitting(size, inner)]
        if not fitting:
            shapes = ", ".join(
                f"{port.name} {shape_text(with_batch(count, shape, port.axis))}"
                for port, shape in zip(self.inputs, inner, strict=True)
            )
            raise InvalidInput(
                f"{self.where}: {shapes} fits no profile of the engine: expected "
                f"{describe(self.profiles)}"
            )
        return fitting[0]

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        fitting = self._fitting(len(inputs[0]), [tensor.shape[1:] for tensor in inputs])
        if not fitting:
            raise BackendError(
                f"{self.where}: {[tuple(tensor.shape) for tensor in inputs]} fits no profile of "
                f"the engine: expected {describe(self.profiles)}"
            )
        with self._library.listening() as reported:
            index = self._prepare(fitting, len(inputs[0]), reported)
            outputs = self._contexts[index].run(inputs, reported)
        if self._stream and torch.cuda.is_current_stream_capturing():
            self._captured.append(self._contexts.pop(index))
        return outputs

    def _fitting(self, rows: int, inner: Sequence[Sequence[int]]) -> list[int]:
        return fitting(
            self.profiles,
            {
                port.name: with_batch(rows, shape, port.axis)
                for port, shape in zip(self.inputs, inner, strict=True)
            },
        )

    def _prepare(self, profiles: Sequence[int], rows: int, reported: list[str]) -> int:
        """Return the first of these profiles in which there is or can be a context.

        Raises BackendError if contexts of other instances have all of them, and ProfileInGraphError
        if one of a graph has the first: another profile is left to another instance.
        """
        for index in profiles:
            if index in self._contexts:
                return index
            holder = ProfileHolder(
                index, f"instance {self._context.instance} of node {self._context.node!r}"
            )
            made = self._loaded.make_context(
                holder,
                self._stream,
                reported,
                f"{self.where}: instance {self._context.instance}",
                choose=self._chooses,
            )
            if made is not None:
                self._contexts[index] = _Context(self, made, holder)
                return index
            if any(context.holder.profile == index for context in self._captured):
                raise ProfileInGraphError(
                    f"{self.where}: TensorRT gives profile {index} to one execution context, and a "
                    "CUDA graph has it"
                )
        held = ", ".join(
            f"{index} ({describe([self.profiles[index]])}) is held by "
            f"{' and '.join(holder.instance for holder in self._loaded.holders(index))}"
            for index in profiles
        )
        example = ";".join([str(self.range.max)] * max(2, self._context.instances))
        raise BackendError(
            f"{self.where}: instance {self._context.instance} has no profile for a batch of "
            f"{rows}: this {self._library.name} {self._library.version} gives a profile to one "
            f"execution context, and profile {held}. Use TensorRT 10 or later, whose contexts "
            f"share profiles; or instance_num = 1; or as many profiles as instances (max = "
            f'"{example}")'
        )

    def _port(self, name: str) -> EngineTensor:
        dtype, trt = self._engine.get_tensor_dtype(name), self._library.trt
        if dtype.name not in TORCH_DTYPES:
            raise BackendError(
                f"{self.where}: tensor {name} is {dtype.name}: expected one of "
                f"{', '.join(TORCH_DTYPES)}"
            )
        if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BackendError(
                f"{self.where}: tensor {name} is a shape tensor: expected inputs and outputs that "
                "are data"
            )
        return EngineTensor(
            name, TORCH_DTYPES[dtype.name], tuple(self._engine.get_tensor_shape(name))
        )

    def _profile(self, index: int) -> Profile:
        profile = {}
        for port in self.inputs:
            shapes = (
                [port.shape] * 3
                if -1 not in port.shape
                else self._engine.get_tensor_profile_shape(port.name, index)
            )
            profile[port.name] = ShapeRange(*[tuple(shape) for shape in shapes])
        return profile


class _Context:
    """An `IExecutionContext` that stays in one profile."""

    __slots__ = ("_allocators", "_context", "_owner", "holder")

    def __init__(self, owner: Execution, context: Any, holder: ProfileHolder) -> None:
        self._owner = owner
        self._context: Any = context
        self.holder = holder
        self._allocators: dict[str, Any] = {}

    def take(self) -> Any:
        """Return the context without keeping it."""
        context, self._context = self._context, None
        return context

    def run(self, inputs: Sequence[torch.Tensor], reported: list[str]) -> list[torch.Tensor]:
        """Enqueue a run on the stream and return its outputs.

        The inputs must not move or change until the stream has finished.
        """
        owner, context = self._owner, self._context
        # Copies live until the run is enqueued: an output must not get the memory of one.
        inputs = [
            tensor.movedim(0, port.axis).contiguous()
            for port, tensor in zip(owner.inputs, inputs, strict=True)
        ]
        for port, tensor in zip(owner.inputs, inputs, strict=True):
            if not context.set_input_shape(
                port.name, tuple(tensor.shape)
            ) or not context.set_tensor_address(port.name, tensor.data_ptr()):
                raise failure(
                    f"{owner.where}: TensorRT refuses input {port.name} of shape "
                    f"{shape_text(tensor.shape)}",
                    reported,
                )
        if missing := context.infer_shapes():
            raise BackendError(
                f"{owner.where}: TensorRT lacks the shapes or values of {', '.join(missing)}"
            )
        outputs = [self._prepare(port) for port in owner.outputs]
        if not context.execute_async_v3(owner._stream):
            text = f"{owner.where}: TensorRT could not run a batch"
            raise failure(text, reported, RefusedRunError)
        made = [
            self._allocators[port.name].tensor(port.dtype) if output is None else output
            for port, output in zip(owner.outputs, outputs, strict=True)
        ]
        return [
            output.movedim(port.axis, 0) if port.axis else output
            for port, output in zip(owner.outputs, made, strict=True)
        ]

    def _prepare(self, port: EngineTensor) -> torch.Tensor | None:
        """Allocate an output and give TensorRT its address.

        Return None for an output whose shape depends on the data: its allocator has it after the
        run.
        """
        shape = tuple(self._context.get_tensor_shape(port.name))
        if -1 in shape:
            if port.name not in self._allocators:
                allocator = make_allocator(self._owner._library.trt, self._owner._device)
                if not self._context.set_output_allocator(port.name, allocator):
                    raise BackendError(
                        f"{self._owner.where}: TensorRT takes no allocator for output {port.name}"
                    )
                self._allocators[port.name] = allocator
            return None
        output = torch.empty(shape, dtype=port.dtype, device=self._owner._device)
        if not self._context.set_tensor_address(port.name, output.data_ptr()):
            raise BackendError(
                f"{self._owner.where}: TensorRT refuses the memory of output {port.name}"
            )
        return output
