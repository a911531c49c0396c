"""OpenvinoSession: one instance's runs of a compiled model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

TYPES = {
    "f16": "float16",
    "f32": "float",
    "f64": "double",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "string": "string",
    "boolean": "bool",
    "bf16": "bfloat16",
}
"""OpenVINO's names of element types -> ONNX's."""


class OpenvinoPort(NamedTuple):
    """An input or output, as ONNX Runtime describes one."""

    name: str
    type: str
    shape: list[int | None]


class OpenvinoSession:
    """A compiled model, with the methods of ONNX Runtime's session, for one thread.

    No run copies: arrays are given to the model where they are (read-only ones are copied), and it
    writes its outputs into memory that belongs to the arrays that `run` returns. With `lends`, the
    memory of the outputs is that of the next run instead, for a caller who copies them anyway.
    """

    __slots__ = (
        "_copies",
        "_given",
        "_inputs",
        "_lending",
        "_new_outputs",
        "_outputs",
        "_owning",
        "_places",
        "_tensor",
        "lends",
    )

    def __init__(
        self,
        compiled: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        passes_inputs_on: bool = True,
    ) -> None:
        """A tensor with several names has the one of `inputs` or `outputs`.

        `passes_inputs_on`: the model gives an input back as it is (`passes_inputs_on`). OpenVINO
        leaves memory that is set for outputs untouched then, so these are copied.
        """
        from openvino import Shape, Tensor

        self._tensor = Tensor
        self._owning = compiled.create_infer_request()
        self._lending = compiled.create_infer_request()
        self._inputs = [_port(port, inputs) for port in compiled.inputs]
        self._outputs = [_port(port, outputs) for port in compiled.outputs]
        self._places = {port.name: index for index, port in enumerate(self._inputs)}
        self._given = {port.name: index for index, port in enumerate(self._outputs)}
        # Open sizes are 0: the model gives the tensor its own.
        self._new_outputs = [
            (port.get_element_type(), Shape([size or 0 for size in known.shape]))
            for port, known in zip(compiled.outputs, self._outputs, strict=True)
        ]
        self._copies = passes_inputs_on
        self.lends = False

    def get_inputs(self) -> list[OpenvinoPort]:
        return self._inputs

    def get_outputs(self) -> list[OpenvinoPort]:
        return self._outputs

    def get_overridable_initializers(self) -> list[OpenvinoPort]:
        return []

    def run(
        self, names: Iterable[str], feed: Mapping[str, NDArray[Any]], _: object = None
    ) -> list[NDArray[Any]]:
        """Run the model and return the outputs of these names. Raises RuntimeError."""
        lends = self.lends or self._copies
        request = self._lending if lends else self._owning
        # A tensor of shared memory does not keep its array: this list does, until the run ends.
        arrays = [array if array.flags.writeable else array.copy() for array in feed.values()]
        for name, array in zip(feed, arrays, strict=True):
            request.set_input_tensor(self._places[name], self._tensor(array, shared_memory=True))
        if lends:
            request.infer({}, share_inputs=True, share_outputs=True)
            lent = [request.get_output_tensor(self._given[name]).data for name in names]
            return lent if self.lends else [output.copy() for output in lent]
        results = [self._tensor(kind, shape) for kind, shape in self._new_outputs]
        for index, result in enumerate(results):
            request.set_output_tensor(index, result)
        request.infer({}, share_inputs=True, share_outputs=True)
        return [results[self._given[name]].data for name in names]


def passes_inputs_on(compiled: Any) -> bool:
    """Return whether a compiled model gives an input back as it is, or may do so."""
    for result in compiled.get_runtime_model().get_results():
        info = result.input_value(0).get_node().get_rt_info()
        if "layerType" not in info or info["layerType"] == "Input":
            return True
    return False


def _port(port: Any, wanted: Sequence[str]) -> OpenvinoPort:
    names = sorted(port.get_names())
    chosen = next((name for name in names if name in wanted), None)
    name = chosen or (port.get_any_name() if names else port.get_node().get_friendly_name())
    shape = port.get_partial_shape()
    sizes: list[int | None] = (
        [size.get_length() if size.is_static else None for size in shape]
        if shape.rank.is_static
        else [None]
    )
    kind = port.get_element_type().get_type_name()
    return OpenvinoPort(name, f"tensor({TYPES.get(kind, kind)})", sizes)
