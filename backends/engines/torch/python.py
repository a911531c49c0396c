"""PythonTensor: an nn.Module as Python writes it, with weights from a file."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import torch

from ...base import Context
from ...errors import BackendError, ConfigError, Problem
from ...expressions.user import load
from .module import TorchModule, identity_of, reason_of, silence
from .params import PythonTensorParams

OWN_GRAPHS = ("reduce-overhead", "max-autotune")
"""The modes in which torch.compile captures CUDA graphs itself."""


class PythonTensor(TorchModule):
    """What `backend.PythonTensor` is once it runs."""

    def open(self, params: PythonTensorParams, context: Context, device: torch.device) -> Any:
        made_by = self._find(params.model)
        weights = self.file(params.state_dict) if params.state_dict is not None else None
        key = (
            made_by,
            identity_of(weights) if weights is not None else None,
            repr(sorted(params.kwargs.items())),
            params.channels_last,
        )
        module: torch.nn.Module = self.shared(key, lambda: self._make(made_by, weights, device))
        self._read_signature(module)
        self.has_doubles = any(
            parameter.dtype == torch.float64 for parameter in module.parameters()
        )
        self.can_capture = params.compile not in OWN_GRAPHS
        if not params.compile:
            return module
        silence("torch.jit.script_method")  # torch's own compiler uses it
        return torch.compile(module, mode=params.compile)

    def _find(self, target: str) -> Any:
        try:
            return load(target, self.context.directory)
        except ConfigError as error:
            problems = [
                Problem(
                    problem.message.replace("Python[", "PythonTensor["),
                    "",
                    self.context.node,
                    "model",
                )
                for problem in error.problems
            ]
            raise ConfigError(problems) from error

    def _make(self, made_by: Any, weights: Path | None, device: torch.device) -> torch.nn.Module:
        try:
            module = made_by(**self.params.kwargs)
        except Exception as error:
            raise BackendError(
                f"{self.who}: {self.params.model} failed with {self.params.kwargs}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise BackendError(
                f"{self.who}: {self.params.model} made a {type(module).__name__}: expected a torch.nn.Module"
            )
        if weights is not None:
            self._fill(module, weights)
        module = module.eval().requires_grad_(False).to(device=device, dtype=self._precision)
        return module.to(memory_format=torch.channels_last) if self.params.channels_last else module  # type: ignore[call-overload]

    def _fill(self, module: torch.nn.Module, path: Path) -> None:
        where = f"{self.who}: the state_dict {path}"
        try:
            missing, unexpected = module.load_state_dict(_read_weights(path), strict=False)
        except ModuleNotFoundError as error:
            raise BackendError(
                f"{where}: .safetensors files need safetensors: pip install 'penstock-serve[torch]'"
            ) from error
        except pickle.UnpicklingError as error:
            raise BackendError(
                f"{where} holds more than tensors, or is no state_dict: {reason_of(error)}"
            ) from error
        except (
            Exception
        ) as error:  # safetensors' has no base of its own; RuntimeError for shapes that differ
            raise BackendError(
                f"{where} can't be loaded into {self.params.model}: {reason_of(error)}"
            ) from error
        wrong = [
            f"{len(names)} keys {what} ({_some(names)})"
            for what, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        if wrong:
            raise BackendError(f"{where} does not fit {self.params.model}: {'; '.join(wrong)}")

    def _read_signature(self, module: torch.nn.Module) -> None:
        """The names of `forward`'s arguments; not those of one that takes any number."""
        arguments = inspect.signature(module.forward).parameters.values()
        if all(each.kind is each.POSITIONAL_OR_KEYWORD for each in arguments):
            self.inputs = tuple([each.name for each in arguments])
            self.required = sum(each.default is each.empty for each in arguments)

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        if self.params.channels_last:
            inputs = [
                each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each
                for each in inputs
            ]
        return self.model(*inputs)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(
        isinstance(each, torch.Tensor) for each in found.values()
    ):
        raise ValueError(f"it holds {_kinds(found)}: expected tensors by name")
    return found


def _kinds(found: Any) -> str:
    return (
        f"a dict with {_some(list(found))}"
        if isinstance(found, dict)
        else f"a {type(found).__name__}"
    )


def _some(names: list[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
