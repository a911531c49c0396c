"""OnnxTensor: ONNX Runtime on the CPU, the engine for machines without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .. import timeline
from ..base import UNBOUNDED, Backend, BatchRange, Context, Params, Signature, TensorPort
from ..errors import BackendError, InvalidInput
from ..item import Item
from ..params import EngineParams
from ..text import repr_of
from .onnx_ports import (
    OnnxTensorInfo,
    as_array,
    dtype_fits,
    listed,
    narrows,
    optional_ports_of,
    ports_of,
    shape_of,
    to_numpy,
)
from .onnx_session import config_error, open_session
from .postprocess import PostProcessing
from .processors import threads_per_instance
from .rows import (
    PROBE_ROWS,
    Row,
    first_reason,
    first_rows,
    further_rows_like,
    guesses,
    random_rows,
    row_at,
    rows_like,
    smallest_integers,
    verdict_of,
    why_mixed,
    wrong_rows,
)
from .shapes import (
    UNBOUNDED_WARM_UP_BATCH,
    batch_first,
    check_batch_axes,
    refuse_without_elements,
    reorder,
    shape_key,
    shape_text,
    shapes_of_last_profile,
    with_batch,
)
from .warming import refusals_as_warnings, warm_up_values, wrong_values

logger = logging.getLogger("penstock.onnx")

MAX_BUFFERED_SHAPES = 4
"""Batch buffers kept for an input whose height and width vary. Each may take megabytes."""


class OnnxParams(EngineParams):
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of each instance; default: the processors that the process may use, "
        "divided among the instances",
    )


class _Member(NamedTuple):
    """An item of a batch, with its inputs read and checked."""

    item: Item
    arrays: list[NDArray[Any]]
    """In the model's order, the batch axis first."""
    optional: dict[str, NDArray[Any]]
    """Those of the optional inputs that it gives."""


