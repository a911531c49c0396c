"""Samples: batches that an instance runs before it is ready, as Triton's `model_warmup`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .base import Context, NumpyType
from .errors import ConfigError, Problem
from .item import Item
from .lazy_numpy import np


class SampleInput(BaseModel):
    """One tensor of a sample, without the batch axis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: NumpyType
    shape: tuple[Annotated[int, Field(ge=0, strict=True)], ...]
    data: str = "zeros"
    """`zeros`, `random`, or the path of a file with the values, row by row. A text in it has its
    length in front, 4 bytes, the lowest first.
    """

    def array(self, name: str, context: Context) -> Any:
        """Return the values as an array. Raises ConfigError for a file that does not have them."""
        count = 1
        for size in self.shape:
            count *= size
        if self.dtype == "string":
            texts = [""] * count if self.data in ("zeros", "random") else self._texts(name, context)
            if len(texts) != count:
                message = f"{self.data} has {len(texts)} texts for {name}, expected {count}"
                raise _wrong(context, message)
            array = np.empty(count, object)
            array[:] = texts
            return array.reshape(self.shape)
        dtype = np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)
        if self.data == "zeros":
            return np.zeros(self.shape, dtype)
        if self.data == "random":
            # 0 and 1 are in the range of all integers that stand for something: tokens, classes.
            random = np.random.default_rng(0)
            values = random.random(count) if dtype.kind == "f" else random.integers(0, 2, count)
            return values.astype(dtype).reshape(self.shape)
        content = self._content(context)
        if self.dtype == "bfloat16":
            halves = self._numbers(content, count, np.dtype("<u2"), name, context)
            return (halves.astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        return self._numbers(content, count, dtype, name, context).reshape(self.shape)

    def _numbers(self, content: bytes, count: int, dtype: Any, name: str, context: Context) -> Any:
        size = count * dtype.itemsize
        if len(content) < size:
            message = f"{self.data} has {len(content)} bytes for {name}, expected {size}"
            raise _wrong(context, message)
        return np.frombuffer(content[:size], dtype).copy()

    def _content(self, context: Context) -> bytes:
        try:
            return context.resolve_input(self.data).read_bytes()
        except OSError as error:
            raise _wrong(context, f"{self.data} can't be read: {error.strerror}") from error

    def _texts(self, name: str, context: Context) -> list[bytes]:
        content, texts, place = self._content(context), [], 0
        while place + 4 <= len(content):
            (length,) = struct.unpack_from("<I", content, place)
            texts.append(content[place + 4 : place + 4 + length])
            place += 4 + length
        if place != len(content):
            raise _wrong(context, f"{self.data} ends within a text of {name}")
        return texts


class Sample(BaseModel):
    """One element of the key `warm_up`: a batch of requests that have the same tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    batch_size: int = Field(1, ge=1, strict=True)
    count: int = Field(1, ge=1, strict=True)
    inputs: dict[str, SampleInput]


def run_samples(
    samples: Sequence[Sample],
    forward: Callable[[list[Item]], None],
    context: Context,
    most: int,
    *,
    batched: bool,
) -> None:
    """Run each sample `count` times, as batches of at most `most` items of one row.

    `batched`: the tensors have a batch axis, which comes first. `forward` takes `data` as a dict.
    Raises ConfigError that names the sample that fails.
    """
    for number, sample in enumerate(samples):
        arrays = {name: port.array(name, context) for name, port in sample.inputs.items()}
        if batched:
            arrays = {name: array[None] for name, array in arrays.items()}
        for _ in range(sample.count):
            for size in _sizes(sample.batch_size, most):
                batch: list[Item] = [{"data": arrays} for _ in range(size)]
                try:
                    forward(batch)
                    error = next((item["error"] for item in batch if "error" in item), None)
                    if error is not None:
                        raise error
                except Exception as error:
                    name = sample.name or f"number {number + 1}"
                    text = str(error) or type(error).__name__
                    raise _wrong(context, f"the sample {name} failed: {text}") from error


def _sizes(rows: int, most: int) -> Iterator[int]:
    while rows > 0:
        yield min(rows, most)
        rows -= most


def _wrong(context: Context, message: str) -> ConfigError:
    return ConfigError([Problem(message, node=context.node, key="warm_up")])
