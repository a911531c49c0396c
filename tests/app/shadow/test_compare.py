"""Answers that agree, and what is said of those that don't."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from penstock.app.shadow.answers import Answer, Output, RawAnswer, read_generate
from penstock.app.shadow.compare import compare
from penstock.app.shadow.options import Tolerance

TOLERANCE = Tolerance(rtol=0.01, atol=0.1)


def answer(values: Any, dtype: str = "FP32", name: str = "Y") -> Answer:
    kinds = {"FP32": np.float32, "INT64": np.int64, "BYTES": object, "BOOL": bool}
    array = np.array(values, kinds[dtype])
    return Answer("200", [{name: Output(dtype, array.shape, array)}])


def differences(theirs: Answer, ours: Answer, **classes: int) -> list[str]:
    return compare(theirs, ours, TOLERANCE, classes).differences


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (answer([1.0, 200.0, 0.0]), answer([1.1, 202.0, 0.09])),
        (answer([np.nan, np.inf, -np.inf]), answer([np.nan, np.inf, -np.inf])),
        (answer([[1, -1]], "INT64"), answer([[1, -1]], "INT64")),
        (answer([True], "BOOL"), answer([True], "BOOL")),
        (answer([b"a", b"b"], "BYTES"), answer([b"a", b"b"], "BYTES")),
        (answer([], "FP32"), answer([], "FP32")),
        (answer(1.0), answer(1.0)),
        (Answer("400", [], "one text"), Answer("400", [], "another text")),
        (Answer("OK", []), Answer("OK", [])),
    ],
)
def test_answers_agree(theirs: Answer, ours: Answer) -> None:
    assert differences(theirs, ours) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (
            answer([[1.0, 2.0], [3.0, 4.0]]),
            answer([[1.0, 2.0], [3.5, 5.0]]),
            "output 'Y': 3 at Triton, 3.5 here, at [1, 0]; 2 of 4 values differ by more than "
            "0.1 + 0.01 × |Triton's|",
        ),
        (answer([1.0]), answer([np.nan]), "output 'Y': 1 at Triton, nan here, at [0]"),
        (answer([np.inf]), answer([-np.inf]), "output 'Y': inf at Triton, -inf here, at [0]"),
        (
            answer([5, 6], "INT64"),
            answer([5, 7], "INT64"),
            "output 'Y': 6 at Triton, 7 here, at [1]; 1 of 2 values differ",
        ),
        (answer([True], "BOOL"), answer([False], "BOOL"), "output 'Y': True at Triton, False here"),
        (
            answer([b"a", b"b"], "BYTES"),
            answer([b"a", b"c"], "BYTES"),
            "output 'Y': b'b' at Triton, b'c' here, at [1]; 1 of 2 values differ",
        ),
        (answer([1.0]), answer([1], "INT64"), "output 'Y': FP32 at Triton, INT64 here"),
        (answer([1.0]), answer([[1.0]]), "output 'Y': shape [1] at Triton, [1, 1] here"),
        (answer([1.0]), answer([1.0], name="Z"), "output 'Y' is at Triton only"),
        (
            Answer("400", [], "bad"),
            answer([1.0]),
            "status 400 (bad) at Triton, status 200 here",
        ),
        (
            Answer("400", [], ""),
            Answer("500", [], ""),
            "status 400 () at Triton, status 500 () here",
        ),
        (Answer("200", [{}, {}]), Answer("200", [{}]), "2 parts at Triton, 1 here"),
        (
            Answer("200", [{}, answer([1], "INT64").parts[0]]),
            Answer("200", [{}, answer([2], "INT64").parts[0]]),
            "part 2: output 'Y': 1 at Triton, 2 here",
        ),
    ],
)
def test_answers_differ(theirs: Answer, ours: Answer, said: str) -> None:
    assert differences(theirs, ours)[0].startswith(said)


@pytest.mark.parametrize(
    ("ours", "agree"),
    [
        ([b"0.92:3:cat", b"0.5:1:dog"], True),
        ([b"0.5:1:dog", b"0.9:3:cat"], False),  # too far apart to change places
        ([b"0.9:3:cat", b"0.5:2:dog"], False),
        ([b"0.9:3:cow", b"0.5:1:dog"], False),
        ([b"0.9:3:cat", b"0.8:1:dog"], False),
        ([b"text", b"0.5:1:dog"], False),
    ],
)
def test_best_classes_are_compared_by_their_scores(ours: list[bytes], agree: bool) -> None:
    theirs = answer([b"0.9:3:cat", b"0.5:1:dog"], "BYTES")
    assert (differences(theirs, answer(ours, "BYTES"), Y=2) == []) is agree


def test_best_classes_of_equal_scores_may_change_places() -> None:
    theirs = answer([[b"0.5:3", b"0.5:1"]], "BYTES")
    assert differences(theirs, answer([[b"0.5:1", b"0.5:3"]], "BYTES"), Y=2) == []


def test_the_largest_difference_is_told_of_answers_that_agree_too() -> None:
    compared = compare(answer([1.0, 10.0]), answer([1.05, 10.0]), TOLERANCE, {})
    assert compared.distances["Y"] == pytest.approx((0.05, 0.05))
    apart = compare(answer([0.0]), answer([2.0]), TOLERANCE, {})
    assert apart.distances["Y"] == (2.0, np.inf)


def test_generated_answers_are_outputs_by_name() -> None:
    events = (
        b'data: {"model_name":"m","text":"a","n":1}\n\ndata: {"text":["b","c"],"n":[1,2.5]}\n\n'
    )
    raw = RawAnswer(200, {b"content-type": b"text/event-stream; charset=utf-8"}, events)
    first, second = read_generate(raw).parts
    assert (first["text"].values.tolist(), first["n"].values.tolist()) == ([b"a"], [1.0])
    assert (second["text"].values.tolist(), second["n"].shape) == ([b"b", b"c"], (2,))
    failed = raw._replace(body=b'data: {"text":"a"}\n\ndata: {"error":"no"}\n\n')
    assert read_generate(failed).error == "no"
    plain = RawAnswer(200, {b"content-type": b"application/json"}, b'{"text":"a","id":"7"}')
    assert set(read_generate(plain).parts[0]) == {"text"}
