"""Tensors to and from files, for debugging and for constants."""

from __future__ import annotations

import io
from typing import Any, ClassVar

from pydantic import Field

from ...base import Context, Params
from ...errors import BackendError
from ...item import Item
from ..files import NumberedFiles
from .backend import TensorBackend, TensorParams


class SaveTensorParams(TensorParams):
    save_dir: str = Field(
        description="directory for the files; must exist; relative to the pipeline's file, else to "
        "the working directory"
    )


class SaveTensor(TensorBackend):
    """Writes each tensor to a file, for debugging. `result` is `data`.

    It is slow, and nothing deletes the files. `data`: a tensor or array of numbers, or a list of
    them. The file is NODE_INSTANCE_NUMBER.pt, with tensors on the CPU, for `torch.load` and
    LoadTensor. Existing files are never overwritten.

    Raises InvalidInput for anything else, and BackendError if the directory is missing or can't be
    written to.
    """

    parameters: ClassVar[type[Params] | None] = SaveTensorParams
    files: NumberedFiles

    def init(self, params: SaveTensorParams, context: Context) -> None:
        super().init(params, context)
        self.files = NumberedFiles(params.save_dir, context, "SaveTensor")

    def answer(self, item: Item) -> Any:
        import torch

        data = item["data"]
        # Copies: torch would write the whole memory that a view belongs to.
        tensors = [tensor.cpu().clone() for tensor in self.tensors(data)]
        content = io.BytesIO()
        torch.save(tensors if isinstance(data, list | tuple) else tensors[0], content)
        self.files.write(content.getvalue(), ".pt")
        return data


class LoadTensorParams(TensorParams):
    tensor_name: str = Field(
        description="the file, as written by torch.save or SaveTensor; relative to the pipeline's "
        "file, else to the working directory"
    )


class LoadTensor(TensorBackend):
    """Answers every item with the tensor of a file: a constant input, or one that SaveTensor wrote.

    `data` is not used. `result`: a copy for each item, or a list of them. The file is read once,
    and only as tensors (`weights_only`), so it can't run code.
    """

    parameters: ClassVar[type[Params] | None] = LoadTensorParams

    def init(self, params: LoadTensorParams, context: Context) -> None:
        """Raises BackendError if the file is missing or holds other things than tensors."""
        super().init(params, context)
        import torch

        path = context.resolve_input(params.tensor_name)
        try:
            with self._half.errors("loading a tensor"):
                loaded = torch.load(path, map_location=self._half.device, weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # pickle, zipfile and torch raise many kinds
            raise BackendError(
                f"LoadTensor: {path} can't be read: {type(error).__name__}: {error}"
            ) from error
        self.values = list(loaded) if isinstance(loaded, list | tuple) else [loaded]
        self.single = isinstance(loaded, torch.Tensor)
        if not self.values or not all(isinstance(value, torch.Tensor) for value in self.values):
            raise BackendError(
                f"LoadTensor: {path} holds a {type(loaded).__name__}: expected a tensor or a list "
                "of them"
            )

    def answer(self, item: Item) -> Any:
        import torch

        copies = [
            value.detach().clone(memory_format=torch.contiguous_format) for value in self.values
        ]
        return copies[0] if self.single else copies
