"""The torch engines as files know them. What runs them imports torch, and is imported by `init` alone."""

from __future__ import annotations

from collections.abc import Hashable
from importlib import import_module
from typing import Any, ClassVar

from ...base import Backend, BatchRange, Context, Params
from ...errors import BackendError
from ...item import Item
from ...params import EngineParams
from .params import PythonTensorParams, TorchParams, TorchScriptParams


class TorchBackend(Backend):
    """One that needs torch to run, and not to be checked."""

    extra: ClassVar[str] = "torch"
    engine: ClassVar[str]
    """The module of the class that runs, which has the same name."""

    @classmethod
    def declared_range(cls, params: EngineParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: Any, context: Context) -> None:
        """Raises BackendError and ConfigError that name node and file, and what is missing here."""
        name = type(self).__name__
        try:
            engine: Backend = getattr(import_module(f".{self.engine}", __package__), name)()
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise BackendError(
                f"{name} needs extra {self.extra}, which is not installed here: "
                f"pip install 'penstock-serve[{self.extra}]'"
            ) from error
        self.children = (engine,)
        engine.init(params, context)
        self.min, self.max, self.device = engine.min, engine.max, engine.device

    def forward(self, batch: list[Item]) -> None:
        self.children[0].forward(batch)


class TorchScriptTensor(TorchBackend):
    """Runs TorchScript: a module that torch.jit.save wrote (.pt), on a GPU where there is one.

    `data`: a tensor or array with the batch dimension, N×..., N = `request_size` (1 where the item has none); a list of them in the order
    of the model's arguments; or a dict of them by the arguments' names, or by any that end with their index (`INPUT__0`). A model that
    takes a dict of tensors gets the dict; an argument that is a List[str] gets a list of N texts. `result`: the output on the CPU, N×...
    (texts: a list of N), or a list of them. The options are those of Triton's PyTorch backend.
    """

    parameters: ClassVar[type[Params] | None] = TorchScriptParams
    engine: ClassVar[str] = "script"


class TorchExportTensor(TorchBackend):
    """Runs a .pt2 file: a program that torch.export.save wrote, or a package of AOTInductor, which runs on what it was compiled for.

    `data`: a tensor or array with the batch dimension, N×..., N = `request_size` (1 where the item has none), or a list of them in the
    order of the model's inputs, or a dict of them by name. `result`: the output as a tensor on the CPU, N×..., or a list of them. A dtype
    that widens without loss is converted; another dtype or shape is an `InvalidInput`. A program with a fixed batch runs padded with
    zeros.
    """

    parameters: ClassVar[type[Params] | None] = TorchParams
    engine: ClassVar[str] = "export"


class PythonTensor(TorchBackend):
    """Runs an nn.Module as Python writes it: `model` names what makes it, `state_dict` has its weights.

    `data`: a tensor or array with the batch dimension, N×..., N = `request_size` (1 where the item has none), or a list of them in the
    order of forward's arguments, or a dict of them by name. `result`: the output as a tensor on the CPU, N×..., or a list of them.
    """

    parameters: ClassVar[type[Params] | None] = PythonTensorParams
    engine: ClassVar[str] = "python"


def shape_key(item: Item) -> Hashable:
    """What one run may not mix: shapes behind the batch dimension, and dtypes."""
    data = item.get("data")
    if isinstance(data, list | tuple):
        return tuple(
            [
                (tuple(array.shape[1:]), array.dtype) if hasattr(array, "shape") else None
                for array in data
            ]
        )
    return (
        (tuple(data.shape[1:]), data.dtype) if data is not None and hasattr(data, "shape") else None
    )
