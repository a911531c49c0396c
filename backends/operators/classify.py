"""Scores to a class: softmax, the best class, and its label."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..base import Backend, Context, Params
from ..errors import InvalidInput
from ..item import Item
from ..scores import best_classes, softmax
from .labels import LABELS, Labels, ModelNamesParams

SAMPLE_CLASSES = 1000
"""The scores of a sample item if no labels say how many classes there are."""


class SoftmaxArgMaxParams(ModelNamesParams):
    labels: str | None = Field(None, description=LABELS)
    top_k: int = Field(1, ge=1, description="how many of the best classes `top` lists; 1: no `top`")
    softmax: bool = Field(
        True, description="true: `data` are logits; false: they are probabilities already"
    )


class SoftmaxArgMaxTensor(Backend):
    """The best class of a row of scores, as plain Python values that can be written as JSON.

    `data`: 1×K or K scores of any number type, from NumPy or from torch on any device. Sets
    `result` and `class` (int), `score` (float, the probability of the class), `label` (str, if
    there are labels: in the file `labels`, or else in the metadata of the model before it), and
    `top` (with `top_k` > 1: the best classes, best first, each with class, score and label).

    Raises InvalidInput for another shape or dtype and for scores that are not finite. Raises
    BackendError if the numbers of labels and scores differ: no other input can mend that. Labels
    of metadata that differ are left out, with a warning.
    """

    parameters: ClassVar[type[Params] | None] = SoftmaxArgMaxParams
    takes, gives = "scores", "value"

    labels: Labels

    @classmethod
    def keys_set(cls, params: SoftmaxArgMaxParams) -> tuple[str, ...]:
        labelled = params.labels is not None or params.model is not None
        return (
            *(("label",) if labelled else ()),
            "class",
            "score",
            *(("top",) if params.top_k > 1 else ()),
        )

    def init(self, params: SoftmaxArgMaxParams, context: Context) -> None:
        """Raises BackendError if the file of labels can't be read or is empty."""
        self.top_k = params.top_k
        self.softmax = params.softmax
        self.labels = Labels(params.labels, params.model, context, type(self).__name__)
        classes = len(self.labels.texts) or SAMPLE_CLASSES
        self.sample = np.zeros((1, classes), np.float32)

    def forward(self, batch: list[Item]) -> None:
        """Classify all rows of one length at once.

        Next to other threads, each call into NumPy is a wait for the GIL.
        """
        rows: dict[int, list[tuple[Item, NDArray[Any]]]] = {}
        for item in batch:
            try:
                scores = self._scores(item["data"])
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error
            else:
                rows.setdefault(scores.size, []).append((item, scores))
        for members in rows.values():
            self._classify(members, alone=len(batch) == 1)

    def _classify(self, members: list[tuple[Item, NDArray[Any]]], *, alone: bool) -> None:
        scores = np.array([row for _, row in members], np.float64)
        finite: list[bool] = np.isfinite(scores).all(axis=1).tolist()  # type: ignore[assignment]
        if not all(finite):
            error = InvalidInput(
                f"{type(self).__name__}: the scores are not finite (NaN or infinite), so there is "
                "no best class"
            )
            if alone:
                raise error
            for (item, _), is_finite in zip(members, finite, strict=True):
                if not is_finite:
                    item["error"] = InvalidInput(str(error))
            members = [
                member for member, is_finite in zip(members, finite, strict=True) if is_finite
            ]
            if not members:
                return
            scores = scores[finite]
        if self.softmax:
            scores = softmax(scores)
        classes, values = best_classes(scores, self.top_k)
        for (item, _), indices, probabilities in zip(
            members, classes.tolist(), values.tolist(), strict=True
        ):
            ranked = [
                self._describe(index, probability)
                for index, probability in zip(indices, probabilities, strict=True)
            ]
            self._answer(item, ranked)

    def _answer(self, item: Item, ranked: list[dict[str, Any]]) -> None:
        """Set the item's keys. `ranked`: its best classes, the best first."""
        item["result"] = ranked[0]["class"]
        item.update(ranked[0])
        if self.top_k > 1:
            item["top"] = ranked

    def _describe(self, index: int, score: float) -> dict[str, Any]:
        description: dict[str, Any] = {"class": index, "score": score}
        if self.labels.texts:
            description["label"] = self.labels.texts[index]
        return description

    def _scores(self, data: Any) -> NDArray[Any]:
        """Return the row of scores in `data`."""
        if not hasattr(data, "__array__"):
            raise InvalidInput(
                f"{type(self).__name__}: expected an array of shape 1xK or K, found "
                f"{type(data).__name__}"
            )
        array = np.asarray(on_host(data))
        if (
            array.dtype.kind not in "fiu"
            or array.size == 0
            or array.shape not in ((1, array.size), (array.size,))
        ):
            raise InvalidInput(
                f"{type(self).__name__}: expected numbers of shape 1xK or K, found {array.dtype} "
                f"of shape {array.shape}"
            )
        self.labels.check(array.size, droppable=True)
        return array.reshape(-1)


def on_host(data: Any) -> Any:
    """Return a torch tensor from any device, bfloat16 too, in a form that NumPy reads.

    Anything else is returned unchanged. Imports no torch.
    """
    if type(data).__module__.partition(".")[0] != "torch" or not hasattr(data, "detach"):
        return data
    if data.device.type == "cpu" and not data.requires_grad and str(data.dtype) != "torch.bfloat16":
        return data.numpy()
    tensor = data.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor
