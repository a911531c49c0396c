"""OpenvinoTensor: OpenVINO on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...base import Context, Params
from ...errors import BackendError, InvalidInput
from ...item import Item
from ...text import message_of
from ..accuracy import SAMPLE_ROWS, Accuracy, compare, sample_inputs
from ..onnx import OnnxTensor
from ..onnx_gpu.providers import Provider
from ..onnx_model import moved
from ..onnx_reading import BatchMember
from ..onnx_session import config_error
from ..probe_rows import Row, guesses, row_at
from ..shapes import shape_text
from ..warming import warm_up_values
from .compiled import compiled_model
from .params import OpenvinoParams
from .quantised import calibration_values
from .session import OpenvinoSession

logger = logging.getLogger("penstock.openvino")

INT32 = np.iinfo(np.int32)
WIDE_INTEGERS = frozenset(np.dtype(kind) for kind in ("int64", "uint64", "uint32"))
"""The dtypes that OpenVINO's kernels for CPUs narrow to int32, without a word."""


class OpenvinoTensor(OnnxTensor):
    """Runs a model with OpenVINO, on the CPU: its own format (.xml and .bin), ONNX or TFLite.

    `data` and `result` are those of OnnxTensor, also with `mean`, `std` and `data_format`. The
    model computes in float32 unless `precision` says otherwise: OpenVINO's own default on some
    processors is bfloat16. What another precision costs is measured at load, and logged.

    All instances of a node, and nodes with the same file and options, run one compiled model.
    """

    parameters: ClassVar[type[Params] | None] = OpenvinoParams
    extra: ClassVar[str] = "openvino"
    engine: ClassVar[str] = "OpenvinoTensor"

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self._compiled.report(context, lambda reference: self._accuracy(reference, params, context))

    def choose_provider(self, params: Any, context: Context) -> Provider:
        if context.device not in ("", "cpu"):
            raise config_error(
                context,
                "device",
                f"device is {context.device!r}, but OpenvinoTensor runs only on the CPU: "
                'set device = "cpu", or use ModelTensor',
            )
        return Provider("cpu", "OpenVINO runs there")

    def open_session(self, params: Any, context: Context) -> Any:
        """Compile the model. Raises BackendError, which names the path, and ConfigError."""
        self._compiled = model = compiled_model(params, context)
        return OpenvinoSession(
            model.compiled,
            params.inputs,
            params.outputs,
            passes_inputs_on=model.passes_inputs_on,
        )

    def run_options(self, params: Any) -> Any:
        return None

    def quiet_options(self) -> Any:
        return None

    def close(self) -> None:
        vars(self).pop("_compiled", None)
        super().close()

    def _read(self, item: Item) -> BatchMember:
        member = super()._read(item)
        for port, array in zip(self.model.inputs, member.arrays, strict=True):
            if not array.size:
                raise InvalidInput(
                    f"OpenvinoTensor: input {port.name} has no elements (shape "
                    f"{shape_text(array.shape)}): expected at least one"
                )
            if array.dtype in WIDE_INTEGERS:
                least, most = array.min(), array.max()
                if least < INT32.min or most > INT32.max:
                    value = least if least < INT32.min else most
                    raise InvalidInput(
                        f"OpenvinoTensor: input {port.name} has {value}: "
                        "OpenVINO computes whole numbers in int32, from -2147483648 to 2147483647"
                    )
        reason = self._why_not(member.arrays)
        if reason:
            shapes = ", ".join(shape_text(array.shape) for array in member.arrays)
            raise InvalidInput(
                f"OpenvinoTensor: the model can't compute with data of shape {shapes}: {reason}"
            )
        return member

    def _why_not(self, arrays: Sequence[NDArray[Any]]) -> str:
        """Return why the model can't compute with an item of these arrays, which have the batch
        axis first, "" if it can.
        """
        rules = self._compiled.shape_rules
        if rules is None:
            return ""
        if not self.batched:
            return rules.why_not(tuple([array.shape for array in arrays]))
        rows = self._fixed or 1  # so that a shape of items is one, whatever their number
        return rules.why_not(
            tuple(
                [
                    (*array.shape[1 : axis + 1], rows, *array.shape[axis + 1 :])
                    for array, axis in zip(arrays, self.model.input_axes, strict=True)
                ]
            )
        )

    def _probe(self, rows: Sequence[Row]) -> list[NDArray[Any]]:
        reason = self._why_not(rows[0])
        if reason:
            raise BackendError(f"OpenvinoTensor: the model can't compute with a guess: {reason}")
        return super()._probe(rows)

    def _run(self, members: list[BatchMember]) -> None:
        session = self.model.session
        session.lends = len(members) > 1  # each item then has a copy of its rows
        try:
            super()._run(members)
        finally:
            session.lends = False

    def _accuracy(self, reference: Any, params: Any, context: Context) -> Accuracy | None:
        """Compare the answers with those of the same model in fp32. None if they have no distance,
        or the model refuses the values.
        """
        session = OpenvinoSession(reference, params.inputs, params.outputs)
        names = self.model.output_names
        try:
            feed, rows = self._samples(params, context)
            return compare(session.run(names, feed), self.model.session.run(names, feed), rows)
        except RuntimeError as error:  # a valid model may refuse random values
            logger.debug("%s: %s refuses samples: %s", self._where, params.model, message_of(error))
            return None

    def _samples(self, params: Any, context: Context) -> tuple[dict[str, NDArray[Any]], int]:
        """Return values for the model's inputs, and how many rows they are: those of `warm_up` or
        of `calibration` if there are any, else random ones.
        """
        model = self.model
        values = warm_up_values(params, context)
        if values is None and params.calibration is not None:
            values = calibration_values(params, context)[0]
        axes = model.input_axes if self.batched else [0] * len(model.inputs)
        if values is None:
            columns = self._random_columns()
        elif self.batched:
            arrays = self._by_name(values)
            given = [array.shape[axis] for array, axis in zip(arrays, axes, strict=True)]
            count = min(SAMPLE_ROWS, *given)
            rows = [self._read_values(row_at(arrays, axes, index)) for index in range(count)]
            columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        else:
            columns = self._read_values(self._by_name(values))
        size = self._fixed or len(columns[0])
        feed = {
            port.name: moved(
                np.resize(column, (size, *column.shape[1:])) if self._fixed else column,
                axis,
                port.dtype,
            )
            for port, axis, column in zip(model.inputs, axes, columns, strict=True)
        }
        return feed, size if self.batched else 1

    def _random_columns(self) -> list[NDArray[Any]]:
        columns = []
        for port, axis, inner in zip(
            self.model.inputs,
            self.model.input_axes,
            next(guesses([*self.model.inner_shapes(self._known_shapes)])),
            strict=True,
        ):
            rows = SAMPLE_ROWS if self.batched else (port.shape[axis] or 1) if port.shape else 1
            (column,) = sample_inputs([(inner, port.dtype or np.dtype(np.float32))], rows)
            columns.append(column if port.shape else column[0])
        return columns
