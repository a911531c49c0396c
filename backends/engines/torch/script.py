"""TorchScriptEngine: modules saved by torch.jit, with the options of Triton's PyTorch backend."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...base import Context
from ...errors import BackendError, InvalidInput
from ..encryption import is_encrypted, read_model
from .module import TorchModule, identity_of, reason_of, silence
from .params import TorchScriptParams

logger = logging.getLogger("penstock.torch")


class TorchScriptEngine(TorchModule):
    """Runs a TorchScript module: the engine of TorchScriptTensor."""

    backend_name: ClassVar[str] = "TorchScriptTensor"

    warm_up_runs: ClassVar[int] = 3
    """The JIT profiles the first runs, and compiles in the runs after those."""

    reads_encrypted = True

    def open(self, params: TorchScriptParams, context: Context, device: torch.device) -> Any:
        self.set_process_wide("ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER")
        if params.enable_nvfuser is not None:
            logger.warning("%s: ENABLE_NVFUSER has no effect: torch dropped nvFuser", self.prefix)
        path = self.file(params.model)
        model = self.shared(identity_of(path), lambda: self._load(path, device))
        self._read_schema(model, path)
        self.has_doubles = any(parameter.dtype == torch.float64 for parameter in model.parameters())
        self._dict_names: tuple[str, ...] = ()
        return model

    def _load(self, path: Path, device: torch.device) -> Any:
        silence("torch.jit.load")
        source = io.BytesIO(read_model(path)) if is_encrypted(path) else path
        try:
            model = torch.jit.load(source, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise BackendError(
                f"{self.prefix}: the model {path} can't be loaded as TorchScript: "
                f"{reason_of(error)}"
            ) from error
        if hasattr(model, "training"):  # a frozen module has no such attribute
            model.eval()
        return model if self._precision is None else model.to(self._precision)

    def _read_schema(self, model: Any, path: Path) -> None:
        """Read from `forward`'s schema the names of its arguments.

        Also which of them are texts, and how many are required. Raises BackendError for arguments
        that are neither tensors nor texts.
        """
        arguments = model.forward.schema.arguments[1:]
        types = [
            str(argument.type)
            .removeprefix("Optional[")
            .removesuffix("]" * str(argument.type).startswith("Optional["))
            for argument in arguments
        ]
        if types == ["Dict[str, Tensor]"]:
            self.takes_dict = True
            return
        while (
            arguments
            and arguments[-1].has_default_value()
            and types[len(arguments) - 1] not in ("Tensor", "List[str]")
        ):
            arguments = arguments[:-1]
        for argument, type_name in zip(arguments, types, strict=False):
            if type_name not in ("Tensor", "List[str]"):
                raise BackendError(
                    f"{self.prefix}: the model {path}: argument {argument.name!r} is "
                    f"{argument.type}: expected Tensor, List[str], or a single Dict[str, Tensor]"
                )
        returned = str(model.forward.schema.returns[0].type)
        if returned in ("Tensor", "List[str]"):
            self.output_count = 1
        elif returned.startswith("Tuple["):
            self.output_count = len(model.forward.schema.returns[0].type.elements())
        self.inputs = tuple([argument.name for argument in arguments])
        self.required = sum(not argument.has_default_value() for argument in arguments)
        self.texts = frozenset(
            position for position in range(len(arguments)) if types[position] == "List[str]"
        )

    def in_order(self, data: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
        if self.takes_dict:
            names = self.params.inputs
            if names and not isinstance(data, dict):
                values = data if isinstance(data, list | tuple) else [data]
                if len(values) != len(names):
                    raise InvalidInput(
                        f"TorchScriptTensor: the inputs are {', '.join(names)}, but data holds "
                        f"{len(values)}"
                    )
                data = dict(zip(names, values, strict=True))
            if (
                not isinstance(data, dict)
                or not data
                or not all(isinstance(name, str) for name in data)
            ):
                raise InvalidInput(
                    f"TorchScriptTensor: expected a dict of tensors by name, found "
                    f"{type(data).__name__}"
                )
            names = tuple(sorted(data))
            return names, [data[name] for name in names]
        if self.inputs is not None and len(self.inputs) == 1 and self.texts and _is_texts(data):
            data = [data]  # a list of texts is one input here, not several inputs of one text
        return super().in_order(data)

    def example_shapes(self) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        return [] if self.takes_dict or self.texts else super().example_shapes()

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        plain = self.params.disable_optimized_execution or self.probing
        with _Unoptimised() if plain else nullcontext():
            return (
                self.model(dict(zip(names, inputs, strict=True)))
                if self.takes_dict
                else self.model(*inputs)
            )


class _Unoptimised:
    """A `with` block without TorchScript's optimiser.

    It affects only this thread, since torch has the switch per thread.
    """

    def __enter__(self) -> None:
        self._before = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_graph_executor_optimize(self._before)


def _is_texts(data: Any) -> bool:
    return not isinstance(data, list | tuple) or all(isinstance(text, str | bytes) for text in data)
