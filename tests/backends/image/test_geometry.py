from __future__ import annotations

import pickle
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.backends.image.geometry import InverseTransform, fit, width_at

sides = st.integers(1, 32767)


@given(sides, sides, sides, sides, st.booleans())
def test_fit_is_the_largest_that_fits(
    width: Any, height: Any, max_width: Any, max_height: Any, up: Any
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
        ((4, 3), (6, 6), False, (6, 5)),  # 4.5: half goes up, as C's round
        ((640, 427), (1280, 854), True, (1280, 854)),  # exact: no float's last bit adds a pixel
        ((10000, 1), (10, 10), False, (10, 1)),
        ((1, 1), (7, 9), False, (7, 7)),
    ],
)
def test_fit_in_figures(size: Any, bounds: Any, up: Any, expected: Any) -> None:
    assert fit(*size, *bounds, up=up) == expected


@given(sides, sides, sides, sides, st.integers(1, 64))
def test_aligned_width(
    width: Any, height: Any, new_height: Any, max_width: Any, align: Any
) -> None:
    found = width_at(width, height, new_height, max_width, align)
    exact = Fraction(new_height * width, height)
    assert 1 <= found <= max_width
    assert found == max_width or (found % align == 0 and 0 <= found - exact < align)
    assert found < max_width or exact > max_width - align


def test_inverse_transform() -> None:
    there = InverseTransform(2.0, 4.0, 3, 5)
    assert there(13, 6) == (20.0, 4.0)
    assert there(0, 0) == (-6.0, -20.0)
    assert InverseTransform(2.0, 4.0, 3, 5, (20, 30))(0, 1000) == (0.0, 30.0)
    assert pickle.loads(pickle.dumps(there)) == there  # items travel to process executors
