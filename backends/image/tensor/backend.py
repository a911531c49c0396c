"""The common part of all torch image backends: their device and their base classes.

torch is imported when a backend is initialised, not before: a file that uses them can be checked
without it. Their work on pixels is in operations.py, which imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...base import Backend, Context, Params
from ...errors import BackendError, InvalidInput
from ...item import Item
from ..pixels import WHOLE_SIZE

if TYPE_CHECKING:
    import torch

    from ...gpu.device import DeviceHalf


logger = logging.getLogger("penstock.backends.image")


class TensorParams(Params):
    keyword_only: ClassVar[frozenset[str]] = Params.keyword_only | {"device_id"}

    device_id: int | None = Field(
        None,
        ge=0,
        description="number of the GPU; not given: the node's `device`, else the first GPU, else "
        "the CPU",
    )


class TensorBackend(Backend):
    """Base class of backends from torch tensors to torch tensors, on one device.

    `data` is moved to that device. NumPy arrays count as tensors. `data` is never written to.
    Results are contiguous and own their memory.
    """

    parameters: ClassVar[type[Params] | None] = TensorParams
    extra: ClassVar[str] = "torch"
    blocks = "its time grows with the tensor"

    _half: DeviceHalf

    def init(self, params: Any, context: Context) -> None:
        """Raises BackendError if torch or the requested GPU is missing."""
        name = type(self).__name__
        try:
            from ...gpu.device import DeviceHalf, choose_device
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise BackendError(
                f"{name} needs extra torch, which is not installed here: pip install "
                "'penstock-serve[torch]'"
            ) from error
        wanted = context.device if params.device_id is None else str(params.device_id)
        self._half = DeviceHalf(choose_device(wanted), f"node {context.node!r}: {name}")
        self.device = str(self._half.device) if self._half.on_gpu else ""

    def forward(self, batch: list[Item]) -> None:
        with self._half.errors("running a batch"):
            for item in batch:
                try:
                    item["result"] = self.answer(item)
                except InvalidInput as error:
                    if len(batch) == 1:
                        raise
                    item["error"] = error

    def answer(self, item: Item) -> Any:
        """Return the item's `result`. May set further keys.

        Raises InvalidInput if something does not fit.
        """
        raise NotImplementedError

    def close(self) -> None:
        half: DeviceHalf | None = self.__dict__.pop("_half", None)
        if half is not None:
            half.close()
        super().close()

    def tensors(self, data: Any) -> list[torch.Tensor]:
        """Return `data`, a tensor or a list of them, as a list of tensors, each on its own device.

        Raises InvalidInput for anything else, and for an empty list.
        """
        from .operations import tensor_of

        values = data if isinstance(data, list | tuple) else [data]
        if not values:
            raise InvalidInput(
                f"{type(self).__name__}: expected a tensor or a list of them, found an empty list"
            )
        return [tensor_of(value, type(self).__name__) for value in values]


class ImageTensorBackend(TensorBackend):
    """Base class of backends from images of one size to images, by `transform`.

    The layout (the item's `data_format`) is kept. On a GPU, images of one shape are transformed
    together if everything that `transform` reads from their items is equal: there the number of
    launches counts, not the number of pixels.
    """

    takes = gives = "tensor"
    max = 1
    reads: ClassVar[tuple[str, ...] | None] = None
    """The item's keys that `transform` reads. None: unknown, so each image is transformed alone."""

    samples: ClassVar[bool] = False
    """CV-CUDA computes its pixels on a GPU, where it is installed."""

    together = False

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        if self.samples and self._half.on_gpu:
            from .cv_cuda import name

            library = name()  # loads it
            if context.instance == 0:
                logger.info(
                    "node %r: %s: %s computes pixels on %s",
                    context.node,
                    type(self).__name__,
                    library,
                    self._half.device,
                )
        self.together = self._half.on_gpu and self.reads is not None
        if not self.together:
            self.max = 1

    def close(self) -> None:
        if self.samples and "_half" in self.__dict__ and self._half.on_gpu:
            from .cv_cuda import forget

            with suppress(RuntimeError):  # a device that failed
                self._half.synchronize()
                forget()
        super().close()

    def forward(self, batch: list[Item]) -> None:
        if len(batch) == 1 or not self.together:
            super().forward(batch)
        else:
            with self._half.errors("running a batch"):
                for members in self._alike(batch):
                    self.transform_together(members)
        if not self.keeps_size:
            for item in batch:
                item.pop(WHOLE_SIZE, None)

    def answer(self, item: Item) -> torch.Tensor:
        image = self._image_of(item)
        return self.ordered(self.transform(image, item), item)

    def transform(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        """Return the result for an image, both N×C×H×W of any strides. May set further keys.

        Raises InvalidInput if something does not fit.
        """
        raise NotImplementedError

    def _image_of(self, item: Item) -> torch.Tensor:
        from .operations import image_of

        return image_of(
            item["data"], is_nhwc(item, type(self).__name__), self._half.device, type(self).__name__
        )

    def ordered(self, image: torch.Tensor, item: Item) -> torch.Tensor:
        """Return an N×C×H×W image in the item's layout, contiguous."""
        from .operations import owned

        return owned(image.permute(0, 2, 3, 1) if is_nhwc(item, type(self).__name__) else image)

    def _alike(self, batch: list[Item]) -> Iterable[list[tuple[Item, torch.Tensor]]]:
        """Group the batch's images, with their items, by what can be transformed together.

        An item without a valid image gets an error of its own.
        """
        groups: dict[Hashable, list[tuple[Item, torch.Tensor]]] = {}
        for item in batch:
            try:
                image = self._image_of(item)
            except InvalidInput as error:
                item["error"] = error
                continue
            key: Hashable = (
                image.shape[1:],
                image.dtype,
                item.get("data_format"),
                *(item.get(name) for name in self.reads or ()),
            )
            try:
                members = groups.setdefault(key, [])
            except TypeError:  # a value of the wrong type: `transform` will report it
                members = groups.setdefault(id(item), [])
            members.append((item, image))
        return groups.values()

    def transform_together(self, members: list[tuple[Item, torch.Tensor]]) -> None:
        """Set the results of images of one shape, whose items are alike.

        It calls torch as few times as possible: next to other threads, each call is a wait for the
        GIL.
        """
        import torch

        from .operations import separate

        if len(members) == 1:
            self._transform_alone(*members[0])
            return
        first = members[0][0]
        before = first.copy()
        try:
            images = self.transform(torch.cat([image for _, image in members]), first)
        except InvalidInput:
            for item, image in members:  # only the faulty ones fail
                self._transform_alone(item, image)
            return
        changed = {
            key: value
            for key, value in first.items()
            if key not in before or before[key] is not value
        }
        ordered = images.permute(0, 2, 3, 1) if is_nhwc(first, type(self).__name__) else images
        for (item, _), result in zip(
            members, separate(ordered, [len(image) for _, image in members]), strict=True
        ):
            item.update(changed)
            item["result"] = result

    def _transform_alone(self, item: Item, image: torch.Tensor) -> None:
        try:
            item["result"] = self.ordered(self.transform(image, item), item)
        except InvalidInput as error:
            item["error"] = error


def is_nhwc(item: Item, backend: str) -> bool:
    """Return whether the item's `data_format` reads four dimensions as N×H×W×C. Default: N×C×H×W.

    Raises InvalidInput for another `data_format`.
    """
    data_format = item.get("data_format", "nchw")
    if data_format not in ("nchw", "nhwc"):
        raise InvalidInput(
            f"{backend}: the item's data_format is {data_format!r}: expected nchw or nhwc"
        )
    return bool(data_format == "nhwc")
