"""OnnxModel: an open ONNX model, its inputs and outputs, and where their batch is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import Context, Signature, TensorPort
from ..params import EngineParams
from .onnx_ports import OnnxTensorInfo, as_array, listed, optional_ports_of, ports_of
from .probe_rows import Row
from .reshape import Reshaping
from .shapes import batch_first, check_batch_axes, reorder
from .tensor_names import places


class OnnxModel:
    """A session of ONNX Runtime, or one of OpenVINO. Inputs and outputs are in the order that the
    file asks for.

    `axis` is the batch axis of each tensor by its name. `batch_size` is what the model fixes on
    that axis of its inputs, None if it is open. `mixed_order`: optional inputs stand before others
    in `data`. `reshaped_names`: the tensors that have another shape in items.
    """

    def __init__(self, session: Any, params: EngineParams, context: Context, engine: str) -> None:
        """Read the inputs and outputs of a session. Raises BackendError and ConfigError.

        `engine` is the name of the backend, for messages.
        """
        self.session = session
        self.engine = engine
        where = f"{engine}: the model {context.resolve(params.model)}"
        required = reorder(
            ports_of(self.session.get_inputs(), "input", where),
            params.input_reorder,
            "input_reorder",
            context,
        )
        optional = optional_ports_of(self.session, where)
        self.data_order: tuple[OnnxTensorInfo, ...] = (*required, *optional)
        if params.inputs:
            names = [port.name for port in self.data_order]
            needed = [port.name for port in required]
            chosen = places(params.inputs, names, "inputs", context, needed)
            self.data_order = tuple(self.data_order[place] for place in chosen)
        self.inputs = tuple(port for port in self.data_order if port not in optional)
        self.optional_inputs = tuple(port for port in self.data_order if port in optional)
        nodes = self.session.get_outputs()
        if params.outputs:
            names = [node.name for node in nodes]
            nodes = [nodes[place] for place in places(params.outputs, names, "outputs", context)]
        self.outputs: tuple[OnnxTensorInfo, ...] = reorder(
            ports_of(nodes, "output", where), params.output_reorder, "output_reorder", context
        )
        self.reshape = Reshaping(params, context)
        self.reshape.check([port.name for port in (*self.data_order, *self.outputs)])
        self.reshaped_names = frozenset(params.reshape)
        self.mixed_order = self.data_order[len(self.inputs) :] != self.optional_inputs
        self.output_names = [port.name for port in self.outputs]
        ports = (*self.inputs, *self.outputs)
        check_batch_axes(
            params.batch_axis, {port.name: len(port.shape) for port in ports}, context.node
        )
        self.axis = {port.name: params.batch_axis.get(port.name, 0) for port in ports}
        self.input_axes = [self.axis[port.name] for port in self.inputs]
        self.output_axes = [self.axis[port.name] for port in self.outputs]
        self._sizes = {self._batch_size(port) for port in self.inputs}
        self.batch_size = next(iter(self._sizes)) if len(self._sizes) == 1 else None

    @property
    def first_axis(self) -> int:
        """The batch axis of the first input."""
        return next(iter(self.input_axes), 0)

    @property
    def may_be_batched(self) -> bool:
        """True if all inputs have the batch axis, of one size, and all outputs can have rows."""
        return (
            len(self._sizes) == 1
            and 0 not in self._sizes
            and all(port.has_rows for port in self.outputs)
        )

    def _batch_size(self, port: OnnxTensorInfo) -> int | None:
        """Return the size of the batch axis: None if it is open, 0 for a tensor without axes."""
        return port.shape[self.axis[port.name]] if port.shape else 0

    def why_no_batch(self) -> str:
        """Return why the first axis, or the one that `batch_axis` names, can't be the batch by the
        model's own shapes; "" if it can.
        """
        which = "batch axis" if any(self.axis.values()) else "first axis"
        inputs = self.session.get_inputs()
        outputs = [node for node in self.session.get_outputs() if node.name in self.output_names]
        owners = {
            name: node.name
            for node in reversed(inputs)
            if node.shape and isinstance(name := node.shape[self.axis[node.name]], str) and name
        }
        for node in (*inputs, *outputs):
            for axis, name in enumerate(node.shape):
                if axis != self.axis[node.name] and name in owners:
                    return (
                        f"size {name} is on the {which} of {owners[name]} and on axis {axis} of "
                        f"{node.name}; if that is the batch, write batch_axis = "
                        f"{{ {node.name} = {axis} }}"
                    )
        if len(self._sizes) != 1 or 0 in self._sizes:
            return f"its inputs have no common {which} ({listed(self.inputs)})"
        if not {self._batch_size(port) for port in self.outputs} <= self._sizes | {None}:
            return f"its outputs lack the {which} of its inputs ({listed(self.outputs)})"
        for port in self.outputs:
            if not port.has_rows:
                return f"output {port.name} is {port.type}, which has no rows"
        return ""

    def inner_shapes(self, given: Sequence[tuple[int, ...]]) -> Iterator[tuple[int | None, ...]]:
        """Yield the shape of each input after the batch axis. `given` are whole shapes, of `max`,
        which are taken where they have as many axes as the model.
        """
        for index, (port, axis) in enumerate(zip(self.inputs, self.input_axes, strict=True)):
            shape = given[index] if index < len(given) else ()
            yield batch_first(shape if len(shape) == len(port.shape) > 1 else port.shape, axis)[1:]

    def probe(self, rows: Sequence[Row], ran: int, options: Any) -> list[NDArray[Any]]:
        """Run rows together, padded to `ran`, and return the outputs without the padding."""
        feed = {}
        for index, port in enumerate(self.inputs):
            whole = np.zeros((ran, *rows[0][index].shape[1:]), port.dtype)
            if port.dtype == np.object_:
                whole[:] = ""
            whole[: len(rows)] = np.concatenate([row[index] for row in rows])
            feed[port.name] = moved(whole, self.input_axes[index])
        outputs = self.rows_first(
            [as_array(output) for output in self.session.run(self.output_names, feed, options)]
        )
        return [
            output[: len(rows)] if output.ndim and len(output) == ran else output
            for output in outputs
        ]

    def rows_first(self, outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Move the batch axis of each output to the front."""
        return (
            [
                np.moveaxis(output, axis, 0) if axis and axis < output.ndim else output
                for output, axis in zip(outputs, self.output_axes, strict=True)
            ]
            if any(self.output_axes)
            else outputs
        )

    def reshaped(self, outputs: list[Any]) -> list[Any]:
        """Give the outputs of an item the shapes that the key `reshape` names. Raises
        BackendError.
        """
        return (
            [
                output.reshape(
                    self.reshape.output_shape(name, output.shape, f"{self.engine}: output {name}")
                )
                if name in self.reshaped_names
                else output
                for name, output in zip(self.output_names, outputs, strict=True)
            ]
            if self.reshaped_names
            else outputs
        )

    def signature(self, batched: bool, *, gives_outputs: bool) -> Signature:
        """Describe what items give and get. `gives_outputs`: results are the model's outputs."""
        return Signature.of(
            self._signed(self.data_order, batched, given=True),
            self._signed(self.outputs, batched, given=False) if gives_outputs else None,
            batched,
            tuple(
                None if port in self.optional_inputs else self.axis[port.name]
                for port in self.data_order
            ),
        )

    def _signed(
        self, ports: Sequence[OnnxTensorInfo], batched: bool, *, given: bool
    ) -> tuple[TensorPort, ...]:
        """Describe inputs (`given` by items) or outputs for clients.

        The batch axis is open to them even if the model's is fixed, since batches are padded. A
        sequence or map reaches them as its JSON text.
        """
        return tuple(
            TensorPort(
                port.name,
                "string" if port.dtype in (None, np.object_) else str(port.dtype),
                self.reshape.outside(
                    port.name,
                    tuple(
                        -1
                        if size is None or (batched and axis == self.axis.get(port.name))
                        else size
                        for axis, size in enumerate(port.shape)
                    ),
                    given=given,
                ),
                optional=port in self.optional_inputs,
            )
            for port in ports
        )


def moved(array: NDArray[Any], axis: int, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Return an array with its first axis moved: contiguous, of `dtype`, copied only if needed."""
    if axis:
        array = np.moveaxis(array, 0, axis)
    return np.ascontiguousarray(array, dtype) if array.ndim else array.astype(dtype or array.dtype)
