"""ONNX Runtime on the CPU: the engine where there is no GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .. import timeline
from ..base import UNBOUNDED, Backend, BatchRange, Context, Params, Signature, TensorPort
from ..errors import BackendError, ConfigError, InvalidInput, Problem
from ..item import Item
from ..params import EngineParams, why_no_file
from .encryption import is_encrypted, read_model
from .normalise import channels_last, fuse_normalisation
from .postprocess import PostProcessing

logger = logging.getLogger("penstock.onnx")

SEVERITIES = {"verbose": 0, "info": 1, "warning": 2, "error": 3}

DTYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "string": np.object_,
    "bool": np.bool_,
}
"""ONNX Runtime's names where they are not NumPy's."""

UNBOUNDED_LARGEST = 8
"""The batch to warm up for where neither the model nor the node says how large batches get."""

T = TypeVar("T")

MAX_BUFFERED_SHAPES = 4
"""Batch buffers kept for an input whose height and width vary; each may be megabytes."""


class OnnxParams(EngineParams):
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads of each instance; not given: the machine's processors, shared among the instances.",
    )


class Port(NamedTuple):
    """An input or output of the model. None in `shape`: any size; None as `dtype`: one that NumPy lacks."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {shape_text(self.shape)}"


class OnnxTensor(Backend):
    """Runs an ONNX model by ONNX Runtime.

    `data`: an array with the batch dimension, N×..., N = `request_size` (1 where the item has none), or a list of them in the
    order of the model's inputs. `result`: the output, N×..., or a list of them. With `mean` or `std` the first input is uint8
    (see normalise.py). A dtype that widens without loss is converted. Another shape or dtype is an `InvalidInput`: raised where
    the item is alone, else in its `error`.

    Items of different shapes may share a forward: each shape is one run. A model with a fixed batch size runs padded with zeros.
    """

    parameters: ClassVar[type[Params] | None] = OnnxParams

    session: Any = None
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    @classmethod
    def declared_range(cls, params: OnnxParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        """What one run may not mix: shapes behind the batch dimension, and dtypes."""
        data = item.get("data")
        if isinstance(data, np.ndarray):
            return data.shape[1:], data.dtype
        if isinstance(data, list | tuple):
            return tuple(
                [
                    (array.shape[1:], array.dtype) if isinstance(array, np.ndarray) else None
                    for array in data
                ]
            )
        return None

    def init(self, params: OnnxParams, context: Context) -> None:
        """Raises BackendError, naming the path, for a missing or unreadable model; ConfigError for a key that does not fit it."""
        if context.device not in ("", "cpu"):
            raise _config_error(
                context,
                "device",
                f"{context.device!r} is wanted, and OnnxTensor runs on the CPU alone",
            )
        if params.precision not in (None, "fp32") and context.instance == 0:
            extra = {"pipeline": context.pipeline, "node": context.node}
            logger.warning(
                "%s: OnnxTensor runs %s as it is: precision is for GPUs",
                context.node,
                params.model,
                extra=extra,
            )
        self._post = PostProcessing(params, context.node, "OnnxTensor")
        self.session = _open(context.resolve(params.model), params, context)
        self.inputs = reorder(
            [_port(node) for node in self.session.get_inputs()],
            params.input_reorder,
            "input_reorder",
            context,
        )
        self.outputs = reorder(
            [_port(node) for node in self.session.get_outputs()],
            params.output_reorder,
            "output_reorder",
            context,
        )
        self._post.check([port.shape for port in self.outputs])
        self._output_names = [port.name for port in self.outputs]
        self._buffers: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}

        # Items can share a run if all inputs and outputs have the batch first, all of any size or all of one.
        sizes = {port.shape[0] if port.shape else 0 for port in self.inputs}
        answers = {port.shape[0] if port.shape else 0 for port in self.outputs}
        self._batched = len(sizes) == 1 and 0 not in sizes and answers <= sizes | {None}
        self._fixed = next(iter(sizes)) if self._batched else None
        if all(port.dtype is not None for port in (*self.inputs, *self.outputs)):
            self.signature = Signature(
                self._signed(self.inputs),
                None if self._post.active else self._signed(self.outputs),
                self._batched,
            )
        declared = params.declared_range()
        bounds = [
            bound
            for bound in (declared.max, context.max, self._fixed)
            if bound is not None and bound != UNBOUNDED
        ]
        self.max = min(bounds, default=UNBOUNDED) if self._batched else 1
        self._largest = self.max if self.max != UNBOUNDED else UNBOUNDED_LARGEST
        self.min = self._fixed or min(max(declared.min, context.min or 1), self.max)
        self.min = min(self.min, self.max)
        self._known_shapes = _shapes(params.max)

    def _signed(self, ports: Sequence[Port]) -> tuple[TensorPort, ...]:
        """For clients: a fixed batch is one of any size to them."""
        return tuple(
            TensorPort(
                port.name,
                "string" if port.dtype == np.object_ else str(port.dtype),
                tuple(
                    -1 if size is None or (self._batched and not axis) else size
                    for axis, size in enumerate(port.shape)
                ),
            )
            for port in ports
        )

    def warm_up(self) -> None:
        """Run zeros at 1, 2, 4 ... `max`, so that memory is there; not where the model leaves a shape open that `max` does not tell."""
        arrays = []
        for index, port in enumerate(self.inputs):
            given = self._known_shapes[index] if index < len(self._known_shapes) else ()
            shape = given[1:] if len(given) == len(port.shape) > 0 else port.shape[1:]
            lead = port.shape[:1] if not self._batched else (1,)
            if port.dtype is None or port.dtype == np.object_ or None in (*lead, *shape):
                return
            arrays.append(np.zeros([size or 0 for size in (*lead, *shape)], port.dtype))
        size = 1
        while size < self._largest * 2:
            self.forward([{"data": arrays} for _ in range(min(size, self._largest))])
            size *= 2

    def forward(self, batch: list[Item]) -> None:
        groups: dict[Hashable, list[tuple[Item, list[NDArray[Any]]]]] = {}
        for position, item in enumerate(batch):
            try:
                arrays = self._read(item)
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error
                continue
            key = tuple([array.shape[1:] for array in arrays]) if self._batched else position
            groups.setdefault(key, []).append((item, arrays))
        for members in groups.values():
            self._run(members)

    def close(self) -> None:
        self.session = None
        self._buffers = {}
        super().close()

    def _read(self, item: Item) -> list[NDArray[Any]]:
        """The item's arrays, checked against the model's inputs."""
        data = item["data"]
        values = data if isinstance(data, list | tuple) else [data]
        if len(values) != len(self.inputs):
            names = ", ".join(port.name for port in self.inputs)
            raise InvalidInput(
                f"OnnxTensor: the model has {len(self.inputs)} inputs ({names}), and data holds {len(values)}"
            )
        size = item.get("request_size", 1)
        arrays = []
        for port, value in zip(self.inputs, values, strict=True):
            if not hasattr(value, "__array__"):
                raise InvalidInput(
                    f"OnnxTensor: input {port.name}: expected {port}, got {type(value).__name__}"
                )
            array = np.asarray(value)
            if not _dtype_fits(array.dtype, port.dtype) or not self._shape_fits(
                array.shape, port.shape
            ):
                raise InvalidInput(
                    f"OnnxTensor: input {port.name}: expected {port}, got {array.dtype} of shape {shape_text(array.shape)}"
                )
            if self._batched and array.shape[0] != size:
                raise InvalidInput(
                    f"OnnxTensor: input {port.name}: expected {size} (the item's request_size) as batch dimension, "
                    f"got shape {shape_text(array.shape)}"
                )
            arrays.append(array)
        return arrays

    def _shape_fits(self, found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
        start = 1 if self._batched else 0
        return len(found) == len(expected) and all(
            want is None or want == got
            for want, got in zip(expected[start:], found[start:], strict=True)
        )

    def _run(self, members: list[tuple[Item, list[NDArray[Any]]]]) -> None:
        """One run of the session over items of one shape.

        Plain `run`, not I/O binding: on the CPU it wraps contiguous arrays without a copy, and the answers are NumPy's own.
        Measured: ResNet-18 the same within noise (17 ms, 8 images 126 ms), a tiny model 4 µs instead of 6 µs.
        """
        counts = [arrays[0].shape[0] if self._batched else 1 for _, arrays in members]
        total = sum(counts)
        rows = self._fixed or total
        alone = len(members) == 1 and (not self._batched or rows == total)
        if alone:
            feed = {
                port.name: np.ascontiguousarray(array, port.dtype)
                if array.ndim
                else array.astype(port.dtype)
                for port, array in zip(self.inputs, members[0][1], strict=True)
            }
        else:
            with timeline.span("assembly", rows=rows):
                feed = {
                    port.name: self._assemble(index, members, rows)
                    for index, port in enumerate(self.inputs)
                }
        with timeline.span("run", rows=total):
            outputs = self._post.apply(self.session.run(self._output_names, feed))
        if alone:
            members[0][0]["result"] = outputs[0] if len(outputs) == 1 else outputs
            self._post.answer(members[0][0])
            return
        for index, output in enumerate(outputs):
            if output.ndim == 0 or output.shape[0] != rows:
                name = self.outputs[0 if self._post.active else index].name
                raise BackendError(
                    f"OnnxTensor: output {name} has shape {shape_text(output.shape)} for a batch of {rows}: "
                    "the model does not keep items apart; set max = 1"
                )
        start = 0
        for (item, _), count in zip(members, counts, strict=True):
            # Copies: a view would keep the whole batch alive as long as the slowest reader of one item.
            parts = [output[start : start + count].copy() for output in outputs]
            item["result"] = parts[0] if len(parts) == 1 else parts
            self._post.answer(item)
            start += count

    def _assemble(
        self, index: int, members: list[tuple[Item, list[NDArray[Any]]]], rows: int
    ) -> NDArray[Any]:
        """The batch of one input, written into a buffer that is kept (fresh megabytes cost page faults at every run)."""
        port, shape = self.inputs[index], members[0][1][index].shape[1:]
        buffer = self._buffers.get((port.name, shape))
        if buffer is None or len(buffer) < rows:
            if len(self._buffers) >= MAX_BUFFERED_SHAPES * len(self.inputs):
                self._buffers.clear()
            buffer = self._buffers[port.name, shape] = np.zeros(
                (max(rows, self._largest), *shape), port.dtype
            )
        start = 0
        for _, arrays in members:
            stop = start + len(arrays[index])
            buffer[start:stop] = arrays[index]
            start = stop
        buffer[start:rows] = 0 if port.dtype != np.object_ else ""
        return buffer[:rows]


def _open(path: Path, params: OnnxParams, context: Context) -> Any:
    """The session, with `mean` and `std` fused into the model."""
    import onnxruntime

    if not path.is_file():
        raise BackendError(f"OnnxTensor: the model {path} {why_no_file(path)}")
    plain = _decrypted(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = params.threads or max(1, _processors() // context.instances)
    options.inter_op_num_threads = 1
    # A pool that spins between operators takes the processors that the other instances and the event loop need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = SEVERITIES[params.log_level or "error"]
    source: str | bytes = str(path) if plain is None else plain
    try:
        nhwc = getattr(params, "data_format", "nchw") == "nhwc"  # ModelTensor's key
        if nhwc or params.mean is not None or params.std is not None:
            import onnx

            model = (
                onnx.load(path, load_external_data=False)
                if plain is None
                else onnx.load_model_from_string(plain)
            )
            key = "data_format"
            try:
                if nhwc:
                    channels_last(model)
                key = "mean" if params.mean is not None else "std"
                if params.mean is not None or params.std is not None:
                    fuse_normalisation(model, params.mean, params.std)
            except ValueError as error:
                raise _config_error(context, key, str(error)) from error
            source = model.SerializeToString()
        if isinstance(source, bytes):
            # Weights in a file beside the model stay there, however large.
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent)
            )
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except ConfigError:
        raise
    except Exception as error:  # ONNX Runtime's and protobuf's have no base of their own
        raise BackendError(f"OnnxTensor: the model {path} can't be loaded: {error}") from error


def _decrypted(path: Path) -> bytes | None:
    """The content of an `.encrypted` file; None for a plain one, which ONNX Runtime reads by itself."""
    if not is_encrypted(path):
        return None
    try:
        return read_model(path)
    except OSError as error:
        raise BackendError(
            f"OnnxTensor: the model {path} can't be read: {error.strerror}"
        ) from error
    except BackendError as error:
        raise type(error)(f"OnnxTensor: {error}") from error


def shape_text(shape: Sequence[int | None]) -> str:
    return "x".join("N" if size is None else str(size) for size in shape) or "()"


def _port(node: Any) -> Port:
    name = node.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype(DTYPES.get(name, name))
    except TypeError:
        dtype = None
    return Port(
        node.name, dtype, tuple(size if isinstance(size, int) else None for size in node.shape)
    )


def _dtype_fits(found: np.dtype[Any], expected: np.dtype[Any] | None) -> bool:
    if expected is None or found == expected:
        return True
    if expected == np.object_:
        return found.kind == "U"
    return found.kind != "O" and np.can_cast(found, expected, "safe")


def reorder(ports: list[T], order: str | None, key: str, context: Context) -> tuple[T, ...]:
    """`"1,0"`: the model's second first."""
    if not order:
        return tuple(ports)
    indices = [int(part) if part.strip().isdigit() else -1 for part in order.split(",")]
    if sorted(indices) != list(range(len(ports))):
        raise _config_error(
            context, key, f"{order!r} must hold each of 0 to {len(ports) - 1} once, as in '1,0'"
        )
    return tuple(ports[index] for index in indices)


def _shapes(text: str | None) -> list[tuple[int, ...]]:
    """The shapes in `max` (last profile), by input; a bare batch size is a shape of one number."""
    if text is None:
        return []
    return [
        tuple(int(size) for size in shape.split("x")) for shape in text.split(";")[-1].split(",")
    ]


def _config_error(context: Context, key: str, message: str) -> ConfigError:
    return ConfigError([Problem(message, node=context.node, key=key)])


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
