"""What clients call the inputs of a pipeline, and what errors say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from penstock.backends.errors import InvalidRequest, TooLarge

from .declared import Tensor
from .values import EXPECTED_JSON

IMAGE = "image"
IMAGES = "images"
"""What clients may call the image, or bytes, of a pipeline that takes nothing else."""


class Names(NamedTuple):
    """The names of inputs in JSON and forms.

    `shown` is what errors call the only input; "" if there are several. `by_name` has the input
    that each name stands for, `many_by_name` that of several items in a form.
    """

    tensors: tuple[Tensor, ...]
    shown: str
    by_name: dict[str, Tensor]
    many_by_name: dict[str, Tensor]

    @property
    def only(self) -> Tensor | None:
        return self.tensors[0] if len(self.tensors) == 1 else None

    @property
    def is_image(self) -> bool:
        """True if an image is all that the pipeline takes."""
        return len(self.tensors) == 1 and self.tensors[0].kind == "image"

    @property
    def shown_many(self) -> str:
        return IMAGES if self.is_image else self.shown

    @property
    def one(self) -> str:
        """The JSON that holds one item."""
        only = self.only
        if only is None:
            return f"an object with {self.listed}"
        if only.kind == "image":
            return f'{{"{self.shown}": base64}}'
        if only.kind == "json":
            return f"any JSON for input {self.shown!r}"
        return f'{EXPECTED_JSON[only.kind]}, or {{"{self.shown}": …}}'

    @property
    def many(self) -> str:
        """The JSON that holds several."""
        if self.is_image:
            return '{"images": [base64, …]}'
        return "an array with an element for each item"

    @property
    def listed(self) -> str:
        return ", ".join(f"{tensor.name!r} ({tensor.kind})" for tensor in self.tensors)

    @property
    def noun(self) -> str:
        return "image" if self.is_image else "item"

    def check_count(self, count: int, limit: int) -> None:
        """Check the number of items of a request. Raises `InvalidRequest`, `TooLarge`."""
        if count == 0:
            raise InvalidRequest(f"the request has no {self.noun}, expected at least one")
        if count > limit:
            raise TooLarge(
                f"the request has {count} {self.noun}s, at most {limit} are accepted (max_images)"
            )

    def check_complete(self, given: Sequence[str], subject: str) -> None:
        """Check that no input is missing. `subject`: what should have it."""
        for tensor in self.tensors:
            if not tensor.optional and tensor.name not in given:
                raise InvalidRequest(
                    f"{subject} has no {self.shown or tensor.name!r}, expected {self.one}"
                )


def names_of(tensors: tuple[Tensor, ...]) -> Names:
    """Return what clients call these inputs."""
    by_name = {tensor.name: tensor for tensor in tensors}
    many_by_name = dict(by_name)
    shown = tensors[0].name if len(tensors) == 1 else ""
    if len(tensors) == 1 and tensors[0].kind in {"image", "bytes"}:
        if tensors[0].kind == "image" and shown == "data":
            shown = IMAGE
        by_name.setdefault(IMAGE, tensors[0])
        many_by_name.setdefault(IMAGES, tensors[0])
    return Names(tensors, shown, by_name, many_by_name)
