"""The comparison of an engine's answers with those of its model in full precision."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import Context
from penstock.backends.engines.accuracy import Accuracy, compare, log_accuracy, sample_inputs


def test_scores_are_compared_by_value_and_by_class() -> None:
    reference = np.array([[1.0, 2.0], [4.0, -3.0]], np.float32)
    found = np.array([[2.5, 2.0], [4.0, -3.25]], np.float32)
    assert compare([reference], [found], 2) == Accuracy(1.5, 1.5 / 4, 2, 1)


def test_the_share_is_that_of_the_worst_output() -> None:
    small, large = np.array([0.5]), np.array([100.0])
    found = compare([small, large], [np.array([0.25]), np.array([101.0])], 1)
    assert found == Accuracy(1.0, 0.5, 1, None)


@pytest.mark.parametrize(
    ("one", "other", "largest"),
    [
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([1.0, 2.0], [math.nan, 2.0], math.inf),
        ([1.0, 2.0], [math.inf, 2.0], math.inf),
    ],
)
def test_values_that_are_not_finite(one: list[float], other: list[float], largest: float) -> None:
    found = compare([np.array(one)], [np.array(other)], 2)
    assert found is not None and found.largest == largest


def test_scores_that_are_not_finite_have_no_best_class() -> None:
    scores = np.array([[1.0, 2.0], [math.nan, math.nan]])
    found = compare([scores], [scores], 2)
    assert found is not None and found.same_class == 1


def test_what_has_no_distance_is_not_compared() -> None:
    assert compare([np.array([1, 2])], [np.array([1, 3])], 2) is None
    assert compare([np.zeros((3, 4))], [np.zeros((2, 4))], 2) is None


def test_sample_inputs_have_shape_and_dtype_and_stay_the_same() -> None:
    ports: list[tuple[tuple[int, ...], np.dtype[Any]]] = [
        ((3, 2), np.dtype(np.float16)),
        ((), np.dtype(np.uint8)),
        ((4,), np.dtype(np.int64)),
    ]
    inputs = sample_inputs(ports, 5)
    assert [(value.shape[1:], value.dtype) for value in inputs] == ports
    assert {len(value) for value in inputs} == {5}
    assert all(map(np.array_equal, inputs, sample_inputs(ports, 5)))


def test_one_line_for_all_instances(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("penstock.test_accuracy")
    accuracy = Accuracy(0.002, 0.001, 8, 8)
    with caplog.at_level(logging.INFO, logger.name):
        for instance in range(2):
            context = Context(node="net", instance=instance, instances=2)
            log_accuracy(
                logger, "node 'net': X", context, accuracy, precision="int8", reference="fp32"
            )
    assert [record.getMessage() for record in caplog.records] == [
        "node 'net': X: int8 against fp32: largest difference 2.0e-03 (1.0e-03 of the largest "
        "value), same best class in 8 of 8 rows"
    ]
