"""The folders of Triton's models: `NAME/config.pbtxt` and a numbered folder for each version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..config.versions import VERSION_FILE

CONFIG_FILE = "config.pbtxt"

DEFAULT_FILES = {
    "model.plan": "tensorrt",
    "model.onnx": "onnxruntime",
    "model.xml": "openvino",
    "model.pt": "pytorch",
    "model.py": "python",
}
"""The file of a model that its configuration doesn't name -> the backend that runs it. If there are
several, the first one here counts, as in Triton."""

_VERSION = re.compile(r"0|[1-9][0-9]{0,18}")


def own_name(folder: Path) -> str:
    """Return the name of a folder; of a link, its own and not that of where it leads."""
    return folder.name if folder.is_symlink() else folder.resolve().name


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The folder of a model. `versions` has those that are there, the oldest first."""

    path: Path
    versions: tuple[str, ...]
    has_config: bool

    @property
    def name(self) -> str:
        return own_name(self.path)

    @property
    def config_file(self) -> Path:
        """The file of its configuration, which may be missing."""
        return self.path / CONFIG_FILE


def model_folder(path: Path) -> ModelFolder | None:
    """Return a folder as that of a Triton model; None if it isn't one.

    One without `config.pbtxt` is one too, if a version has a model under its usual name and no
    version has a pipeline's file.
    """
    has_config = (path / CONFIG_FILE).is_file()
    numbered = [
        folder
        for folder in path.glob("[0-9]*")
        if _VERSION.fullmatch(folder.name) and folder.is_dir()
    ]
    versions = sorted((folder.name for folder in numbered), key=int)
    if not has_config and (
        any((folder / VERSION_FILE).is_file() for folder in numbered)
        or not any((folder / name).exists() for folder in numbered for name in DEFAULT_FILES)
    ):
        return None
    return ModelFolder(path, tuple(versions), has_config)


def model_folders(directory: Path) -> list[ModelFolder]:
    """Return the models of a repository, and the directory itself if it is a model's folder."""
    inside = sorted(folder for folder in directory.iterdir() if folder.is_dir())
    return [found for folder in (directory, *inside) if (found := model_folder(folder)) is not None]