class OnnxTensor(Backend):
    """Runs an ONNX model with ONNX Runtime, on the CPU.

    `data`: an array with the batch dimension first, N×..., for an item of N rows, or a list of them
    in the order of the model's inputs, or a dict of them by name. `result`: the output, N×..., or a
    list of them. `batch_axis` names the tensors that have their batch on another axis. With `mean`
    or `std` the first input may be uint8 or of a floating type, and (x - mean) / std is computed
    inside the model.

    A dtype that widens without loss is converted, and float64 to float32. Any other dtype or shape
    is an `InvalidInput`: raised for an item that is alone in its batch, and otherwise set as the
    item's `error`.

    One batch may hold items of several shapes; each shape is a run of its own. A model with a fixed
    batch size runs padded with zeros.

    Items share a run only if the model is proven to keep rows apart (rows.py). Otherwise each item
    runs alone: `data` is what the model takes, with any first axis.

    Initializers that are also inputs of the graph are optional inputs, after the others. An item
    leaves them out, or has None in their place. One that gives any runs alone, since they have no
    batch axis.
    """

    parameters: ClassVar[type[Params] | None] = OnnxParams
    blocks = "it runs a model"

    session: Any = None
    inputs: tuple[OnnxTensorInfo, ...] = ()
    optional_inputs: tuple[OnnxTensorInfo, ...] = ()
    outputs: tuple[OnnxTensorInfo, ...] = ()

    @classmethod
    def declared_range(cls, params: OnnxParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: OnnxParams, context: Context) -> None:
        """Open the model.

        Raises BackendError, which names the path, for a missing or unreadable file; ConfigError for
        a key that does not fit the model.
        """
        if context.device not in ("", "cpu"):
            raise config_error(
                context,
                "device",
                f"device is {context.device!r}, but OnnxTensor runs only on the CPU: "
                'set device = "cpu", or use ModelTensor',
            )
        if params.precision not in (None, "fp32") and context.instance == 0:
            extra = {"pipeline": context.pipeline, "node": context.node}
            logger.warning(
                "node %r: OnnxTensor runs %s in the model's own precision: the key precision is "
                "for GPUs",
                context.node,
                params.model,
                extra=extra,
            )
        self._post = PostProcessing(params, context.node, "OnnxTensor")
        path = context.resolve_input(params.model)
        threads = params.threads or threads_per_instance(context.instances)
        self.session = open_session(path, params, context, threads)
        where = f"OnnxTensor: the model {path}"
        self.inputs = reorder(
            ports_of(self.session.get_inputs(), "input", where),
            params.input_reorder,
            "input_reorder",
            context,
        )
        self.optional_inputs = tuple(optional_ports_of(self.session, where))
        self.outputs = reorder(
            ports_of(self.session.get_outputs(), "output", where),
            params.output_reorder,
            "output_reorder",
            context,
        )
        self._post.check([port.shape for port in self.outputs])
        self._output_names = [port.name for port in self.outputs]
        self._buffers: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
        self._set_axes(params, context)

        self._where = f"{context.node}: OnnxTensor"
        self._extra = {"pipeline": context.pipeline, "node": context.node}
        self._model = params.model
        self._params, self._context = params, context
        self._options: Any = None
        """Options of the next run; None but for warm-up."""
        self._decide(params, context)
        optional = self._signed(self.optional_inputs)
        self.signature = Signature.of(
            (*self._signed(self.inputs), *(port._replace(optional=True) for port in optional)),
            None if self._post.active else self._signed(self.outputs),
            self._batched,
            (*self._input_axes, *(None for _ in optional)),
        )
        declared = params.declared_range(self._first_axis)
        self.max = self._bound(params, context) if self._batched else 1
        self._largest = self.max if self.max != UNBOUNDED else UNBOUNDED_WARM_UP_BATCH
        self.min = self._fixed or min(max(declared.min, context.min or 1), self.max)
        self.min = min(self.min, self.max)
        self._known_shapes = shapes_of_last_profile(params.max)

    def _set_axes(self, params: OnnxParams, context: Context) -> None:
        """Set the batch axis of each input and output."""
        ports = (*self.inputs, *self.outputs)
        check_batch_axes(
            params.batch_axis, {port.name: len(port.shape) for port in ports}, context.node
        )
        self._axis = {port.name: params.batch_axis.get(port.name, 0) for port in ports}
        self._input_axes = [self._axis[port.name] for port in self.inputs]
        self._first_axis = next(iter(self._input_axes), 0)
        self._output_axes = [self._axis[port.name] for port in self.outputs]
        if self._post.active and any(self._output_axes):
            message = f"{params.postprocessor} takes scores of shape NxK, with the batch on axis 0"
            raise config_error(context, "batch_axis", message)

    def _batch_size(self, port: OnnxTensorInfo) -> int | None:
        """Return the size of the batch axis: None if it is open, 0 for a tensor without axes."""
        return port.shape[self._axis[port.name]] if port.shape else 0

    def _bound(self, params: OnnxParams, context: Context) -> int:
        bounds = (params.declared_range(self._first_axis).max, context.max, self._fixed)
        return min(bound for bound in (*bounds, UNBOUNDED) if bound is not None)

    def _decide(self, params: OnnxParams, context: Context) -> None:
        """Decide whether items share runs: by the model's shapes, and then by a probe. Where the
        model can't be probed with random rows, the first items that would share a run decide.
        Raises ConfigError for `batched = true` with inputs that have no common first axis.
        """
        self._proven, self._fixed = True, None
        sizes = {self._batch_size(port) for port in self.inputs}
        reason = self._why_no_batch()
        self._batched = params.batched is not False and not reason
        if params.batched:
            if len(sizes) != 1 or 0 in sizes or not all(port.has_rows for port in self.outputs):
                raise config_error(context, "batched", f"is true, and {reason}")
            self._batched = True
        if self._batched:
            (self._fixed,) = sizes
        elif params.batched is None and context.instance == 0:
            self._tell(reason)
        most = self._bound(params, context)
        if not self._batched or params.batched or (most == 1 and self._fixed in (None, 1)):
            return  # it is decided, or no run has more than one row
        self._proven = False
        shapes = shapes_of_last_profile(params.max)
        given = [
            batch_first(
                shapes[index]
                if index < len(shapes) and len(shapes[index]) == len(port.shape) > 1
                else port.shape,
                axis,
            )[1:]
            for index, (port, axis) in enumerate(zip(self.inputs, self._input_axes, strict=True))
        ]
        self._probe_rows = self._fixed or min(PROBE_ROWS, most)
        self._verdict = verdict_of(params)
        values = warm_up_values(params, context)
        found = self._verdict.at_load(
            lambda: first_reason(
                [lambda: self._probe_with(values), lambda: self._probe_randomly(given)]
            )
        )
        if found is not None:
            self._settle(found)
        if context.instance != 0:
            return
        if found:
            self._tell(found)
        elif found is None:
            logger.info(
                "%s: %s refuses random rows: whether it keeps items apart is checked with the "
                "first items that could share a run",
                self._where,
                self._model,
                extra=self._extra,
            )

    def _probe_with(self, values: dict[str, NDArray[Any]] | None) -> str | None:
        """Probe with the rows of the values that the file gives for warm-up. Return what
        `_probe_randomly` returns.
        """
        if values is None:
            return None
        rows = first_rows(self._by_name(values), self._input_axes)
        return self._try_probe([self._read_values(row) for row in rows]) if rows else None

    def _try_probe(self, rows: Sequence[Row], *, as_alone: bool = True) -> str | None:
        try:
            return why_mixed(
                rows, self._probe, self._probe_rows, self._output_names, as_alone=as_alone
            )
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            logger.debug("%s: %s refuses a probe: %s", self._where, self._model, error)
            return None

    def _probe_randomly(self, given: Sequence[Sequence[int | None]]) -> str | None:
        """Probe with random rows of these shapes. Return why the model mixes rows, "" if it does
        not, None if it refuses all of them.
        """
        dtypes = [port.dtype or np.dtype(np.float32) for port in self.inputs]
        for inner in guesses(given):
            ports = list(zip(inner, dtypes, strict=True))
            rows = [random_rows(ports, least) for least in smallest_integers(dtypes)]
            reason = first_reason([partial(self._try_probe, some) for some in rows])
            if reason is not None:
                return reason
        return None

    def _why_no_batch(self) -> str:
        """Return why the first axis, or the one that `batch_axis` names, can't be the batch by the
        model's own shapes; "" if it can.
        """
        which = "batch axis" if any(self._axis.values()) else "first axis"
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        owners = {
            name: node.name
            for node in reversed(inputs)
            if node.shape and isinstance(name := node.shape[self._axis[node.name]], str) and name
        }
        for node in (*inputs, *outputs):
            for axis, name in enumerate(node.shape):
                if axis != self._axis[node.name] and name in owners:
                    return (
                        f"size {name} is on the {which} of {owners[name]} and on axis {axis} of "
                        f"{node.name}; if that is the batch, write batch_axis = "
                        f"{{ {node.name} = {axis} }}"
                    )
        sizes = {self._batch_size(port) for port in self.inputs}
        if len(sizes) != 1 or 0 in sizes:
            return f"its inputs have no common {which} ({listed(self.inputs)})"
        if not {self._batch_size(port) for port in self.outputs} <= sizes | {None}:
            return f"its outputs lack the {which} of its inputs ({listed(self.outputs)})"
        for port in self.outputs:
            if not port.has_rows:
                return f"output {port.name} is {port.type}, which has no rows"
        return ""

    def _settle(self, reason: str) -> None:
        """Keep the answer of a probe: why items may not share runs, or ""."""
        self._proven = True
        if reason:
            self._batched, self._fixed = False, None

    def _tell(self, reason: str) -> None:
        logger.warning(
            "%s runs each item of %s alone: %s; batched = false accepts that without this warning, "
            "batched = true lets items share runs all the same",
            self._where,
            self._model,
            reason,
            extra=self._extra,
        )

    def _probe(self, rows: Sequence[Row]) -> list[NDArray[Any]]:
        """Run rows together, padded as in a batch."""
        import onnxruntime

        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4  # the model may refuse these rows
        ran = self._fixed or len(rows)
        feed = {}
        for index, port in enumerate(self.inputs):
            whole = np.zeros((ran, *rows[0][index].shape[1:]), port.dtype)
            if port.dtype == np.object_:
                whole[:] = ""
            whole[: len(rows)] = np.concatenate([row[index] for row in rows])
            feed[port.name] = _moved(whole, self._input_axes[index])
        outputs = self._rows_first(
            [as_array(output) for output in self.session.run(self._output_names, feed, quiet)]
        )
        return [
            output[: len(rows)] if output.ndim and len(output) == ran else output
            for output in outputs
        ]

    def _rows_first(self, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Move the batch axis of each output to the front."""
        return (
            [
                np.moveaxis(output, axis, 0) if axis and axis < output.ndim else output
                for output, axis in zip(outputs, self._output_axes, strict=True)
            ]
            if any(self._output_axes)
            else outputs
        )

    def _prove(self, arrays: Row) -> None:
        """Decide with rows made from an item's, unless another instance has decided."""
        reason = self._verdict.of_items(lambda: self._probe_like(arrays))
        if reason is not None:
            self._settle(reason)

    def _probe_like(self, arrays: Row) -> str | None:
        """Probe with rows made from an item's. Return why the model mixes rows, "" if it does not,
        None if the model refuses the item or its rows can't be made to differ.
        """
        first = [array[:1] for array in arrays]
        rows = rows_like(first)
        try:
            self._probe([first])
            if not rows:
                return None
        except Exception as error:  # `forward` reports it
            logger.debug("%s: %s refuses a probe: %s", self._where, self._model, error)
            return None
        try:
            reason = why_mixed(rows, self._probe, self._probe_rows, self._output_names)
        except Exception as error:  # the exceptions of ONNX Runtime share no base class
            reason = f"it can't be checked whether it keeps items apart: {error}"
        if not reason:
            more = further_rows_like(first, on_gpu=False)
            reason = (
                first_reason(partial(self._try_probe, some, as_alone=False) for some in more) or ""
            )
        if reason:
            self._tell(reason)
        return reason

    def _signed(self, ports: Sequence[OnnxTensorInfo]) -> tuple[TensorPort, ...]:
        """Describe inputs or outputs for clients.

        The batch axis is open to them even if the model's is fixed, since batches are padded. A
        sequence or map reaches them as its JSON text.
        """
        return tuple(
            TensorPort(
                port.name,
                "string" if port.dtype in (None, np.object_) else str(port.dtype),
                tuple(
                    -1
                    if size is None or (self._batched and axis == self._axis.get(port.name))
                    else size
                    for axis, size in enumerate(port.shape)
                ),
            )
            for port in ports
        )

    def warm_up(self) -> None:
        """Run zeros, or the values that the file gives, at batch sizes 1, 2, 4 ... `max`.

        ONNX Runtime then has its memory before the first request. Nothing is run if the model
        leaves a size open and `max` does not give it. What the model refuses is a warning.
        """
        import onnxruntime

        if self._params.warm_up is False:
            return
        with refusals_as_warnings(self._where, self._params, self._context, logger):
            values = warm_up_values(self._params, self._context)
            arrays = self._zeros() if values is None else self._given(values)
            if arrays is None:
                return
            self._options = onnxruntime.RunOptions()
            self._options.log_severity_level = 4  # the model may refuse these values
            try:
                size = 1
                while size < self._largest * 2:
                    self.forward([{"data": arrays} for _ in range(min(size, self._largest))])
                    size *= 2
            finally:
                self._options = None

    def _zeros(self) -> list[NDArray[Any]] | None:
        arrays = []
        for index, port in enumerate(self.inputs):
            given = self._known_shapes[index] if index < len(self._known_shapes) else ()
            axis = self._axis[port.name]
            inner = batch_first(given if len(given) == len(port.shape) else port.shape, axis)[1:]
            rows = 1 if self._batched else port.shape[axis] if port.shape else None
            shape = with_batch(rows, inner, axis) if port.shape else ()
            if port.dtype is None or port.dtype == np.object_ or None in shape:
                return None
            arrays.append(np.zeros([size or 0 for size in shape], port.dtype))
        return arrays

    def _given(self, values: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the values in the order of `data`: the first row of each, if items share runs."""
        arrays = self._by_name(values)
        if self._batched:
            arrays = row_at(arrays, self._input_axes, 0)
        self._read_values(arrays)
        return arrays

    def _read_values(self, arrays: list[NDArray[Any]]) -> Row:
        """Read values of a file as those of an item. Raises ConfigError."""
        try:
            return self._read({"data": arrays}).arrays
        except InvalidInput as error:
            raise wrong_values(self._context, str(error)) from error

    def _by_name(self, values: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the values of a file in the order of `data`. Raises ConfigError."""
        names = [port.name for port in self.inputs]
        if set(names) != set(values):
            raise wrong_values(
                self._context,
                f"the model's inputs are {', '.join(names)}, found {', '.join(values) or 'none'}",
            )
        return [values[name] for name in names]

    def forward(self, batch: list[Item]) -> None:
        groups: dict[Hashable, list[_Member]] = {}
        for position, item in enumerate(batch):
            try:
                member = self._read(item)
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error
                continue
            shares = self._batched and not member.optional
            key = tuple([array.shape[1:] for array in member.arrays]) if shares else position
            groups.setdefault(key, []).append(member)
        for members in groups.values():
            if not self._proven and (len(members) > 1 or self._fixed):
                self._prove(members[0].arrays)
                if not self._batched:
                    self.forward(batch)
                    return
        for members in groups.values():
            for sharing in [members] if self._proven else [[member] for member in members]:
                try:
                    self._run(sharing)
                except Exception as error:
                    refuse_without_elements(
                        "OnnxTensor",
                        (array.shape for member in sharing for array in member.arrays),
                        (member.item for member in sharing),
                        error,
                        alone=len(batch) == 1,
                    )

    def close(self) -> None:
        self.session = None
        self._buffers = {}
        super().close()

    def _values(self, data: Any) -> Sequence[Any]:
        """Return the values of `data` in the order of the inputs, the optional ones last and None
        for one that is left out. Raises InvalidInput.
        """
        least, most = len(self.inputs), len(self.inputs) + len(self.optional_inputs)
        if isinstance(data, dict):
            ports = (*self.inputs, *self.optional_inputs)
            unknown = data.keys() - {port.name for port in ports}
            if not unknown:
                return [data.get(port.name) for port in ports]
            problem = f"input {min(map(repr_of, unknown))} is unknown"
        else:
            values = data if isinstance(data, list | tuple) else [data]
            if least <= len(values) <= most:
                return values
            problem = f"data holds {len(values)}"
        names = ", ".join(port.name for port in self.inputs)
        if self.optional_inputs:
            names += f"; optional: {', '.join(port.name for port in self.optional_inputs)}"
        raise InvalidInput(f"OnnxTensor: the model has {least} inputs ({names}), but {problem}")

    def _array(self, port: OnnxTensorInfo, value: Any) -> NDArray[Any]:
        """Return a value as an array that fits an input. Raises InvalidInput."""
        if value is None:
            raise InvalidInput(f"OnnxTensor: input {port.name} is missing: expected {port}")
        if not hasattr(value, "__array__"):
            raise InvalidInput(
                f"OnnxTensor: input {port.name}: expected {port}, found {type(value).__name__}"
            )
        array = to_numpy(value)
        if not dtype_fits(array.dtype, port.dtype) or not self._shape_fits(array.shape, port):
            raise InvalidInput(
                f"OnnxTensor: input {port.name}: expected {port}, "
                f"found {array.dtype} of shape {shape_text(array.shape)}"
            )
        if narrows(array.dtype, port.dtype):
            with np.errstate(over="ignore"):  # infinite, without a warning for each request
                return array.astype(np.float32)
        return array

    def _read(self, item: Item) -> _Member:
        """Return the item's arrays, checked against the model's inputs. Raises InvalidInput."""
        values = self._values(item["data"])
        size = item.get("request_size", 1)
        arrays = []
        for port, axis, value in zip(self.inputs, self._input_axes, values, strict=False):
            array = self._array(port, value)
            if self._batched and array.shape[axis] != size:
                raise wrong_rows(f"OnnxTensor: input {port.name}", item, array.shape, axis)
            if self._batched and size > self.max:
                raise InvalidInput(
                    f"OnnxTensor: input {port.name}: expected at most {self.max} rows (max), found "
                    f"shape {shape_text(array.shape)}"
                )
            arrays.append(np.moveaxis(array, axis, 0) if axis and self._batched else array)
        optional = {
            port.name: _moved(self._array(port, value), 0, port.dtype)
            for port, value in zip(self.optional_inputs, values[len(arrays) :], strict=False)
            if value is not None
        }
        return _Member(item, arrays, optional)

    def _shape_fits(self, shape: tuple[int, ...], port: OnnxTensorInfo) -> bool:
        if len(shape) != len(port.shape):
            return False
        batch = self._axis.get(port.name) if self._batched else None
        return all(
            fixed is None or fixed == size or axis == batch
            for axis, (fixed, size) in enumerate(zip(port.shape, shape, strict=True))
        )

    def _run(self, members: list[_Member]) -> None:
        """Run the session once, over items of one shape, and set their results.

        It calls plain `run` and no I/O binding: on the CPU, `run` wraps contiguous arrays without a
        copy, and its outputs are arrays that own their memory. Measured against I/O binding:
        ResNet-18 is the same within noise (1 image 17 ms, 8 images 126 ms), a tiny model takes 4 µs
        instead of 6 µs.
        """
        counts = [member.arrays[0].shape[0] if self._batched else 1 for member in members]
        total = sum(counts)
        rows = self._fixed or total
        alone = len(members) == 1 and (not self._batched or rows == total)
        if alone:
            axes = self._input_axes if self._batched else [0] * len(self.inputs)
            feed = {
                port.name: _moved(array, axis, port.dtype)
                for port, axis, array in zip(self.inputs, axes, members[0].arrays, strict=True)
            }
        else:
            with timeline.span("assembly", rows=rows):
                feed = {
                    port.name: _moved(self._assemble(index, members, rows), self._input_axes[index])
                    for index, port in enumerate(self.inputs)
                }
        feed.update(members[0].optional)  # an item that has some is alone
        with timeline.span("run", rows=total):
            outputs = self._post.apply(self.session.run(self._output_names, feed, self._options))
        if alone:
            members[0].item["result"] = outputs[0] if len(outputs) == 1 else outputs
            self._post.answer(members[0].item)
            return
        axes = [0] * len(outputs)
        if not self._post.active:
            outputs, axes = self._rows_first(outputs), self._output_axes
        for index, output in enumerate(outputs):
            shape = shape_of(output)
            if shape[:1] != (rows,):
                name = self.outputs[0 if self._post.active else index].name
                raise BackendError(
                    f"OnnxTensor: output {name} has shape {shape_text(shape)} for a batch "
                    f"of {rows}: the model does not keep items apart; set batched = false"
                )
        start = 0
        for (item, *_), count in zip(members, counts, strict=True):
            # Copies, because a view would keep the whole batch in memory until the last item is
            # read.
            rows_of_item = [
                part if isinstance(part, list) else _moved(part.copy(), axis)
                for part, axis in zip(
                    (output[start : start + count] for output in outputs), axes, strict=True
                )
            ]
            item["result"] = rows_of_item[0] if len(rows_of_item) == 1 else rows_of_item
            self._post.answer(item)
            start += count

    def _assemble(self, index: int, members: list[_Member], rows: int) -> NDArray[Any]:
        """Write the batch of one input into a kept buffer.

        A fresh buffer of megabytes would cost page faults at every run.
        """
        port, shape = self.inputs[index], members[0].arrays[index].shape[1:]
        buffer = self._buffers.get((port.name, shape))
        if buffer is None or len(buffer) < rows:
            if len(self._buffers) >= MAX_BUFFERED_SHAPES * len(self.inputs):
                self._buffers.clear()
            buffer = self._buffers[port.name, shape] = np.zeros(
                (max(rows, self._largest), *shape), port.dtype
            )
        start = 0
        for member in members:
            array = member.arrays[index]
            stop = start + len(array)
            buffer[start:stop] = array
            start = stop
        buffer[start:rows] = 0 if port.dtype != np.object_ else ""
        return buffer[:rows]


def _moved(array: NDArray[Any], axis: int, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Return an array with its first axis moved: contiguous, of `dtype`, copied only if needed."""
    if axis:
        array = np.moveaxis(array, 0, axis)
    return np.ascontiguousarray(array, dtype) if array.ndim else array.astype(dtype or array.dtype)
