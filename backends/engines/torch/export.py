"""TorchExportEngine: `.pt2` files.

They are programs of torch.export, or packages that AOTInductor has compiled.
"""

from __future__ import annotations

import math
import os
import re
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from ...base import UNBOUNDED, BatchRange, Context
from ...errors import BackendError, InvalidInput
from ...gpu.device import choose_device
from ...item import Item
from ...text import message_of
from ..shapes import batch_first, check_batch_axes, shape_text, with_batch
from .module import TorchModule, identity_of, reason_of
from .params import TorchParams
from .reading import Input, dtype_text, widens
from .runner import BatchMember

PACKAGE_FOLDER = "data/aotinductor"
"""A folder inside a .pt2 file that only AOTInductor's packages have."""

CHECK_INPUTS = "AOTI_RUNTIME_CHECK_INPUTS"
"""The environment variable that makes compiled code check shapes and dtypes. Without it, the code
reads past the end of smaller inputs.
"""

WRONG_INPUT = re.compile(r"Guard failed: |input_handles\[\d+\]: ")
"""The beginnings of the errors of exported programs and packages for inputs that do not fit."""

BATCH_TOO_SMALL = re.compile(
    r"input_handles\[\d+\]: dim value is too small at 0, expected it to be >= (\d+)"
)
"""A package's error for a batch below its smallest. Only this error says how large a batch must
be.
"""


RUN_FAILED = "API call failed"
"""In the errors of a package on a GPU with torch 2.11, which only prints the reason."""

LEAST_BATCH_OF_PACKAGES = 2
"""The least batch that AOTInductor compiles for, also if the export said min = 1."""


class SmallBatchError(Exception):
    """Raised when a batch is smaller than a compiled package takes; `smallest` is what it takes."""

    def __init__(self, smallest: int) -> None:
        super().__init__(smallest)
        self.smallest = smallest


