"""Sizes within bounds, and the way back from the coordinates of a result."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.image.geometry import InverseTransform, fit, width_at

sides = st.integers(1, 32767)


@given(sides, sides, sides, sides, st.booleans())
def test_fit_is_the_largest_that_fits(
    width: int, height: int, max_width: int, max_height: int, up: bool
) -> None:
    new_width, new_height = fit(width, height, max_width, max_height, up=up)
    assert 1 <= new_width <= max_width and 1 <= new_height <= max_height
    scale = min(Fraction(max_width, width), Fraction(max_height, height))
    for new, old, bound in ((new_width, width, max_width), (new_height, height, max_height)):
        exact = old * scale
        if up:
            assert 0 <= new - exact < 1
        else:
            assert abs(new - exact) <= Fraction(1, 2) or (new == 1 and exact < 1)
        assert new == bound or exact < bound
    assert new_width == max_width or new_height == max_height


@pytest.mark.parametrize(
    ("size", "bounds", "up", "expected"),
    [
        ((640, 427), (224, 224), False, (224, 149)),  # 149.45
        ((640, 427), (224, 224), True, (224, 150)),
        ((427, 640), (224, 224), False, (149, 224)),
        ((4, 3), (6, 6), False, (6, 5)),  # 4.5: half is rounded up, as by C's round
        (
            (640, 427),
            (1280, 854),
            True,
            (1280, 854),
        ),  # exact: the last bit of a float adds no pixel
        ((10000, 1), (10, 10), False, (10, 1)),
        ((1, 1), (7, 9), False, (7, 7)),
    ],
)
def test_fit_in_figures(
    size: tuple[int, int], bounds: tuple[int, int], up: bool, expected: tuple[int, int]
) -> None:
    assert fit(*size, *bounds, up=up) == expected


@given(sides, sides, sides, sides, st.integers(1, 64))
def test_aligned_width(width: int, height: int, new_height: int, more: int, align: int) -> None:
    max_width = align + more - 1
    aligned = width_at(width, height, new_height, max_width, align)
    exact = Fraction(new_height * width, height)
    assert 1 <= aligned <= max_width and aligned % align == 0
    assert 0 <= aligned - exact < align or (aligned < exact and aligned + align > max_width)


def test_inverse_transform() -> None:
    inverse = InverseTransform(2.0, 4.0, 3, 5)
    assert inverse(13, 6) == (20.0, 4.0)
    assert inverse(0, 0) == (-6.0, -20.0)
    assert InverseTransform(2.0, 4.0, 3, 5, (20, 30))(0, 1000) == (0.0, 30.0)
    x, y = InverseTransform(2.0, 4.0, 3, 5, (20, 30))(
        np.array([0.0, 5, 99]), np.array([6.5, 0, 6.5])
    )
    assert (x.tolist(), y.tolist()) == ([0.0, 4.0, 20.0], [6.0, 0.0, 6.0])
    assert pickle.loads(pickle.dumps(inverse)) == inverse  # items travel to process executors
