"""The key `postprocessor`: probabilities or classes from a model's scores, N×K.

TensorRT computes them inside the network. The other engines do it here after each run, with the
same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from ..errors import BackendError, ConfigError, InvalidInput, Problem
from ..item import Item
from ..params import EngineParams
from ..scores import best_classes, softmax

CLASSIFIERS = {"ArgMax": False, "SoftmaxArgMax": True, "SoftmaxMax": True}
"""Post-processors that return the best classes -> whether the scores go through a softmax first."""

SOFTMAX = ("Softmax", "SoftmaxCpu")
"""Post-processors that turn scores into probabilities. `split` and `cpu` do nothing: results are
split and on the CPU anyway.
"""


class PostProcessing:
    """The post-processing of one engine."""

    def __init__(self, params: EngineParams, node: str, backend_name: str) -> None:
        """`node` and `backend_name` are for messages."""
        self.name = params.postprocessor or ""
        self.top_k = params.top_k
        self.classifies = self.name in CLASSIFIERS
        self.active = self.classifies or self.name in SOFTMAX
        self._softmax = CLASSIFIERS.get(self.name, True)
        self._node, self._backend_name = node, backend_name

    def check(self, shapes: Sequence[Sequence[int | None]]) -> None:
        """Check the shapes of a model's outputs, as it declares them.

        Raises ConfigError if they are not N×K scores with K of at least `top_k`.
        """
        if self.active and (len(shapes) != 1 or len(shapes[0]) != 2):
            raise self._wrong("postprocessor", self._needs([len(shape) for shape in shapes]))
        if self.classifies and (count := shapes[0][1]) is not None and count < self.top_k:
            raise self._wrong("top_k", f"is {self.top_k}, but the model has only {count} scores")

    def apply(self, outputs: list[Any]) -> list[Any]:
        """Post-process a run's outputs, arrays or tensors.

        Return [probabilities], N×K in float32, or for a classifier [scores, classes], both
        N×`top_k` and the best first. Raises BackendError if the outputs are not N×K scores.
        """
        if not self.active:
            return outputs
        if len(outputs) != 1 or getattr(outputs[0], "ndim", 0) != 2:
            raise BackendError(
                f"{self._backend_name}: "
                f"{self._needs([getattr(output, 'ndim', 1) for output in outputs])}"
            )
        scores = outputs[0]
        if self.classifies and scores.shape[1] < self.top_k:
            raise BackendError(
                f"{self._backend_name}: top_k is {self.top_k}, but the model has only "
                f"{scores.shape[1]} scores"
            )
        if not isinstance(scores, np.ndarray):  # a tensor of torch, which stays on its device
            chances = scores.float().softmax(1) if self._softmax else scores
            return list(chances.topk(self.top_k, 1)) if self.classifies else [chances]
        chances = scores.astype(np.float64)
        if self._softmax:
            chances = softmax(chances)
        if not self.classifies:
            return [chances.astype(np.float32)]
        classes, values = best_classes(chances, self.top_k)
        return [values.astype(np.float32), classes]

    def answer(self, item: Item) -> None:
        """For a classifier, replace an item's scores and classes by plain Python values.

        Sets `error` if a score is not finite.
        """
        if self.classifies:
            scores, classes = (output.tolist() for output in item.pop("result"))
            if all(isfinite(score) for row in scores for score in row):
                item.update(
                    classified(scores, classes, "score" if self.name == "SoftmaxMax" else "class")
                )
            else:
                item["error"] = InvalidInput(
                    f"{self._backend_name}: the scores are not finite (NaN or infinite), so there "
                    "is no best class"
                )

    def _needs(self, axes: list[int]) -> str:
        outputs = ", ".join(f"one of {count} axes" for count in axes) or "none"
        return f"{self.name} needs a model with one output, N×K scores; found {outputs}"

    def _wrong(self, key: str, message: str) -> ConfigError:
        return ConfigError([Problem(message, node=self._node, key=key)])


def classified(scores: list[list[float]], classes: list[list[int]], result: str) -> dict[str, Any]:
    """Return N×K scores and classes, the best first, as an item's plain Python values.

    They are `class`, `score`, and `top` if K > 1; lists of N if N > 1. `result` names the key,
    class or score, whose value is also the item's `result`.
    """
    tops = [
        [{"class": index, "score": score} for index, score in zip(*rows, strict=True)]
        for rows in zip(classes, scores, strict=True)
    ]
    values: dict[str, Any] = {key: [top[0][key] for top in tops] for key in ("class", "score")}
    if scores and len(scores[0]) > 1:
        values["top"] = tops
    if len(tops) == 1:
        values = {key: rows[0] for key, rows in values.items()}
    return {"result": values[result], **values}
