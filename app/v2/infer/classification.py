"""The classification extension: the best classes of an output instead of its numbers, each as `value:index[:label]`."""

from __future__ import annotations

import numpy as np

from penstock.backends.errors import InvalidRequest

from ..models.model import Tensor
from ..tensors import DATATYPES, Array, Datatype

LARGEST = 1_000_000
"""Elements of a tensor that is sorted for a client."""


def classify(
    datatype: Datatype, array: Array, count: int, tensor: Tensor, *, batched: bool
) -> tuple[Datatype, Array]:
    """The `count` largest of each row, or of the whole where there is no batch: strings, best first, of shape [rows, count] or [count].

    Values are written as C++'s `std::to_string` does, which is what clients parse. Raises `InvalidRequest`.
    """
    if datatype.kind not in "iuf":
        raise InvalidRequest(
            f"class result not available for output due to unsupported type '{datatype.name}'"
        )
    if array.size > LARGEST:
        raise InvalidRequest(
            f"class result not available for output '{tensor.name}': it has more than {LARGEST} elements"
        )
    rows = array.reshape(len(array), -1) if batched and len(array) else array.reshape(1, -1)
    count = min(count, rows.shape[1])
    # ascending, from the back, so that nothing is negated (unsigned integers, the least of all); stable from there: the lower index first
    order = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    if datatype.kind == "f":
        order = np.take_along_axis(
            order,
            np.argsort(np.isnan(np.take_along_axis(rows, order, 1)), axis=1, kind="stable"),
            1,
        )  # NaN last
    found = np.empty((len(rows), count), np.object_)
    for row, ranks in enumerate(order[:, :count].tolist()):
        for place, index in enumerate(ranks):
            value = rows[row, index]
            text = f"{value:f}" if datatype.kind == "f" else str(value)
            label = f":{tensor.labels[index]}" if index < len(tensor.labels) else ""
            found[row, place] = f"{text}:{index}{label}"
    return DATATYPES["BYTES"], found if batched else found[0]
