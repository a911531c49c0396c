"""The estimate of a batch's time by its size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.pipelines.overload.estimate import Estimate


def estimate(*batches: tuple[int, float]) -> Estimate:
    made = Estimate()
    for size, seconds in batches:
        made.observe(size, seconds)
    return made


def test_before_the_first_batch_nothing_is_known() -> None:
    made = estimate()
    assert (made.alone, made.per_row, made.seconds(8), made.recent) == (0, 0, 0, 0)
    assert made.good_size(8) == made.most_within(0.1, 8) == 8


def test_after_one_batch_larger_ones_are_expected_to_take_as_much_longer() -> None:
    made = estimate((2, 0.1))
    assert made.seconds(1) == made.seconds(2) == made.alone == pytest.approx(0.1)
    assert made.seconds(8) == pytest.approx(0.4)
    assert made.hopeful(8) == pytest.approx(0.1)
    assert made.per_row == pytest.approx(0.05)


def test_between_two_sizes_and_beyond_them_runs_a_straight_line() -> None:
    made = estimate((1, 0.021), (32, 0.052))
    for size in (1, 2, 16, 32, 64):
        assert made.seconds(size) == pytest.approx(0.020 + 0.001 * size)
    assert made.per_row == pytest.approx(0.052 / 32)  # only what has run counts


def test_a_first_batch_that_was_slow_does_not_slow_larger_ones() -> None:
    made = estimate((1, 100.0), (4, 2.0))
    assert made.seconds(4) == pytest.approx(2.0)
    assert made.seconds(8) == pytest.approx(2.0)


def test_a_small_batch_that_is_slower_says_that_large_ones_are_too() -> None:
    made = estimate((1, 0.02), (32, 0.05))
    for _ in range(50):
        made.observe(1, 0.04)  # the machine has become half as fast
    assert made.seconds(1) == pytest.approx(0.04, rel=0.01)
    assert made.seconds(32) == pytest.approx(0.1, rel=0.2)


def test_one_stall_is_not_the_rate() -> None:
    made = estimate(*[(4, 0.01)] * 20, (4, 10.0))
    assert made.seconds(4) < 0.02


@pytest.mark.parametrize(
    ("start", "row", "most", "good"),
    [
        (0.0, 0.02, 64, 1),  # no gain from batches
        (0.02, 0.0, 64, 58),  # all gain
        (0.02, 0.001, 64, 44),
        (0.002, 0.018, 64, 1),
    ],
)
def test_a_good_size_reaches_nine_tenths_of_the_best_rate(
    start: float, row: float, most: int, good: int
) -> None:
    made = estimate(*[(size, start + row * size) for size in (1, 2, 4, 8, 16, 32, 64)])
    assert made.good_size(most) == good


def test_the_largest_batch_within_a_time() -> None:
    made = estimate((1, 0.02), (64, 1.154))
    assert made.most_within(0.5, 64) == 27
    assert made.most_within(2.0, 64) == 64
    assert made.most_within(0.001, 64) == 1


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(1e-6, 100)), min_size=1, max_size=30),
    st.integers(1, 200),
)
def test_whatever_was_seen_the_figures_are_sane(
    batches: list[tuple[int, float]], most: int
) -> None:
    made = estimate(*batches)
    assert 0 < made.per_row < float("inf")
    assert 0 < made.alone < float("inf")
    assert 1 <= made.good_size(most) <= most
    assert 1 <= made.most_within(0.5, most) <= most
    assert 0 < made.seconds(most) < float("inf")
