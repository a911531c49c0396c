"""One version of a Triton model, ready to be translated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from penstock.backends.errors import Problem
from penstock.backends.item import RESERVED_KEYS

from ..config.tables import PARAMETER_TABLES, STRUCTURE_KEYS, TABLE_KEYS
from .messages import ModelConfig

_NOT_IN_NODE_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_NO_NODE_NAMES = RESERVED_KEYS | PARAMETER_TABLES | STRUCTURE_KEYS | TABLE_KEYS


@dataclass(frozen=True, slots=True)
class TritonModel:
    """A version of a model. `config` is completed; `written` is as in its file."""

    folder: Path
    version: str
    config: ModelConfig
    written: ModelConfig
    file: str
    """Where its configuration is written, for messages: the folder if it has none."""

    @property
    def name(self) -> str:
        name: str = self.config.name
        return name

    @property
    def path(self) -> Path:
        """The folder of the version."""
        return self.folder / self.version

    @property
    def backend(self) -> str:
        """`onnxruntime`, `pytorch`, `python`, …; `ensemble` for an ensemble."""
        backend: str = self.config.backend or self.config.platform
        return backend

    @property
    def batched(self) -> bool:
        """True if the first size of each tensor is the batch."""
        return bool(self.config.max_batch_size > 0)

    @property
    def model_file(self) -> str:
        """The model's file, relative to `folder`. A folder in its place has it, as model.onnx."""
        file = f"{self.version}/{self.config.default_model_filename}"
        is_folder = self.backend == "onnxruntime" and (self.folder / file).is_dir()
        return f"{file}/model.onnx" if is_folder else file

    @property
    def node(self) -> str:
        """The name of the one node: that of the model where a node may have it."""
        name = _NOT_IN_NODE_NAMES.sub("_", self.name)
        return "model" if name in _NO_NODE_NAMES or name.startswith("_") else name

    @property
    def parameters(self) -> dict[str, str]:
        return {key: value.string_value for key, value in self.config.parameters.items()}

    def problem(self, field: str, message: str) -> Problem:
        """Return what is wrong with a field of the configuration (`dynamic_batching.…`)."""
        return Problem(message, self.file, key=field)
