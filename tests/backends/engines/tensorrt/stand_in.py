"""A stand-in for TensorRT's runtime, which computes on the CPU.

It follows the rules in the docstrings of TensorRT's bindings, and a test compares its signatures
with theirs. It shows nothing about TensorRT's own runtime.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Barrier, BrokenBarrierError
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import torch

from penstock.backends.engines.tensorrt.library import Library

NUMPY: dict[str, Any] = {
    "FLOAT": np.float32,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "INT32": np.int32,
    "BF16": np.uint16,
}


PROFILE_TAKEN = (
    "IExecutionContext::setOptimizationProfileAsync: Error Code 3: API Usage Error (Optimization "
    "profile has been chosen for another IExecutionContext. Use another profileIndex or destroy "
    "the IExecutionContext that uses this profile.)"
)


@dataclass
class History:
    """What was done with a context, kept after the context is freed."""

    profile: int | None = None
    runs: list[tuple[Any, ...]] = field(default_factory=list)
    addresses: dict[str, int] = field(default_factory=dict)


class FakeContext:
    def __init__(self, engine: Any, history: History) -> None:
        self.engine, self.history = engine, history
        self.active: int | None = None
        self.shapes: dict[str, Any] = {}
        self.allocators: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile_index: Any, stream_handle: Any) -> Any:
        assert self.history.profile is None, "a context must keep its first profile"
        with self.engine.alone():
            if self.engine.one_context_a_profile and any(
                context.active == profile_index for context in set(self.engine.live) - {self}
            ):
                self.engine.logger.log(self.engine.trt.ILogger.Severity.ERROR, PROFILE_TAKEN)
                return False
            if self.engine.refusing:
                self.engine.logger.log(self.engine.trt.ILogger.Severity.ERROR, self.engine.refusing)
                return False
            self.active = self.history.profile = profile_index
            return True

    def set_input_shape(self, name: Any, shape: Any) -> Any:
        self.shapes[name] = shape
        if -1 not in self.engine.ins[name][1]:
            return tuple(shape) == tuple(self.engine.ins[name][1])
        low, _, high = self.engine.get_tensor_profile_shape(name, self.active)
        return len(shape) == len(low) and all(
            a <= b <= c for a, b, c in zip(low, shape, high, strict=True)
        )

    def set_tensor_address(self, name: Any, memory: Any) -> Any:
        self.history.addresses[name] = memory
        return memory != 0

    def infer_shapes(self) -> Any:
        return [name for name in self.engine.ins if name not in self.shapes]

    def get_tensor_shape(self, name: Any) -> Any:
        return self.engine.shape_of(name, self.shapes)

    def set_output_allocator(self, name: Any, output_allocator: Any) -> Any:
        self.allocators[name] = output_allocator
        return True

    def execute_async_v3(self, stream_handle: Any) -> Any:
        if self.engine.failing:
            self.engine.logger.log(self.engine.trt.ILogger.Severity.ERROR, self.engine.failing)
            return False
        arrays = [
            self.memory(self.history.addresses[name], self.shapes[name], dtype)
            for name, (dtype, _) in self.engine.ins.items()
        ]
        self.history.runs.append(tuple(self.shapes.values()))
        for (name, (dtype, _)), value in zip(
            self.engine.outs.items(), self.engine.compute(*arrays), strict=True
        ):
            address = self.history.addresses.get(name)
            if name in self.allocators:
                address = self.allocators[name].reallocate_output_async(
                    name, 0, value.nbytes, 256, stream_handle
                )
                self.allocators[name].notify_shape(name, value.shape)
            self.memory(address, value.shape, dtype)[...] = value
        return True

    @staticmethod
    def memory(address: Any, shape: Any, dtype: Any) -> Any:
        count = int(np.prod(shape)) * np.dtype(NUMPY[dtype]).itemsize
        content = memoryview((ctypes.c_byte * count).from_address(address))
        return np.frombuffer(content, NUMPY[dtype]).reshape(shape)


class FakeEngine:
    """An `ICudaEngine`. `ins` and `outs` are name -> (type, shape). `shapes` has functions from the
    inputs' shapes to an output's shape, for outputs whose shape differs from the first input's.

    `one_context_a_profile` is the rule of TensorRT 8, where the first context takes profile 0 by
    itself. `overlapped` tells whether two threads made contexts or chose profiles at once, which
    ended the process there.
    """

    def __init__(
        self,
        trt: Any,
        logger: Any,
        ins: Any,
        outs: Any,
        profiles: Any,
        compute: Any,
        shapes: Any = None,
    ) -> None:
        self.trt, self.logger, self.compute, self.profiles = trt, logger, compute, profiles
        self.ins, self.outs, self.shapes = ins, outs, shapes or {}
        self.contexts: list[History] = []
        self.live: WeakSet[FakeContext] = WeakSet()
        self.one_context_a_profile = False
        self.refusing = ""
        self.overlapped = False
        self.meeting: Barrier | None = None
        self.failing = ""
        self.no_contexts = False
        self.streamable_weights_size = 1000
        self.weight_streaming_budget_v2 = None

    @property
    def num_io_tensors(self) -> Any:
        return len(self.ins) + len(self.outs)

    @property
    def num_optimization_profiles(self) -> Any:
        return len(self.profiles)

    def get_tensor_name(self, index: Any) -> Any:
        return [*self.ins, *self.outs][index]

    def get_tensor_mode(self, name: Any) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.ins else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: Any) -> Any:
        return getattr(self.trt.DataType, {**self.ins, **self.outs}[name][0])

    def get_tensor_shape(self, name: Any) -> Any:
        return {**self.ins, **self.outs}[name][1]

    def get_tensor_location(self, name: Any) -> Any:
        return self.trt.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: Any, profile_index: Any) -> Any:
        assert -1 in self.ins[name][1], "an input without a free axis has no profile"
        return self.profiles[profile_index][name]

    def create_execution_context(self) -> Any:
        if self.no_contexts:
            self.logger.log(
                self.trt.ILogger.Severity.ERROR,
                "Error Code 2: OutOfMemory (Requested size was 99 bytes.)",
            )
            return None
        self.contexts.append(History())
        context = FakeContext(self, self.contexts[-1])
        if all(other.active != 0 for other in set(self.live)):
            context.active = 0
        self.live.add(context)
        return context

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Record whether two threads are in the block at once. `meeting` lets them meet."""
        if self.meeting is not None:
            with suppress(BrokenBarrierError):
                self.meeting.wait()
                self.overlapped = True
        yield

    def shape_of(self, name: Any, shapes: Any) -> Any:
        return self.shapes[name](shapes) if name in self.shapes else next(iter(shapes.values()))


class FakeRuntime:
    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.plans: list[bytes] = []
        self.validity = ("VALID", 0)

    def get_engine_validity(self, buffer: Any) -> Any:
        name, diagnostics = self.validity
        return getattr(self.engine.trt.EngineValidity, name), diagnostics

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        self.plans.append(serialized_engine)
        return self.engine


class FakeLibrary(Library):
    """The real library, with the fake runtime."""

    fakes: ClassVar[list[FakeRuntime]] = []

    def runtime(self, where: Any, *, on_gpu: Any) -> Any:
        return self.fakes[0]


def ranges(*sizes: Any, rest: Any = (3,), names: Any = ("a", "b")) -> Any:
    """Return a profile for each batch size, each beginning at 1."""
    return [{name: [(1, *rest), (size, *rest), (size, *rest)] for name in names} for size in sizes]


def pair(seed: Any, rows: Any = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand((rows, 3), generator=generator) for _ in range(2)]