class ProgramInput(NamedTuple):
    """An input of a program.

    `shape` has the smallest and largest size of each dimension, the batch first. `axis` is where
    the program has the batch.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[tuple[int, int], ...]
    axis: int = 0

    def __str__(self) -> str:
        sizes = with_batch("N", [_size_text(size) for size in self.shape[1:]], self.axis)
        return f"{dtype_text(self.dtype)} of shape {'x'.join(sizes)}"

    def takes(self, tensor: torch.Tensor) -> bool:
        """Return whether the shape fits, the batch size aside."""
        return len(tensor.shape) == len(self.shape) and all(
            low <= size <= high
            for size, (low, high) in zip(tensor.shape[1:], self.shape[1:], strict=True)
        )


_loading = threading.Lock()
"""Held while torch reads a program. It reads one at a time: a second thread would get the error
`_CURRENT_DESERIALIZER is already set`. Packages, which are libraries that the process loads, are
also loaded and freed one at a time: torch says nothing of threads there.
"""


class TorchExportEngine(TorchModule):
    """Runs torch.export's programs and AOTInductor's packages: the engine of TorchExportTensor."""

    backend_name: ClassVar[str] = "TorchExportTensor"

    ports: tuple[ProgramInput, ...] = ()
    """The inputs of a program; empty for a package, which does not describe its inputs."""
    _shared: Any = None
    """Keeps alive the model that instances share, which `sharing` only refers to weakly."""

    def choose_device(self, params: TorchParams, context: Context) -> torch.device:
        """Return the node's device.

        A package whose node names none runs on the kind of device that it was compiled for.
        """
        path = context.resolve(params.model)
        if context.device or not path.is_file() or not _is_compiled(path):
            return choose_device(context.device)
        return choose_device(_compiled_for(path))

    def open(self, params: TorchParams, context: Context, device: torch.device) -> Any:
        if params.precision is not None:
            raise self._wrong(
                "precision",
                "a .pt2 file has the precision that it was exported with: export it again in "
                "another, or leave this key out",
            )
        path = self.file(params.model)
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                begin = min((entry.header_offset for entry in archive.infolist()), default=0)
        except (OSError, zipfile.BadZipFile) as error:
            raise BackendError(
                f"{self.prefix}: the model {path} can't be read: it is truncated or not a .pt2 "
                f"file: {error}"
            ) from error
        if begin:  # zipfile found the directory of an archive inside, since the file's own is gone
            raise BackendError(
                f"{self.prefix}: the model {path} can't be read: its end is missing, so it is "
                "truncated or damaged"
            )
        if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names):
            raise BackendError(
                f"{self.prefix}: the model {path} is TorchScript or a state_dict: expected an "
                "exported program; TorchScriptTensor runs TorchScript"
            )
        try:
            return (
                self._open_package(path, device)
                if _is_compiled(path)
                else self._open_program(path, device)
            )
        except BackendError:
            raise
        except Exception as error:  # each step of reading raises others: zipfile, json, torch
            raise BackendError(
                f"{self.prefix}: the model {path} can't be loaded: {reason_of(error)}"
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
                    f"{self.prefix}: the model {path}: input {name!r}: expected a tensor with a "
                    "batch dimension"
                )
            ports.append(
                ProgramInput(
                    name,
                    value.dtype,
                    tuple([_range_of(size, program.range_constraints) for size in value.shape]),
                )
            )
        self.ports, self.inputs, self.required = tuple(ports), tuple(names), len(names)
        self.output_count = len(program.graph_signature.user_outputs)
        self.has_doubles = any(port.dtype == torch.float64 for port in ports)
        return _Unflattened(module, program.call_spec.in_spec)

    def _place_batch(self) -> None:
        if not self.ports:
            return
        check_batch_axes(
            {port.name: self.input_axis(index) for index, port in enumerate(self.ports)},
            {port.name: len(port.shape) for port in self.ports},
            self.context.node,
        )
        self.ports = ports = tuple(
            port._replace(shape=batch_first(port.shape, axis), axis=axis)
            for index, port in enumerate(self.ports)
            for axis in [self.input_axis(index)]
        )
        low, high = max(port.shape[0][0] for port in ports), min(port.shape[0][1] for port in ports)
        if low > high and self.params.batched is False:
            low, high = 1, UNBOUNDED
        if low > high:
            sizes = ", ".join(f"{port.name} {_size_text(port.shape[0])}" for port in ports)
            raise BackendError(
                f"{self.prefix}: the model {self.params.model}: its inputs differ in their first "
                f"dimension ({sizes}): expected the batch dimension, the same for all; "
                "batch_axis = { NAME = 1 } names another axis, and batched = false runs each item "
                "alone, with any first dimensions"
            )
        self.model_range = BatchRange(low, high)

    def _load_program(self, path: Path, device: torch.device) -> tuple[Any, Any]:
        with _loading:
            program = torch.export.load(path)
        devices = {
            value.device
            for value in (*program.state_dict.values(), *program.constants.values())
            if isinstance(value, torch.Tensor)
        }
        if devices - {device} or device.type != "cpu":
            # Moving the weights alone won't do: the program names devices in its code, too.
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return program, program.module()

    # packages

    def _open_package(self, path: Path, device: torch.device) -> Any:
        compiled_for = _compiled_for(path)
        if compiled_for != device.type:
            raise BackendError(
                f"{self.prefix}: the model {path} was compiled for {compiled_for}, but the node "
                f"runs on {device}: set device = {compiled_for!r}"
            )
        os.environ.setdefault(CHECK_INPUTS, "1")  # each package reads it once, at its first run
        captured = self._half.on_gpu and self.params.cuda_graphs and bool(self.example_shapes())

        def load() -> Any:
            from torch._inductor.package.package import load_package

            index = device.index if device.type == "cuda" else -1
            with _loading:
                return load_package(
                    str(path),
                    run_single_threaded=captured,
                    num_runners=1 if captured else self.context.instances,
                    device_index=index,
                )

        # The runners of a shared package take a lock, and no CUDA graph can be captured of that.
        package = self._shared = (
            load() if captured else self.shared(identity_of(path, self.context.instances), load)
        )
        return _Unflattened(package, pytree.treespec_loads(package.loader.get_call_spec()[0]))

    def close(self) -> None:
        with _loading:
            super().close()
            self._shared = None

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

    def check_inputs(
        self, item: Item, names: tuple[str, ...], values: Sequence[Any]
    ) -> BatchMember:
        member = super().check_inputs(item, names, values)
        for index, (port, tensor) in enumerate(zip(self.ports, member.inputs, strict=False)):
            assert isinstance(tensor, torch.Tensor)  # exported programs take no texts
            if not port.takes(tensor) or not (
                widens(tensor.dtype, port.dtype) or self._becomes_float(index)
            ):
                given = f"{dtype_text(tensor.dtype)} of shape {shape_text(tensor.shape)}"
                raise InvalidInput(f"{self.label(index)}: expected {port}, found {given}")
        return member

    def warm_up_with(self, row: BatchMember) -> None:
        try:
            super().warm_up_with(row)
        except SmallBatchError as small:
            self._pad_up_to(small.smallest)
            super().warm_up_with(row)

    def _run_group(self, members: list[BatchMember]) -> None:
        try:
            super()._run_group(members)
        except SmallBatchError as small:
            self._pad_up_to(small.smallest)
            if not self.proven:  # the padding is rows beside the item's
                self.prove(members[0])
            if self.batched:
                super()._run_group(members)
                return
            for member in members:
                self._run_alone(member)

    def probe(self, rows: Sequence[list[Input]], names: tuple[str, ...]) -> list[NDArray[Any]]:
        try:
            return super().probe(rows, names)
        except SmallBatchError as small:
            self._pad_up_to(small.smallest)
            return super().probe(rows, names)

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
            if self.batched and (small := BATCH_TOO_SMALL.match(message_of(error))):
                raise SmallBatchError(int(small[1])) from error
            if self.batched and not self.ports and RUN_FAILED in message_of(error):
                rows = inputs[0].shape[self.input_axis(0)]
                if rows < LEAST_BATCH_OF_PACKAGES:
                    raise SmallBatchError(LEAST_BATCH_OF_PACKAGES) from error
            if WRONG_INPUT.match(message_of(error)):
                raise InvalidInput(f"TorchExportTensor: {reason_of(error)}") from error
            raise


class _Program:
    """A program and the module made of it, in one object that instances share.

    Weak references need a class of our own.
    """

    def __init__(self, program: Any, module: Any) -> None:
        self.parts = program, module


class _Unflattened:
    """A callable with arguments of any structure, made to take its tensors in a row."""

    def __init__(self, function: Any, spec: Any) -> None:
        self._function = function
        self._spec = spec

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if len(inputs) != self._spec.num_leaves:
            raise InvalidInput(
                f"TorchExportTensor: the model has {self._spec.num_leaves} inputs, but data holds "
                f"{len(inputs)}"
            )
        args, kwargs = pytree.tree_unflatten(inputs, self._spec)
        return self._function(*args, **kwargs)


def _is_compiled(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PACKAGE_FOLDER in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False  # `open` reports what is wrong with the file


def _compiled_for(path: Path) -> str:
    """Return the kind of device that a package was compiled for: `cpu` or `cuda`.

    Raises BackendError if the package does not say.
    """
    try:
        library: Any = torch._C  # its stub lacks this class
        loader = library._aoti.AOTIModelPackageLoader
        metadata = loader.load_metadata_from_package(str(path), "model")
        return str(metadata["AOTI_DEVICE_KEY"])
    except (RuntimeError, AttributeError, KeyError) as error:
        raise BackendError(
            f"TorchExportTensor: the model {path} can't be loaded as a package of AOTInductor: "
            f"{reason_of(error)}"
        ) from error


def _range_of(size: Any, constraints: Any) -> tuple[int, int]:
    """Return the smallest and the largest size of a dimension.

    A size computed from others has no bounds here: the program checks it.
    """
    if isinstance(size, int):
        return size, size
    bounds = constraints.get(size.node.expr)
    if bounds is None:
        return 0, UNBOUNDED
    low, high = (
        int(bound) if math.isfinite(bound) else UNBOUNDED for bound in (bounds.lower, bounds.upper)
    )
    # torch.export gives 2 as the lower bound if it did not look at size 1.
    return (1 if low <= 2 else low), high


def _size_text(size: tuple[int, int]) -> str:
    low, high = size
    if low == high:
        return str(low)
    return f"({low}..{'' if high == UNBOUNDED else high})"
