"""TorchExportTensor: `.pt2` files, which are programs of torch.export or packages that AOTInductor has compiled."""

from __future__ import annotations

import math
import os
import re
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from ...base import UNBOUNDED, BatchRange, Context
from ...errors import BackendError, InvalidInput
from ...gpu.device import choose_device
from ...item import Item
from .engine import Member
from .module import TorchModule, identity_of, reason_of
from .params import TorchParams
from .reading import dtype_text, widens

COMPILED = "data/aotinductor"
"""In the names of what only AOTInductor's packages hold."""

CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"
"""Compiled code takes shapes and dtypes on trust, and reads past the end of what is smaller, unless the environment says this."""

GUARD = re.compile(r"Guard failed: |input_handles\[\d+\]: ")
"""What exported programs and packages say of inputs that are not as they were promised."""

TOO_SMALL = re.compile(
    r"input_handles\[\d+\]: dim value is too small at 0, expected it to be >= (\d+)"
)
"""What a package says of a batch below its smallest, which it does not tell otherwise. Two, where the export did not say min = 1."""


class SmallBatchError(Exception):
    def __init__(self, smallest: int) -> None:
        super().__init__(smallest)
        self.smallest = smallest


class Port(NamedTuple):
    """An input of a program. `shape`: the range of each dimension, the batch first."""

    name: str
    dtype: torch.dtype
    shape: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return (
            f"{dtype_text(self.dtype)} of shape {'x'.join(['N', *map(_size_text, self.shape[1:])])}"
        )

    def takes(self, tensor: torch.Tensor) -> bool:
        return len(tensor.shape) == len(self.shape) and all(
            low <= size <= high
            for size, (low, high) in zip(tensor.shape[1:], self.shape[1:], strict=True)
        )


_loading = threading.Lock()
"""torch reads one program at a time: a second one meanwhile is an error (`_CURRENT_DESERIALIZER is already set`)."""


class TorchExportTensor(TorchModule):
    """What `backend.TorchExportTensor` is once it runs."""

    ports: tuple[Port, ...] = ()
    """Of a program; a package does not tell."""
    _shared: Any = None
    """Keeps what the instances share."""

    def choose_device(self, params: TorchParams, context: Context) -> torch.device:
        """A package runs where it was compiled for, so that is its device where the node names none."""
        path = context.resolve(params.model)
        if context.device or not path.is_file() or not _is_compiled(path):
            return choose_device(context.device)
        return choose_device(_compiled_for(path))

    def open(self, params: TorchParams, context: Context, device: torch.device) -> Any:
        if params.precision is not None:
            raise self._wrong(
                "precision",
                "a .pt2 file has the precision that it was exported with: export it anew, or leave this out",
            )
        path = self.file(params.model)
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                begin = min((each.header_offset for each in archive.infolist()), default=0)
        except (OSError, zipfile.BadZipFile) as error:
            raise BackendError(
                f"{self.who}: the model {path} can't be read, it is truncated or no .pt2 file: {error}"
            ) from error
        if begin:  # without its own directory, that of an archive inside is found
            raise BackendError(
                f"{self.who}: the model {path} can't be read: its end is missing, it is truncated or damaged"
            )
        if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
            raise BackendError(
                f"{self.who}: the model {path} is TorchScript or a state_dict, no exported program: see TorchScriptTensor"
            )
        try:
            return (
                self._open_package(path, device)
                if _is_compiled(path)
                else self._open_program(path, device)
            )
        except BackendError:
            raise
        except (
            Exception
        ) as error:  # zipfile's, json's, torch's: each step of reading the file has its own
            raise BackendError(
                f"{self.who}: the model {path} can't be loaded: {reason_of(error)}"
            ) from error

    # programs

    def _open_program(self, path: Path, device: torch.device) -> Any:
        self._shared = self.shared(
            identity_of(path), lambda: _Program(*self._load_program(path, device))
        )
        program, module = self._shared.parts
        names = program.graph_signature.user_inputs
        values = {
            node.name: node.meta.get("val")
            for node in program.graph.nodes
            if node.op == "placeholder"
        }
        ports = []
        for name in names:
            value = values.get(name)
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                raise BackendError(
                    f"{self.who}: the model {path}: input {name!r}: expected a tensor with a batch dimension"
                )
            ports.append(
                Port(
                    name,
                    value.dtype,
                    tuple([_range_of(size, program.range_constraints) for size in value.shape]),
                )
            )
        self.ports, self.inputs, self.required = tuple(ports), tuple(names), len(names)
        self.has_doubles = any(port.dtype == torch.float64 for port in ports)
        low, high = max(port.shape[0][0] for port in ports), min(port.shape[0][1] for port in ports)
        if low > high:
            sizes = ", ".join(f"{port.name} {_size_text(port.shape[0])}" for port in ports)
            raise BackendError(
                f"{self.who}: the model {path}: its inputs differ in their first dimension, which must be the batch: {sizes}"
            )
        self.model_range = BatchRange(low, high)
        return _Unflattened(module, program.call_spec.in_spec)

    def _load_program(self, path: Path, device: torch.device) -> tuple[Any, Any]:
        with _loading:
            program = torch.export.load(path)
        there = {
            value.device
            for value in (*program.state_dict.values(), *program.constants.values())
            if isinstance(value, torch.Tensor)
        }
        if there - {device} or device.type != "cpu":
            from torch.export.passes import (
                move_to_device_pass,
            )  # the program names devices in its code, too

            program = move_to_device_pass(program, device)
        return program, program.module()

    # packages

    def _open_package(self, path: Path, device: torch.device) -> Any:
        wanted = _compiled_for(path)
        if wanted != device.type:
            raise BackendError(
                f"{self.who}: the model {path} was compiled for {wanted}, and the node runs on {device}: set device = {wanted!r}"
            )
        os.environ.setdefault(CHECK_INPUTS, "1")  # read once, by the first run of each package
        captured = self._half.on_gpu and self.params.cuda_graphs and bool(self.example_shapes())

        def load() -> Any:
            from torch._inductor.package.package import load_package

            index = device.index if device.type == "cuda" else -1
            return load_package(
                str(path),
                run_single_threaded=captured,
                num_runners=1 if captured else self.context.instances,
                device_index=index,
            )

        # one that a graph is captured of must not be locked by its runners, and so can't be shared
        package = self._shared = (
            load() if captured else self.shared(identity_of(path, self.context.instances), load)
        )
        return _Unflattened(package, pytree.treespec_loads(package.loader.get_call_spec()[0]))

    # items

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        given = super().example_shapes()
        if (
            given
            or not self.ports
            or any(low != high for port in self.ports for low, high in port.shape[1:])
        ):
            return given
        first = self._mean is not None or self._std is not None
        return [
            ([low for low, _ in port.shape[1:]], torch.uint8 if first and not index else port.dtype)
            for index, port in enumerate(self.ports)
        ]

    def _read(self, item: Item) -> Member:
        member = super()._read(item)
        for index, (port, tensor) in enumerate(zip(self.ports, member.inputs, strict=False)):
            assert isinstance(tensor, torch.Tensor)  # exported programs take no texts
            if not port.takes(tensor) or not (
                widens(tensor.dtype, port.dtype) or self._becomes_float(index)
            ):
                found = f"{dtype_text(tensor.dtype)} of shape {'x'.join(map(str, tensor.shape))}"
                raise InvalidInput(f"{self.label(index)}: expected {port}, got {found}")
        return member

    def warm_up(self) -> None:
        try:
            super().warm_up()
        except SmallBatchError as small:
            self._pad_up_to(small.smallest)
            super().warm_up()

    def _run_group(self, members: list[Member]) -> None:
        try:
            super()._run_group(members)
        except SmallBatchError as small:
            self._pad_up_to(small.smallest)
            super()._run_group(members)

    def _pad_up_to(self, smallest: int) -> None:
        self.model_range = BatchRange(smallest, self.model_range.max)
        self._buckets = sorted({max(size, smallest) for size in self._buckets})

    def _becomes_float(self, index: int) -> bool:
        return index == 0 and (self._mean is not None or self._std is not None)

    def travels_as(self, index: int, tensor: torch.Tensor) -> torch.dtype:
        if not self.ports or self._becomes_float(index):
            return super().travels_as(index, tensor)
        return self.ports[index].dtype

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        try:
            return self.model(*inputs)
        except (AssertionError, RuntimeError) as error:
            if small := TOO_SMALL.match(str(error)):
                raise SmallBatchError(int(small[1])) from error
            if GUARD.match(str(error)):
                raise InvalidInput(f"TorchExportTensor: {reason_of(error)}") from error
            raise


