"""The classification extension: the best classes of an output, each as `value:index[:label]`."""

from __future__ import annotations

from penstock.backends.errors import InvalidRequest
from penstock.backends.lazy_numpy import np

from ...http.inputs.datatypes import DATATYPES, Array, Datatype
from ...http.inputs.declared import Tensor

SORTED_ELEMENTS = 1_000_000
"""The largest tensor that is sorted for a client."""


SORTING_BYTES = 48
CLASS_BYTES = 200
"""The most memory that sorting takes for each element, and that a class takes."""


def classified_bytes(array: Array, count: int, *, batched: bool) -> int:
    """Return the most memory that `classify` takes."""
    rows = len(array) if batched else 1
    return SORTING_BYTES * array.size + CLASS_BYTES * min(array.size, rows * count)


def classify(
    datatype: Datatype, array: Array, count: int, tensor: Tensor, *, batched: bool
) -> tuple[Datatype, Array]:
    """Return the `count` largest elements of each row as strings, best first.

    The shape is [rows, count], or [count] for an output that is not `batched`, which counts as one
    row. Of equal elements the lower index comes first, and NaN comes last. Values are formatted as
    C++'s `std::to_string` does, which is what clients parse. Raises `InvalidRequest` for a datatype
    without an order and for a tensor that is too large.
    """
    if datatype.kind not in "iuf":
        raise InvalidRequest(
            f"class result not available for output due to unsupported type '{datatype.name}'"
        )
    if array.size > SORTED_ELEMENTS:
        raise InvalidRequest(
            f"class result not available for output '{tensor.name}': it has more than "
            f"{SORTED_ELEMENTS} elements"
        )
    rows = array.reshape(len(array), -1) if batched and len(array) else array.reshape(1, -1)
    count = min(count, rows.shape[1])
    # Sort in ascending order and read the result backwards: to negate the elements would be wrong
    # for unsigned integers and for the lowest signed one. The columns are reversed before the sort,
    # which is stable, so that of equal elements the lower index comes first.
    order = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    if datatype.kind == "f":
        is_nan = np.isnan(np.take_along_axis(rows, order, 1))
        order = np.take_along_axis(order, np.argsort(is_nan, axis=1, kind="stable"), 1)
    classes = np.empty((len(rows), count), np.object_)
    for row, ranks in enumerate(order[:, :count].tolist()):
        for rank, index in enumerate(ranks):
            value = rows[row, index]
            text = f"{value:f}" if datatype.kind == "f" else str(value)
            label = f":{tensor.labels[index]}" if index < len(tensor.labels) else ""
            classes[row, rank] = f"{text}:{index}{label}"
    return DATATYPES["BYTES"], classes if batched else classes[0]
