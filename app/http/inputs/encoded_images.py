"""Images that a request has encoded, as the tensor that the model takes (the key `decode`)."""

from __future__ import annotations

import threading
from typing import Any

from penstock.backends.allocation import empty_array
from penstock.backends.base import Backend, Context
from penstock.backends.errors import InvalidInput, InvalidRequest
from penstock.backends.item import Item
from penstock.backends.lazy_numpy import np
from penstock.pipelines.config.decoding import Decoding
from penstock.pipelines.config.load import load

from .datatypes import Array, Datatype


class ImageDecoder:
    """Decodes, resizes and normalises images, on any thread. It holds the thread for milliseconds.

    Each thread has operators of its own, since a backend belongs to one thread.
    """

    __slots__ = ("_decoding", "_mean", "_own", "_spec", "_std")

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        (node,) = load({"decode": decoding.keys}).nodes.values()
        self._spec = node.instance_groups[0].spec
        self._own = threading.local()
        shape = (-1,) if decoding.channels_last else (-1, 1, 1)
        self._mean = np.asarray(decoding.mean, np.float32).reshape(shape)
        self._std = np.asarray(decoding.std, np.float32).reshape(shape)

    def tensor(self, encoded: Array, datatype: Datatype, name: str, *, batched: bool) -> Array:
        """Return N images, each of them bytes, as N×C×H×W or N×H×W×C; without N, the one image.

        Raises `InvalidRequest` that says which image can't be read, `TooLarge` and `MemoryFull`.
        """
        images = encoded.reshape(-1).tolist()
        shape = (len(images), *self._decoding.shape)
        tensor = empty_array(shape, datatype.dtype, "decoded images")
        for index, image in enumerate(images):
            tensor[index] = self._normalised(self._pixels(image, name, index, len(images)))
        return tensor if batched else tensor[0]

    def _pixels(self, image: bytes, name: str, index: int, count: int) -> Array:
        backend: Backend | None = getattr(self._own, "backend", None)
        if backend is None:
            backend = self._own.backend = self._spec.create(Context(node="decode"))
        item: Item = {"data": image}
        try:
            backend.forward([item])
            if "error" in item:
                raise item["error"]
        except InvalidInput as error:
            which = f", image {index + 1} of {count}" if count > 1 else ""
            message = f"input '{name}'{which}: {error}"
            if type(error) is InvalidInput:
                raise InvalidRequest(message) from error
            raise
        pixels: Array = item["result"][0]
        return pixels

    def _normalised(self, pixels: Array) -> Any:
        if self._decoding.mean == (0.0,) and self._decoding.std == (1.0,):
            return pixels
        return (pixels.astype(np.float32) - self._mean) / self._std
