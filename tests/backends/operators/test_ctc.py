"""CTCDecodeTensor against PaddleOCR's decoder, as the package rapidocr has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rapidocr
from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode

from penstock import Pipeline
from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.item import Item
from penstock.backends.operators.ctc import CTCDecodeParams, CTCDecodeTensor, read_characters

RECOGNISER = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_rec_small.onnx"
DICTIONARY = "a\nb\nÄ\n\u3000\nch\n"


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    path = tmp_path / "dictionary.txt"
    path.write_text(DICTIONARY, encoding="utf-8")
    return path


def make(**params: Any) -> CTCDecodeTensor:
    backend = CTCDecodeTensor()
    backend.init(CTCDecodeParams(**params), Context())
    return backend


def decode(backend: CTCDecodeTensor, *data: Any) -> list[Item]:
    batch: list[Item] = [{"data": each} for each in data]
    backend.forward(batch)
    return batch


def scores_of(classes: list[int], count: int, seed: int = 0) -> Any:
    """Return random probabilities, 1×T×K, with these classes as the best."""
    scores = np.random.default_rng(seed).random((1, len(classes), count), np.float32)
    scores[0, range(len(classes)), classes] += 1
    return scores / scores.sum(2, keepdims=True)


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ([1, 1, 0, 1, 2, 2, 0, 0, 3], "aabÄ"),
        ([4, 0, 5, 6, 0, 6, 6, 1], "\u3000ch  a"),
        ([0, 0, 0], ""),
        ([2], "b"),
        ([], ""),
    ],
)
def test_texts_and_scores_are_paddles(dictionary: Path, classes: list[int], text: str) -> None:
    scores = scores_of(classes, 7)
    (item,) = decode(make(dictionary=str(dictionary)), scores)
    assert item["result"] == text
    if classes:
        expected, score = CTCLabelDecode(character_path=dictionary)(scores)[0][0]
        assert (item["result"], item["score"]) == (expected, pytest.approx(score, abs=2e-5))
    assert all(type(each) is float for each in (item["score"], *item["scores"]))
    assert decode(make(dictionary=str(dictionary)), scores[0])[0]["scores"] == item["scores"]


def test_a_model_without_a_space(dictionary: Path) -> None:
    (item,) = decode(make(dictionary=str(dictionary)), scores_of([5, 0, 1], 6))
    assert item["result"] == "cha"


def test_random_scores_are_decoded_as_paddle_does(dictionary: Path) -> None:
    rng = np.random.default_rng(7)
    reference = CTCLabelDecode(character_path=dictionary)
    batch = [scores_of(rng.integers(0, 7, 40).tolist(), 7, seed) for seed in range(50)]
    for item, scores in zip(decode(make(dictionary=str(dictionary)), *batch), batch, strict=True):
        text, score = reference(scores)[0][0]
        assert (item["result"], item["score"]) == (text, pytest.approx(score, abs=2e-5))


def test_logits_become_probabilities(dictionary: Path) -> None:
    probabilities = scores_of([1, 0, 2], 7)
    (plain,) = decode(make(dictionary=str(dictionary)), probabilities)
    backend = make(dictionary=str(dictionary), softmax=True)
    for logits in (np.log(probabilities), np.log(probabilities.astype(np.float64)) + 700):
        (item,) = decode(backend, logits)
        assert item["result"] == plain["result"] == "ab"
        assert item["scores"] == pytest.approx(plain["scores"], rel=1e-5)


def test_characters_in_the_metadata_of_the_model() -> None:
    characters = read_characters(RECOGNISER)
    assert characters[:3] == ("!", '"', "#") and len(characters) == 18708
    scores = scores_of([1, 0, len(characters) + 1, 0, 3], len(characters) + 2)
    for keys in ({"model": str(RECOGNISER)}, {"model": "x.pt", "dictionary": str(RECOGNISER)}):
        assert decode(make(**keys), scores)[0]["result"] == "! #"


def test_lines_of_other_systems(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    for text in ("a\r\n \r\n\x85\r\n", "\ufeffa\n \n\x85"):
        path.write_bytes(text.encode())
        assert read_characters(path) == ("a", " ", "\x85")


def test_dictionaries_that_do_not_fit(dictionary: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BackendError,
        match=r"dictionary\.txt has 5 characters, but the model gives 9 scores a step: expected 6,",
    ):
        decode(make(dictionary=str(dictionary)), scores_of([1], 9))
    with pytest.raises(BackendError, match=r"none\.txt can't be read"):
        make(dictionary=str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(BackendError, match=r"empty\.txt is empty: expected characters, one per"):
        make(dictionary=str(tmp_path / "empty.txt"))
    for keys in ({}, {"model": "model.pt"}):
        with pytest.raises(BackendError, match=r"in a file named by `dictionary`; found neither"):
            make(**keys)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.save(model, tmp_path / "plain.onnx")
    for name, reason in (("plain", "its metadata has no `character`"), ("none", "No such file")):
        with pytest.raises(
            BackendError, match=rf"{name}\.onnx can't be read: .*{reason}.*: expected the model's"
        ):
            make(model=str(tmp_path / f"{name}.onnx"))


@pytest.mark.parametrize(
    "data",
    [
        "text",
        [[0.5] * 7],
        np.ones((2, 3, 7), np.float32),
        np.ones(7, np.float32),
        np.ones((3, 7), np.int64),
        np.full((3, 7), np.nan, np.float32),
        np.full((3, 7), np.inf, np.float32),
        np.ones((3, 0), np.float32),
    ],
    ids=str,
)
def test_a_bad_item_fails_alone(dictionary: Path, data: Any) -> None:
    backend = make(dictionary=str(dictionary))
    with pytest.raises(InvalidInput, match="CTCDecodeTensor: "):
        decode(backend, data)
    good = scores_of([1], 7)
    items = decode(backend, good, data, good)
    assert [item.get("result") for item in items] == ["a", None, "a"]
    assert isinstance(items[1]["error"], InvalidInput)


@pytest.mark.parametrize("executor", ["loop", "thread", "process"])
async def test_it_runs_on_every_executor(dictionary: Path, executor: str) -> None:
    node = {"backend": "CTCDecodeTensor", "dictionary": str(dictionary), "executor": executor}
    async with Pipeline.load(node) as pipeline:
        answers = await pipeline([{"data": scores_of([1, 0, index], 7)} for index in range(4)])
    assert [answer["result"] for answer in answers] == ["a", "aa", "ab", "aÄ"]
