"""`penstock bench --verify` finds results that depend on more than image and batch size.

It does so within a run and between runs.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from penstock.app.bench.load import Answer
from penstock.app.bench.verify import (
    Comparison,
    Verification,
    bucket_of,
    difference,
    read_results,
    verification_lines,
)
from penstock.app.cli.main import command_line
from penstock.app.factory import create_app

OPS = """
import threading
from penstock.backends.base import Backend

count = 0


class Even(Backend):
    "Depends on the image alone."
    def forward(self, batch):
        for item in batch:
            item["result"] = {"label": "a", "score": len(item["data"]) / 3}


class BySize(Even):
    "Depends on the batch size too, as engines may."
    def forward(self, batch):
        super().forward(batch)
        for item in batch:
            item["result"]["score"] += len(batch) * 1e-7


class ByNeighbour(Even):
    "Leaks: the last item of a batch gets the first one's score."
    def forward(self, batch):
        super().forward(batch)
        batch[-1]["result"] = dict(batch[0]["result"])


class Rare(Even):
    "One wrong label in 300 requests."
    def forward(self, batch):
        global count
        super().forward(batch)
        for item in batch:
            count += 1
            if count == 300:
                item["result"]["label"] = "b"


class Failing(Even):
    def forward(self, batch):
        raise KeyError("no")
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "ops.py").write_text(OPS)
    for name in ("Even", "BySize", "ByNeighbour", "Rare", "Failing"):
        (tmp_path / f"{name}.toml").write_text(
            f'[node]\nbackend = "Python[ops.py:{name}]"\nbatching_timeout = 1\n'
            f"max = {1 if name == 'Rare' else 4}\n"
        )
    images = tmp_path / "images"
    images.mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (8 + index, 8, 3), np.uint8)
        (images / f"{index}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return tmp_path


def verify(target: str | Path, files: Path, *more: Any, requests: int = 400) -> tuple[int, str]:
    """Return the exit status and all output."""
    arguments = [
        "bench",
        target,
        "--verify",
        "--images",
        files / "images",
        "--requests",
        requests,
        "--clients",
        8,
        *more,
    ]
    answer = CliRunner().invoke(command_line, [str(argument) for argument in arguments])
    return answer.exit_code, answer.stdout + answer.stderr


def test_the_digits_server(running: Any, digits: Path, files: Path) -> None:
    store = files / "results.json"
    with running(create_app(digits)) as client:
        url = f"{client.base_url}/predict/digits"
        code, text = verify(url, files, "--store", store)
        assert code == 0 and text.endswith("verified\n") and "inconsistent 0\n" in text, text
        assert "results      400 of 4 images" in text and "digits in a batch of " in text
        code, text = verify(url, files, "--compare", store, "--seed", 1)
        assert code == 0 and "0 different" in text and "stored run   0 pairs" not in text, text
    stored = json.loads(store.read_text())
    assert stored["requests"] == 400 and len(stored["results"]) == 4
    assert (
        sum(
            counts.total()
            for buckets in read_results(store).values()
            for counts in buckets.values()
        )
        == 400
    )
    code, text = verify(url, files)  # the server is gone
    assert code == 1 and "no answer: 400" in text and text.endswith("NOT VERIFIED\n")


@pytest.mark.parametrize("over_http", [False, True])
def test_a_backend_whose_results_depend_on_its_neighbours_is_found(
    running: Any, files: Path, over_http: bool
) -> None:
    if over_http:
        with running(create_app(files / "ByNeighbour.toml")) as client:
            code, text = verify(f"{client.base_url}/predict/ByNeighbour", files)
    else:
        code, text = verify(files / "ByNeighbour.toml", files)
    assert code == 1 and text.endswith("NOT VERIFIED\n") and "inconsistent 0\n" not in text
    assert (
        "node in a batch of 4: " in text
        and "numbers differ by at most" in text
        and "(result.score)" in text
    )
    assert "node in a batch of 1: " not in text  # an image alone has no neighbour


def test_one_wrong_answer_is_found(files: Path) -> None:
    code, text = verify(files / "Rare.toml", files)
    assert (
        code == 1
        and "inconsistent 1\n" in text
        and "2 distinct results (" in text
        and ", 1×); result.label is " in text
    )


def test_different_results_of_different_batch_sizes_are_reported_and_allowed(files: Path) -> None:
    code, text = verify(files / "BySize.toml", files)
    assert (
        code == 0
        and "inconsistent 0\n" in text
        and "between batch sizes 4 of 4 images differ (allowed)" in text
    )
    assert "numbers differ by at most" in text and "e-07 (result.score)" in text


def test_runs_are_compared(files: Path) -> None:
    store = files / "results.json"
    assert verify(files / "Even.toml", files, "--store", store)[0] == 0
    assert verify(files / "Even.toml", files, "--compare", store)[0] == 0
    (files / "ops.py").write_text(OPS.replace('"label": "a"', '"label": "c"'))
    code, text = verify(files / "Even.toml", files, "--compare", store)
    assert (
        code == 1
        and "not the results of the stored run; " in text
        and 'result.label is "a" or "c"' in text
    )


def test_requests_that_fail_verify_nothing(files: Path) -> None:
    code, text = verify(files / "Failing.toml", files, requests=20)
    assert code == 1 and "failures     500: 20; they gave nothing to verify" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--store", "x.json"), "need --verify"),
        (("--verify", "--seconds", "1"), "not --seconds"),
        (("--verify", "--rate", "1"), "not --seconds"),
        (("--verify", "--json"), "not --seconds"),
    ],
)
def test_options_that_do_not_fit(files: Path, arguments: Any, reason: str) -> None:
    answer = CliRunner().invoke(
        command_line, ["bench", str(files / "Even.toml"), *arguments], env={"COLUMNS": "200"}
    )
    assert answer.exit_code == 2 and reason in answer.stderr


