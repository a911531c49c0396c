"""The labels of a model's classes, and the characters that it reads: of a file, or of the model."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ..base import Context, Params
from ..errors import BackendError
from ..model_metadata import read_metadata

logger = logging.getLogger("penstock.labels")

LABELS = (
    "file with one label per line, in the order of the classes, or an .onnx file whose metadata "
    "has `names`; default: those of the model before it, if it has any; relative to the "
    "pipeline's file, else to the working directory"
)


class ModelNamesParams(Params):
    """The parameters of a backend whose texts may be in the metadata of a model."""

    keyword_only: ClassVar[frozenset[str]] = Params.keyword_only | {"model"}

    model: str | None = Field(
        None,
        description="the model whose metadata may have the texts; default: that of the engine "
        "before it",
    )


class Labels:
    """The labels of a classifier or detector. `texts` is empty if there are none."""

    __slots__ = ("_backend", "_context", "_declared", "_path", "texts")

    def __init__(
        self, labels: str | None, model: str | None, context: Context, backend: str
    ) -> None:
        """Read the file `labels`, or else the metadata of `model`, as the node names them.

        Raises BackendError if `labels` can't be read or has none.
        """
        self.texts: tuple[str, ...] = ()
        self._context = context
        self._backend = backend
        self._declared = labels is not None
        self._path: Path | None = None
        if labels is not None:
            self._path = context.resolve_input(labels)
            self.texts = read_declared(read_labels, self._path, "labels", backend)
        elif model is not None and model.endswith(".onnx"):
            self._path = context.resolve_input(model)
            self.texts = labels_of_model(self._path)

    def check(self, classes: int, *, droppable: bool) -> None:
        """Compare the number of labels with that of the model's classes.

        Raises BackendError if they differ. If they are `droppable`, labels that no one asked for
        are dropped instead, with a warning.
        """
        if not self.texts or len(self.texts) == classes:
            return
        problem = f"{self._path} has {len(self.texts)} labels, but the model gives {classes} scores"
        if self._declared or not droppable:
            raise BackendError(f"{self._backend}: {problem}")
        self.texts = ()
        logger.warning(
            "%s: the `names` in the metadata of %s: answers have no label; name a file in `labels`",
            self._backend,
            problem,
            extra={"pipeline": self._context.pipeline, "node": self._context.node},
        )


def read_declared(read: Any, path: Path, what: str, backend: str) -> tuple[str, ...]:
    """Read a file that a pipeline names. Raises BackendError if it can't be read or is empty."""
    try:
        texts: tuple[str, ...] = read(path)
    except (OSError, ValueError) as error:
        raise BackendError(f"{backend}: the {what} {path} can't be read: {error}") from error
    if not texts:
        raise BackendError(f"{backend}: {path} is empty: expected {what}, one per line")
    return texts


def read_labels(path: Path) -> tuple[str, ...]:
    """Read a file with one label per line, or the `names` in the metadata of an .onnx file.

    Raises OSError and ValueError.
    """
    if path.suffix == ".onnx":
        return names_of(metadata_of(path, "names"))
    return tuple(
        line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    )


def labels_of_model(path: Path) -> tuple[str, ...]:
    """Return the `names` in the metadata of an .onnx file; () if it has none that can be read."""
    try:
        return names_of(metadata_of(path, "names"))
    except (OSError, ValueError):  # what else is wrong with the model, its engine says
        return ()


def names_of(text: str) -> tuple[str, ...]:
    """Return the names in a text of metadata: a JSON list or object, or a dict as Python writes it
    and Ultralytics exports it, {0: 'cat', 1: 'dog'}. Raises ValueError for anything else.
    """
    names = _literal(text)
    if isinstance(names, dict):
        by_class = {str(key): name for key, name in names.items()}
        names = [by_class.get(str(index)) for index in range(len(by_class))]
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(name, str | int) for name in names)
    ):
        raise ValueError(
            f"its metadata has names = {text:.100}: expected a list of texts, or a dict of them by "
            "class, counted from 0"
        )
    return tuple(map(str, names))


def metadata_of(path: Path, key: str) -> str:
    """Return a text in the metadata of an .onnx file. Raises OSError and ValueError."""
    text = read_metadata(path).get(key)
    if text is None:
        raise ValueError(f"its metadata has no `{key}`")
    return text


def _literal(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None
