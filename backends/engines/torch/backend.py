"""TorchScriptTensor, TorchExportTensor and PythonTensor, the backends that files name.

They are declared without torch, so that a file can be checked on a machine that lacks it. `init`
imports the engine that does the work.
"""

from __future__ import annotations

from collections.abc import Hashable
from importlib import import_module
from typing import Any, ClassVar

from ...base import Backend, BatchRange, Context, Params
from ...errors import BackendError
from ...item import Item
from ...params import EngineParams
from ..shapes import shape_key
from .params import PythonTensorParams, TorchParams, TorchScriptParams


class TorchBackend(Backend):
    """A backend that needs torch to run, though not to be checked. Its one child is the engine."""

    extra: ClassVar[str] = "torch"
    blocks = "it runs a model"
    engine: ClassVar[str]
    """The engine's class, as `module:Class`; `init` imports it."""

    @classmethod
    def keys_set(cls, params: EngineParams) -> tuple[str, ...] | None:
        return params.keys_set

    @classmethod
    def declared_range(cls, params: EngineParams, children: tuple[BatchRange, ...]) -> BatchRange:
        return params.declared_range()

    @staticmethod
    def shape_key(item: Item) -> Hashable:  # type: ignore[override]
        return shape_key(item)

    def init(self, params: Any, context: Context) -> None:
        """Import the engine and let it load the model.

        Raises BackendError if torch is missing, and what the engine raises: BackendError and
        ConfigError that name the node and the file.
        """
        name = type(self).__name__
        module, _, engine_class = self.engine.partition(":")
        try:
            engine: Backend = getattr(import_module(module), engine_class)()
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
        self.signature = engine.signature

    def forward(self, batch: list[Item]) -> None:
        self.children[0].forward(batch)


class TorchScriptTensor(TorchBackend):
    """Runs a TorchScript module that torch.jit.save wrote (.pt), on a GPU or on the CPU.

    `data`: a tensor or array with the batch dimension first, N×..., for an item of N
    rows. A model with several arguments takes a list in the order of its
    arguments, or a dict by their names or by names that end with their index (`INPUT__0`). A model
    whose one argument is a dict of tensors gets the dict. An argument of type List[str] takes a
    list of N texts.

    `result`: the output as a tensor on the CPU, N×... (texts: a list of N), or a list of outputs.
    The options are those of Triton's PyTorch backend.
    """

    parameters: ClassVar[type[Params] | None] = TorchScriptParams
    takes = gives = "array"
    engine: ClassVar[str] = "penstock.backends.engines.torch.script:TorchScriptEngine"


class TorchExportTensor(TorchBackend):
    """Runs a .pt2 file: a program of torch.export, or a package that AOTInductor compiled.

    A package runs on the kind of device that it was compiled for.

    `data`: a tensor or array with the batch dimension first, N×..., for an item of N
    rows; a list of them in the order of the model's inputs, or a dict of
    them by name. `result`: the output as a tensor on the CPU, N×..., or a list of outputs.

    A dtype that widens without loss is converted. Any other dtype or shape is an `InvalidInput`. A
    program with a fixed batch size runs padded with zeros.
    """

    parameters: ClassVar[type[Params] | None] = TorchParams
    takes = gives = "array"
    engine: ClassVar[str] = "penstock.backends.engines.torch.export:TorchExportEngine"


class PythonTensor(TorchBackend):
    """Runs an nn.Module from Python code.

    `model` names the class or function that makes it, `state_dict` the file of its weights.

    `data`: a tensor or array with the batch dimension first, N×..., for an item of N
    rows; a list of them in the order of forward's arguments, or a dict of
    them by name. `result`: the output as a tensor on the CPU, N×..., or a list of outputs.
    """

    parameters: ClassVar[type[Params] | None] = PythonTensorParams
    engine: ClassVar[str] = "penstock.backends.engines.torch.python:PythonEngine"