def test_files_that_hold_no_results(files: Path) -> None:
    for content in ("", "[]", "{}", '{"format": 7}', '{"format": 1, "results": {"a": 1}}'):
        (files / "other.json").write_text(content)
        code, text = verify(files / "Even.toml", files, "--compare", files / "other.json")
        assert code == 1 and "other.json" in text and "Traceback" not in text


# what is counted


def test_buckets() -> None:
    assert bucket_of('queue.a;dur=0.1, run.a;dur=1.0;desc="batch 3"') == "a in a batch of 3"
    one, two = 'run.a;dur=1.0;desc="batch 3"', 'run.b-c.d;dur=1;desc="batch 12"'
    timing = f"queue.a;dur=0.1, {one}, queue.b-c.d;dur=0.1, {two}"
    assert bucket_of(timing) == "a in a batch of 3, b-c.d in a batch of 12"
    assert bucket_of("") == "batch size unknown"


def answer(text: str, size: int = 1) -> Answer:
    return Answer(200, text.encode(), f'queue.n;dur=0, run.n;dur=0;desc="batch {size}"')


def test_one_result_a_bucket() -> None:
    run = Verification()
    for text, size in [("1", 1), ("1", 1), ("2", 2), ("2", 2)]:
        run.note("x", answer(text, size))
    assert (
        list(run.inconsistent()) == []
        and len(list(run.between_buckets())) == 1
        and verification_lines(run, None)[1]
    )
    run.note("y", answer("7", 1))  # another image may have another result
    assert verification_lines(run, None)[1]
    run.note("x", answer("3", 2))
    assert len(list(run.inconsistent())) == 1 and not verification_lines(run, None)[1]
    assert run.results["x"]["n in a batch of 2"] == Counter({"2": 2, "3": 1})


def test_bytes_are_compared_not_numbers() -> None:
    """`1.0` and `1` are equal to Python, but not to a client that compares answers."""
    run = Verification()
    run.note("x", answer("1.0"))
    run.note("x", answer("1"))
    assert len(list(run.inconsistent())) == 1


def test_a_run_without_results_is_not_verified() -> None:
    assert not verification_lines(Verification(), None)[1]
    run = Verification()
    run.note("x", answer("1"))
    assert (
        not verification_lines(run, Comparison(equal=0, new=1))[1]
        and verification_lines(run, Comparison(equal=1))[1]
    )
    run.note("x", Answer(429, b""))
    assert not verification_lines(run, None)[1]


def test_a_long_list_is_cut() -> None:
    run = Verification()
    for image in range(30):
        run.note(str(image), answer("1"))
        run.note(str(image), answer("2"))
    text, _ = verification_lines(run, None, limit=5)
    assert (
        "inconsistent 30" in text
        and "  … and 25 more" in text
        and len([line for line in text if "distinct results" in line]) == 5
    )


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            ['{"a": [1.5, 2.0]}', '{"a": [1.5, 2.25]}', '{"a": [1.0, 2.0]}'],
            "numbers differ by at most 0.5 (a[0])",
        ),
        (
            ['{"a": 1, "b": 0.5}', '{"a": 2, "b": 0.75}'],
            "a is 1 or 2; numbers differ by at most 0.25 (b)",
        ),
        (['{"a": 1}', '{"b": 1}'], "a is 1 or null"),
        (['{"a": [1]}', '{"a": [1, 2]}'], "a is [1] or [1,2]"),
        (["1", "1.0"], "they differ only in how they are written"),
        (["no", "json"], "they are not JSON"),
    ],
)
def test_differences_in_words(answers: list[str], words: str) -> None:
    assert difference(answers) == words
