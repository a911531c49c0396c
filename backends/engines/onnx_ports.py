"""Inputs and outputs of ONNX models: the types that OnnxTensor takes, and what fits them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError
from .shapes import shape_text

NUMPY_DTYPES: dict[str, Any] = {
    "float16": np.float16,
    "float": np.float32,
    "double": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "string": np.object_,
    "bool": np.bool_,
}
"""ONNX Runtime's names of element types -> NumPy's dtypes."""

TENSOR = re.compile(r"tensor\((\w+)\)")
"""Such types as `tensor(float)`."""

MAPS = re.compile(r"seq\(map\(\w+,tensor\(\w+\)\)\)")
"""A map for each row: what ZipMap makes, the end of classifiers of scikit-learn."""

OTHER_OUTPUTS = re.compile(r"(optional|seq|map)\(.*\)")
"""Outputs that ONNX Runtime gives as None, lists, dicts and arrays."""


class OnnxTensorInfo(NamedTuple):
    """An input or output of the model. None in `shape` stands for any size."""

    name: str
    type: str
    """ONNX Runtime's name of its type: `tensor(float)`."""
    dtype: np.dtype[Any] | None
    """None for an output that is no tensor."""
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {shape_text(self.shape)}"

    @property
    def has_rows(self) -> bool:
        return self.dtype is not None or MAPS.fullmatch(self.type) is not None


def ports_of(nodes: Sequence[Any], kind: str, where: str) -> list[OnnxTensorInfo]:
    """Return the inputs or outputs that a session has. `kind` says which of them.

    Raises BackendError for types that can't be taken or given. It begins with `where`, which begins
    with the engine's name and a colon.
    """
    ports = []
    engine = where.partition(":")[0]
    for node in nodes:
        whole = TENSOR.fullmatch(node.type)
        if not whole and (kind == "input" or not OTHER_OUTPUTS.fullmatch(node.type)):
            raise BackendError(
                f"{where}: {kind} {node.name} is {node.type}: {engine} takes tensors, and gives "
                f"tensors, sequences and maps: export the model with tensors as {kind}s"
            )
        for name in TENSOR.findall(node.type):
            if name not in NUMPY_DTYPES:
                wide = re.sub(r"(int)\d+", r"\g<1>8", name) if "int" in name else "float32"
                raise BackendError(
                    f"{where}: {kind} {node.name} is {node.type}, and NumPy lacks {name}: export "
                    f"the model with a Cast there, so that the {kind} is {wide}"
                )
        ports.append(
            OnnxTensorInfo(
                node.name,
                node.type,
                np.dtype(NUMPY_DTYPES[whole[1]]) if whole else None,
                tuple(size if isinstance(size, int) else None for size in node.shape)
                if whole
                else (None,),
            )
        )
    return ports


def optional_ports_of(session: Any, where: str) -> list[OnnxTensorInfo]:
    """Return the inputs of a session that have a default: initializers that are also graph inputs.

    Those whose type NumPy lacks always keep their default.
    """
    nodes = [
        node
        for node in session.get_overridable_initializers()
        if (whole := TENSOR.fullmatch(node.type)) and whole[1] in NUMPY_DTYPES
    ]
    return ports_of(nodes, "input", where)


def listed(ports: Sequence[OnnxTensorInfo]) -> str:
    return ", ".join(f"{port.name} {shape_text(port.shape)}" for port in ports)


def dtype_fits(dtype: np.dtype[Any], expected: np.dtype[Any] | None) -> bool:
    if expected is None or dtype == expected:
        return True
    if expected == np.object_:
        return dtype.kind == "U"
    return narrows(dtype, expected) or (dtype.kind != "O" and np.can_cast(dtype, expected, "safe"))


def narrows(dtype: np.dtype[Any], expected: np.dtype[Any] | None) -> bool:
    """Return whether these are float64, NumPy's default dtype, and float32. It is the one
    conversion with a loss that engines make; the torch engines do too.
    """
    return expected == np.float32 and dtype.kind == "f" and dtype.itemsize == 8


def shape_of(output: Any) -> tuple[int, ...]:
    """Return the shape of an output: an array, or a list of maps."""
    return (len(output),) if isinstance(output, list) else output.shape


def to_numpy(value: Any) -> NDArray[Any]:
    """Return an array or a torch tensor as an array.

    The tensor may be on a GPU, need gradients, or be a view that negates (the imaginary part of a
    conjugate). Types that NumPy lacks (bfloat16) widen to float32.
    """
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu().resolve_conj().resolve_neg()
    try:
        array: NDArray[Any] = tensor.numpy()
    except TypeError:
        array = tensor.float().numpy()
    return array


def as_array(output: Any) -> NDArray[Any]:
    """Return an output as an array to compare. Of maps it has the values, a row for each."""
    return np.array([list(row.values()) for row in output]) if isinstance(output, list) else output
