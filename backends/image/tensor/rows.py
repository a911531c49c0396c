"""The rows of tensors, their first axis: joined, split, counted, and the best of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...base import Context, Params
from ...errors import InvalidInput
from ...item import Item
from .backend import TensorBackend, TensorParams

if TYPE_CHECKING:
    import torch


class SetTensorRequestSize(TensorBackend):
    """Sets `request_size` to the length of `data`, for the members after it, above all an engine.

    `data`: a tensor or array of numbers, or a list of them (the first counts). `result`: `data`.
    Queues count an item by its size when it came in. The rows must fit the engine's `max` together
    with those of the other items in a batch, so set `max = 1` if their number varies.

    Raises InvalidInput for anything else, and if there are no rows.
    """

    def answer(self, item: Item) -> Any:
        item["request_size"] = rows_of(self.tensors(item["data"])[0], "SetTensorRequestSize")
        return item["data"]


class CatTensor(TensorBackend):
    """A list of tensors as one, their rows one after another.

    It makes one batch for an engine of what MapReduce collected. `data`: a list of tensors N×...,
    equal except for N, or one tensor, which stays. `result`: their rows; `request_size` is how
    many.

    Raises InvalidInput if they do not fit together.
    """

    def answer(self, item: Item) -> torch.Tensor:
        import torch

        from .operations import owned

        tensors = [tensor.to(self._half.device) for tensor in self.tensors(item["data"])]
        kinds = {(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors}
        if len(kinds) > 1 or not all(tensor.ndim for tensor in tensors):
            shapes = ", ".join(
                f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                for tensor in tensors[:8]
            )
            raise InvalidInput(
                "CatTensor: expected tensors of one dtype and of one shape except for the first "
                f"axis, found {shapes}"
            )
        result = owned(tensors[0]) if len(tensors) == 1 else torch.cat(tensors)
        item["request_size"] = rows_of(result, "CatTensor")
        return result


class SplitTensorParams(TensorParams):
    split_size: int = Field(1, ge=1, description="rows of each piece; the last may have fewer")


class SplitTensor(TensorBackend):
    """A tensor as a list of pieces with `split_size` rows each, the reverse of CatTensor.

    MapReduce takes the list. `data`: a tensor N×... `result`: a list of tensors split_size×...,
    each with memory of its own. The item's `request_size` is removed, because a list is one item.

    Raises InvalidInput for anything else, and if there are no rows.
    """

    parameters: ClassVar[type[Params] | None] = SplitTensorParams
    split_size: int

    def init(self, params: SplitTensorParams, context: Context) -> None:
        super().init(params, context)
        self.split_size = params.split_size

    def answer(self, item: Item) -> list[torch.Tensor]:
        import torch

        from .operations import owned

        (tensor,) = self.tensors([item["data"]])
        rows_of(tensor, "SplitTensor")
        item.pop("request_size", None)
        return [
            owned(piece) for piece in torch.split(tensor.to(self._half.device), self.split_size)
        ]


class ArgMaxTensor(TensorBackend):
    """The position of the largest number along the last axis: the best class of each row of scores.

    `data`: N×K (any shape with a last axis) of numbers. `result`: int64, N (the shape without the
    last axis).

    Raises InvalidInput for anything else, and if the last axis is empty.
    """

    def answer(self, item: Item) -> torch.Tensor:
        (tensor,) = self.tensors([item["data"]])
        if not tensor.ndim or 0 in tensor.shape or tensor.is_complex():
            raise InvalidInput(
                f"ArgMaxTensor: expected numbers of shape NxK, found {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        return tensor.to(self._half.device).argmax(-1)


def rows_of(tensor: torch.Tensor, backend: str) -> int:
    """Return the length of the first axis. Raises InvalidInput for no axis, and for no rows."""
    if not tensor.ndim or not len(tensor):
        raise InvalidInput(
            f"{backend}: expected a tensor with rows, its first axis, found shape "
            f"{tuple(tensor.shape)}"
        )
    return len(tensor)
