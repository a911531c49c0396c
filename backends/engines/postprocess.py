"""`postprocessor`: what becomes of a model's scores, N×K. TensorRT computes it inside the network; the other engines do it here, behind
theirs, with the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..errors import BackendError, ConfigError, InvalidInput, Problem
from ..item import Item
from ..operators.classify import best, softmax
from ..params import EngineParams

CLASSIFIERS = {"ArgMax": False, "SoftmaxArgMax": True, "SoftmaxMax": True}
"""Post-processors that tell classes, and whether scores pass a softmax before."""

SOFTMAX = ("Softmax", "SoftmaxCpu")
"""Those that make probabilities of scores. `split` and `cpu` do nothing: results are split, and on the CPU, anyway."""


class PostProcessing:
    """Of one engine. `who` is for messages: the engine."""

    def __init__(self, params: EngineParams, node: str, who: str) -> None:
        self.name = params.postprocessor or ""
        self.top_k = params.top_k
        self.classifies = self.name in CLASSIFIERS
        self.active = self.classifies or self.name in SOFTMAX
        self._softmax = CLASSIFIERS.get(self.name, True)
        self._node, self._who = node, who

    def check(self, shapes: Sequence[Sequence[int | None]]) -> None:
        """Raises ConfigError where the shapes of a model's outputs, as it declares them, have no scores."""
        if self.active and (len(shapes) != 1 or len(shapes[0]) != 2):
            raise self._wrong("postprocessor", self._needs([len(shape) for shape in shapes]))
        if self.classifies and (count := shapes[0][1]) is not None and count < self.top_k:
            raise self._wrong("top_k", f"is {self.top_k}, and the model gives {count} scores")

    def apply(self, outputs: list[Any]) -> list[Any]:
        """A run's outputs, arrays or tensors, afterwards: the probabilities in float32; of a classifier the scores and the classes of
        the `top_k` best, N×K both. Raises BackendError where there are no scores.
        """
        if not self.active:
            return outputs
        if len(outputs) != 1 or getattr(outputs[0], "ndim", 0) != 2:
            raise BackendError(
                f"{self._who}: {self._needs([getattr(output, 'ndim', 1) for output in outputs])}"
            )
        scores = outputs[0]
        if self.classifies and scores.shape[1] < self.top_k:
            raise BackendError(
                f"{self._who}: top_k is {self.top_k}, and the model gives {scores.shape[1]} scores"
            )
        if not isinstance(scores, np.ndarray):  # a tensor of torch, which stays on its device
            chances = scores.float().softmax(1) if self._softmax else scores
            return list(chances.topk(self.top_k, 1)) if self.classifies else [chances]
        chances = scores.astype(np.float64)
        if self._softmax:
            chances = softmax(chances)
        if not self.classifies:
            return [chances.astype(np.float32)]
        classes, values = best(chances, self.top_k)
        return [values.astype(np.float32), classes]

    def answer(self, item: Item) -> None:
        """Of a classifier: plain Python values in place of an item's scores and classes."""
        if self.classifies:
            scores, classes = (each.tolist() for each in item.pop("result"))
            if all(isfinite(score) for row in scores for score in row):
                item.update(
                    classified(scores, classes, "score" if self.name == "SoftmaxMax" else "class")
                )
            else:
                item["error"] = InvalidInput(
                    f"{self._who}: the scores are not finite (NaN or infinite): no class is the best"
                )

    def _needs(self, axes: list[int]) -> str:
        found = ", ".join(f"one of {count} axes" for count in axes) or "none"
        return f"{self.name} needs a model with one output, N×K scores; found {found}"

    def _wrong(self, key: str, message: str) -> ConfigError:
        return ConfigError([Problem(message, node=self._node, key=key)])


def classified(scores: list[list[float]], classes: list[list[int]], result: str) -> dict[str, Any]:
    """Plain Python values of N×K scores and classes, the best first; `result` says which of the two is `result`."""
    tops = [
        [{"class": index, "score": score} for index, score in zip(*rows, strict=True)]
        for rows in zip(classes, scores, strict=True)
    ]
    found: dict[str, Any] = {key: [top[0][key] for top in tops] for key in ("class", "score")}
    if scores and len(scores[0]) > 1:
        found["top"] = tops
    if len(tops) == 1:
        found = {key: values[0] for key, values in found.items()}
    return {"result": found[result], **found}
