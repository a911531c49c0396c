"""PythonEngine: an nn.Module from Python code, with weights from a file."""

from __future__ import annotations

import inspect
import logging
import pickle
import threading
from collections import defaultdict
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from ...base import Context
from ...errors import BackendError, ConfigError, Problem
from ...text import message_of
from ...user_code import load
from ..accuracy import SAMPLE_ROWS, compare, log_accuracy, sample_inputs
from .module import TorchModule, identity_of, reason_of, silence
from .params import PythonTensorParams
from .quantisation import quantise
from .reading import dtype_text, to_array
from .weights import fit, mapped_weights, read_weights, some

logger = logging.getLogger("penstock.torch")

MODES_WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""The modes in which torch.compile captures CUDA graphs itself."""


class PythonEngine(TorchModule):
    """Runs an nn.Module: the engine of PythonTensor."""

    backend_name: ClassVar[str] = "PythonTensor"

    def open(self, params: PythonTensorParams, context: Context, device: torch.device) -> Any:
        factory = self._find(params.model)
        weights = self.file(params.state_dict) if params.state_dict is not None else None
        key = (
            factory,
            identity_of(weights) if weights is not None else None,
            repr(sorted(params.kwargs.items())),
            params.channels_last,
            params.quantize,
        )
        module: torch.nn.Module = self.shared(key, lambda: self._make(factory, weights, device))
        self._read_signature(module)
        self.has_doubles = any(
            parameter.dtype == torch.float64 for parameter in module.parameters()
        )
        self.can_capture = params.compile not in MODES_WITH_CUDA_GRAPHS
        if not params.compile:
            return module
        silence("torch.jit.script_method")  # torch.compile itself calls it
        if params.compile in MODES_WITH_CUDA_GRAPHS:
            _allow_graphs_on_this_thread()
        return self.shared((key, params.compile), lambda: _compiled(module, params.compile))

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

    def _make(self, factory: Any, weights: Path | None, device: torch.device) -> torch.nn.Module:
        try:
            module = factory(**self.params.kwargs)
        except Exception as error:
            raise BackendError(
                f"{self.prefix}: {self.params.model} failed with {self.params.kwargs}: "
                f"{type(error).__name__}: {message_of(error)}"
            ) from error
        if not isinstance(module, torch.nn.Module):
            raise BackendError(
                f"{self.prefix}: {self.params.model} made a {type(module).__name__}: expected a "
                "torch.nn.Module"
            )
        if weights is not None:
            self._fill(module, weights)
        module = module.eval().requires_grad_(False).to(device=device, dtype=self._precision)
        if self.params.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.params.quantize:
            self._quantise(module)
        return module

    def _quantise(self, module: torch.nn.Module) -> None:
        """Quantise the module, and log how far its answers to random rows move."""
        shapes = self.example_shapes()
        ports = [(shape, np.dtype(dtype_text(dtype))) for shape, dtype in shapes]
        inputs = [torch.from_numpy(values).to(self._half.device) for values in sample_inputs(ports)]
        before = self._answers(module, inputs)
        quantise(module, self.params.quantize, self.prefix)
        after = self._answers(module, inputs)
        accuracy = (
            compare(before, after, SAMPLE_ROWS)
            if before is not None and after is not None
            else "the model refuses random rows"
            if inputs
            else "their shapes are not known: max = 8x3x224x224 gives them"
        )
        context = self.context
        if self.params.enable_weight_sharing and not context.alone:
            context = replace(context, instance=0)  # this one loads the module for all of them
        log_accuracy(
            logger,
            self.prefix,
            context,
            accuracy,
            precision=f"quantize = {self.params.quantize}",
            reference=self.params.precision or "fp32",
        )

    def _answers(
        self, module: torch.nn.Module, inputs: list[torch.Tensor]
    ) -> list[NDArray[Any]] | None:
        """Run the module. Return None without inputs, because `max` has no shapes, and if it
        refuses them.
        """
        if not inputs:
            return None
        with self.gradients_off():
            try:
                outputs = self.outputs_of(module(*self.ready(inputs)))
            except Exception as error:  # models raise whatever their code raises
                logger.debug("%s: random rows: %s", self.prefix, reason_of(error))
                return None
        return [to_array(output) for output in outputs if isinstance(output, torch.Tensor)]

    def _fill(self, module: torch.nn.Module, path: Path) -> None:
        where = f"{self.prefix}: the state_dict {path}"
        try:
            weights = mapped_weights(path, self.context)
            as_it_is = weights is not None and fit(weights, module)
            if weights is None or not as_it_is:
                weights = read_weights(path)
            missing, unexpected = module.load_state_dict(weights, strict=False, assign=as_it_is)
        except ModuleNotFoundError as error:
            raise BackendError(
                f"{where}: .safetensors files need safetensors: pip install 'penstock-serve[torch]'"
            ) from error
        except pickle.UnpicklingError as error:
            raise BackendError(
                f"{where} holds more than tensors, or is not a state_dict: {reason_of(error)}"
            ) from error
        except Exception as error:  # safetensors raises its own, torch RuntimeError for shapes
            raise BackendError(
                f"{where} can't be loaded into {self.params.model}: {reason_of(error)}"
            ) from error
        wrong = [
            f"{len(names)} keys {problem} ({some(names)})"
            for problem, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        if wrong:
            raise BackendError(f"{where} does not fit {self.params.model}: {'; '.join(wrong)}")

    def _read_signature(self, module: torch.nn.Module) -> None:
        """Take the inputs' names from `forward`'s arguments, unless it takes any number of them."""
        arguments = inspect.signature(module.forward).parameters.values()
        if all(argument.kind is argument.POSITIONAL_OR_KEYWORD for argument in arguments):
            self.inputs = tuple([argument.name for argument in arguments])
            self.required = sum(argument.default is argument.empty for argument in arguments)

    def call(self, inputs: list[Any], names: tuple[str, ...]) -> Any:
        if self.params.channels_last:
            inputs = [
                value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
                for value in inputs
            ]
        # A probe must not make torch.compile compile for its batch sizes.
        model = getattr(self.model, "_orig_mod", self.model) if self.probing else self.model
        return model(*inputs)


def _allow_graphs_on_this_thread() -> None:
    """Give this thread the state in which torch.compile keeps its CUDA graphs.

    Until torch 2.11 at least, only the thread that imports the module has it, and the first run on
    another one fails with an AssertionError without a word.
    """
    trees: Any = import_module("torch._inductor.cudagraph_trees")
    if not hasattr(trees.local, "tree_manager_containers"):
        trees.local.tree_manager_containers = {}
        trees.local.tree_manager_locks = defaultdict(threading.Lock)


def _compiled(module: torch.nn.Module, mode: str) -> Any:
    """Compile a module, apart from others of its class.

    torch counts what it compiles by the code of `forward`, and after 8 versions, of whatever
    models, it runs further ones as they are, with a warning of its own. Three versions are one
    model's: the largest batch, any batch, and 1.
    """
    options: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.11 lacks it
        options["isolate_recompiles"] = True
    return torch.compile(module, mode=mode, **options)
