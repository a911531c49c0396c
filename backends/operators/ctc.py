"""Scores of a text recogniser to a text: CTC, decoded greedily."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..base import Backend, Context, Params
from ..errors import BackendError, InvalidInput
from ..item import Item
from .classify import on_host
from .labels import ModelNamesParams, metadata_of, read_declared

CHARACTERS = "character"
"""The key under which RapidOCR's models have their characters in their metadata."""
EXPECTED = "expected the model's characters, one per line, in a file named by `dictionary`"


class CTCDecodeParams(ModelNamesParams):
    dictionary: str | None = Field(
        None,
        description="file with one character per line, in the order of the model's classes after "
        "the blank, or an .onnx file whose metadata has `character`; default: that of the "
        "model before it; relative to the pipeline's file, else to the working directory",
    )
    softmax: bool = Field(
        False, description="true: `data` are logits; false: they are probabilities already"
    )


class CTCDecodeTensor(Backend):
    """The text of a row of scores over time, by greedy CTC decoding, as PaddleOCR does it.

    The best class of each step is taken, repetitions are dropped, then blanks (class 0). The other
    classes are the lines of `dictionary`. If the model has one class more, that is a space, as in
    PaddleOCR's `use_space_char`.

    `data`: 1×T×K or T×K scores of T steps and K classes, from NumPy or from torch on any device.
    Sets `result` (str), `scores` (list of float: the probability of each character), and `score`
    (float: their mean, 0 for an empty text).

    Raises InvalidInput for another shape or dtype and for scores that are not finite. Raises
    BackendError if the dictionary does not fit the model: no other input can mend that.
    """

    parameters: ClassVar[type[Params] | None] = CTCDecodeParams
    takes, gives = "scores", "value"
    characters: tuple[str, ...]
    """By class: the blank, then the dictionary, then a space."""

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("scores", "score")

    def init(self, params: CTCDecodeParams, context: Context) -> None:
        """Raises BackendError if there is no dictionary, or it can't be read or is empty."""
        self.softmax = params.softmax
        if params.dictionary is None and not (params.model or "").endswith(".onnx"):
            raise BackendError(
                f"CTCDecodeTensor: {EXPECTED}; found neither that nor an .onnx model before it, "
                f"whose metadata may have them as `{CHARACTERS}`"
            )
        self.path = context.resolve_input(params.dictionary or params.model or "")
        try:
            read = read_declared(read_characters, self.path, "characters", "CTCDecodeTensor")
        except BackendError as error:
            if params.dictionary is not None:
                raise
            raise BackendError(f"{error}: {EXPECTED}") from error
        self.characters = ("", *read, " ")

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            try:
                self._decode(item)
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error

    def _decode(self, item: Item) -> None:
        scores = self._scores(item["data"])
        best = scores.argmax(1)
        chances = np.take_along_axis(scores, best[:, np.newaxis], 1)
        if not np.isfinite(chances).all():
            raise InvalidInput("CTCDecodeTensor: the scores are not finite (NaN or infinite)")
        if self.softmax:
            # exp of the best logit minus itself is 1.
            chances = 1 / np.exp(scores - chances, dtype=np.float32).sum(1, keepdims=True)
        kept = best != 0
        kept[1:] &= best[1:] != best[:-1]
        item["result"] = "".join([self.characters[index] for index in best[kept].tolist()])
        item["scores"] = probabilities = chances[kept, 0].tolist()
        item["score"] = sum(probabilities) / len(probabilities) if probabilities else 0.0

    def _scores(self, data: Any) -> NDArray[Any]:
        """Return T×K scores."""
        if not hasattr(data, "__array__"):
            raise InvalidInput(
                "CTCDecodeTensor: expected an array of shape 1xTxK or TxK, found "
                f"{type(data).__name__}"
            )
        array = np.asarray(on_host(data))
        if array.ndim == 3 and len(array) == 1:
            array = array[0]
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] == 0:
            raise InvalidInput(
                "CTCDecodeTensor: expected floats of shape 1xTxK or TxK, found "
                f"{array.dtype} of shape {array.shape}"
            )
        # With or without the space.
        if array.shape[1] not in (len(self.characters), len(self.characters) - 1):
            lines = len(self.characters) - 2
            raise BackendError(
                f"CTCDecodeTensor: {self.path} has {lines} characters, but the model gives "
                f"{array.shape[1]} scores a step: expected {lines + 1}, with the blank, or "
                f"{lines + 2}, with a space after the others"
            )
        return array


def read_characters(path: Path) -> tuple[str, ...]:
    """Read a file with one character or text per line, which may be a space, or the `character` in
    the metadata of an .onnx file, which are lines too.

    Raises OSError and ValueError.
    """
    if path.suffix == ".onnx":
        return tuple(metadata_of(path, CHARACTERS).splitlines())  # as RapidOCR does
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return tuple(lines if lines[-1] else lines[:-1])
