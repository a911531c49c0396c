"""The row that the model takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row(values: list[float]) -> NDArray[np.float32]:
    """Make a row, 1×4, of the four inputs, in the order of the file."""
    return np.array([values], np.float32)
