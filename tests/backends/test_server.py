"""What the two sides of `Server` share."""

from typing import Any

import numpy as np
import pytest

from penstock.backends.server import Response


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (np.zeros((2, 3), np.float32), 24),
        (np.array([b"four", "text"], object), 16 + 8),  # two pointers, and what they point to
        ("text", 4),
        (b"bytes", 5),
        ({"boxes": ["one", b"two"], "score": 1.5}, 5 + 3 + 3 + 5),
        (None, 0),
    ],
)
def test_the_size_of_a_response_is_that_of_its_outputs(value: Any, size: int) -> None:
    assert Response({"OUT": value}).size == size
