"""A classifier's scores in NumPy: softmax, and the best classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax of each row of N×K scores."""
    # The row's largest is subtracted first: exp of a logit above 709 is infinite.
    probabilities: NDArray[np.float64] = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return probabilities


def best_classes(scores: NDArray[Any], count: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return the `count` best classes of each row of N×K scores, best first, and their scores.

    Both are N×count. Of equal scores the class with the smaller index comes first, as in argmax.
    """
    if count == 1:
        ranks = scores.argmax(1)[:, np.newaxis]
    else:
        ranks = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return ranks, np.take_along_axis(scores, ranks, 1)
