"""Answers in the form of TorchServe: scores by label, and the class of each pixel."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ..base import Backend, Params
from ..errors import InvalidInput
from ..item import Item
from .classify import SoftmaxArgMaxParams, SoftmaxArgMaxTensor, on_host


class TopScoresParams(SoftmaxArgMaxParams):
    top_k: int = Field(5, ge=1, description="how many of the best classes the result has")


class TopScoresTensor(SoftmaxArgMaxTensor):
    """The probabilities of the best classes by label, as TorchServe's image_classifier answers.

    `data`: 1×K or K scores of any number type, from NumPy or from torch on any device. `result`: a
    dict of label → probability with at most `top_k` entries, the best first; without labels its
    keys are the numbers of the classes, as text. Of classes with one label the last one stays.

    Raises what SoftmaxArgMaxTensor raises.
    """

    parameters: ClassVar[type[Params] | None] = TopScoresParams

    @classmethod
    def keys_set(cls, params: SoftmaxArgMaxParams) -> tuple[str, ...]:
        return ()

    def _answer(self, item: Item, ranked: list[dict[str, Any]]) -> None:
        item["result"] = {best.get("label", str(best["class"])): best["score"] for best in ranked}


class ClassMapTensor(Backend):
    """The best class of each pixel and its probability, as TorchServe's image_segmenter answers.

    `data`: 1×K×H×W floats, from NumPy or from torch on any device, or a list whose first element
    is that (torchvision's models also give the scores of an auxiliary head). `result`: H×W×2,
    float32: the class, and its probability by softmax over the K classes.

    Raises InvalidInput for another shape or dtype.
    """

    takes, gives = "array", "array"
    blocks = "its time grows with the image"

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ()

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            data = item["data"]
            if isinstance(data, list | tuple) and data:
                data = data[0]
            scores = np.asarray(on_host(data))
            if (
                scores.dtype.kind != "f"
                or scores.ndim != 4
                or scores.shape[0] != 1
                or scores.size == 0
            ):
                raise InvalidInput(
                    "ClassMapTensor: expected floats of shape 1xKxHxW, found "
                    f"{scores.dtype} of shape {scores.shape}"
                )
            classes = scores[0].astype(np.float32, copy=False)
            best = classes.argmax(0)
            # The softmax of the largest score is 1 / the sum of exp(score - largest).
            sums = np.exp(classes - classes.max(0)).sum(0)
            item["result"] = np.stack([best.astype(np.float32), 1 / sums], axis=2)
