"""Parameters of decoders and resizers, which let a decoder know the size that an image will have.

The configuration tells a decoder which backend resizes its image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, PrivateAttr

from ..base import Params
from ..item import Item


class ResizingParams(Params):
    """Parameters of a backend that resizes a whole image, whose size it asks of `whole_size`."""

    def size_of_result(self, width: int, height: int, item: Item) -> tuple[int, int] | None:
        """Return the (width, height) to which an image is resized, without padding around it.

        None if `item` does not tell.
        """
        raise NotImplementedError


REDUCE = Field(
    False,
    description="decode a JPEG at 1/2, 1/4 or 1/8 of its size if the backend behind, which resizes "
    "it, makes it smaller still: faster, and the pixels differ",
)


class ReducingParams(Params):
    """Parameters of a decoder, which has `reduce` among them."""

    if TYPE_CHECKING:  # a field here would come before all others as an argument
        reduce: bool

    _resizing: ResizingParams | None = PrivateAttr(None)

    @property
    def resizing(self) -> ResizingParams | None:
        """The parameters of the backend that resizes the image. None: decode it whole."""
        return self._resizing

    def in_front_of(self, resizing: ResizingParams) -> Self:
        """Return these parameters for a decoder whose image the backend with `resizing` gets."""
        copy = self.model_copy()
        copy._resizing = resizing
        return copy