class _Program:
    """What instances share of a program."""

    def __init__(self, program: Any, module: Any) -> None:
        self.parts = program, module


class _Unflattened:
    """A callable with arguments of any structure, as one of tensors in a row."""

    def __init__(self, function: Any, spec: Any) -> None:
        self._function = function
        self._spec = spec

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if len(inputs) != self._spec.num_leaves:
            raise InvalidInput(
                f"TorchExportTensor: the model has {self._spec.num_leaves} inputs, and data holds {len(inputs)}"
            )
        args, kwargs = pytree.tree_unflatten(inputs, self._spec)
        return self._function(*args, **kwargs)


def _is_compiled(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(COMPILED in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # what is wrong with it is said where it is loaded


def _compiled_for(path: Path) -> str:
    """`cpu` or `cuda`. Raises BackendError where the package does not tell."""
    try:
        loader: Any = torch._C._aoti.AOTIModelPackageLoader  # its stub lacks this method
        metadata = loader.load_metadata_from_package(str(path), "model")
        return str(metadata["AOTI_DEVICE_KEY"])
    except (RuntimeError, AttributeError, KeyError) as error:
        raise BackendError(
            f"TorchExportTensor: the model {path} can't be loaded as a package of AOTInductor: {reason_of(error)}"
        ) from error


def _range_of(size: Any, constraints: Any) -> tuple[int, int]:
    """The sizes that a dimension may have; one that is computed from others, any: the program checks it."""
    if isinstance(size, int):
        return size, size
    found = constraints.get(size.node.expr)
    if found is None:
        return 0, UNBOUNDED
    low, high = (
        int(bound) if math.isfinite(bound) else UNBOUNDED for bound in (found.lower, found.upper)
    )
    return (1 if low <= 2 else low), high  # 2 is how torch.export says that 1 was not looked at


def _size_text(size: tuple[int, int]) -> str:
    low, high = size
    if low == high:
        return str(low)
    return f"({low}..{'' if high == UNBOUNDED else high})"
