"""YoloTensor against the formulas of Ultralytics and torchvision, written independently here, and
against the post-processing of the package nudenet on its own YOLOv8 model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import nudenet
import nudenet.nudenet
import numpy as np
import onnxruntime
import pytest

from penstock import Pipeline
from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.expressions.kinds import misfits
from penstock.backends.image.geometry import InverseTransform
from penstock.backends.image.pad import (
    LetterBoxMat,
    LetterBoxMatParams,
    ResizeCenterPadMat,
    TopLeftResizeMat,
)
from penstock.backends.item import Item
from penstock.backends.operators.yolo import YoloParams, YoloTensor, suppress

MODEL = Path(nudenet.__file__).parent / "320n.onnx"
PHOTO = Path(__file__).parents[3] / "examples" / "detector" / "astronaut.jpg"


def make(**params: Any) -> YoloTensor:
    backend = YoloTensor()
    backend.init(YoloParams(**params), Context())
    return backend


def detect(data: Any, keys: dict[str, Any] | None = None, **params: Any) -> Item:
    item: Item = {**(keys or {}), "data": data}
    make(**params).forward([item])
    return item


def iou(one: Any, other: Any) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(overlap / (sum(areas) - overlap))


def slowly(boxes: Any, scores: Any, classes: Any, threshold: float) -> list[int]:
    """Return the boxes that NMS keeps: those that no better kept box of their class overlaps."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if all(
            classes[index] != classes[better] or iou(boxes[index], boxes[better]) <= threshold
            for better in kept
        ):
            kept.append(index)
    return kept


def some_output(boxes: int, classes: int, seed: int) -> Any:
    """Return the output of a v8 model, 1×(4+K)×A, with boxes in a picture of 640×640 that overlap
    often.
    """
    rng = np.random.default_rng(seed)
    output = np.empty((1, 4 + classes, boxes), np.float32)
    output[0, :2] = rng.uniform(100, 300, (2, boxes))
    output[0, 2:4] = rng.uniform(30, 150, (2, boxes))
    output[0, 4:] = rng.uniform(0, 0.6, (classes, boxes))
    return output


def as_v5(output: Any, objectness: float = 1) -> Any:
    """Return the same boxes as a v5 model gives them, 1×A×(5+K)."""
    rows = output[0].T
    return np.insert(rows, 4, np.float32(objectness), axis=1)[np.newaxis]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.45, 0.7, 1.0])
def test_nms_keeps_what_its_definition_says(seed: int, iou_threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 100, (150, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 1
    scores = 1 + rng.permutation(150).astype(np.float32)
    classes = rng.integers(0, 3, 150)
    assert suppress(boxes, scores, classes, iou_threshold, 300).tolist() == slowly(
        boxes, scores, classes, iou_threshold
    )
    agnostic = suppress(boxes, scores, None, iou_threshold, 300).tolist()
    assert agnostic == slowly(boxes, scores, [0] * 150, iou_threshold)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).astype(np.float64)
    by_opencv = cv2.dnn.NMSBoxes(xywh.tolist(), scores.tolist(), 0.5, iou_threshold)
    assert agnostic == list(by_opencv)
    assert suppress(boxes, scores, None, iou_threshold, 3).tolist() == agnostic[:3]


def test_boxes_that_touch_the_threshold_stay() -> None:
    """As in torchvision: an IoU of exactly 0.5 is not more than 0.5."""
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 2]], np.float32)
    scores = np.array([0.9, 0.8, 0.9], np.float32)
    assert suppress(boxes, scores, None, 0.5, 9).tolist() == [0, 1]  # and the first of two equals


@pytest.mark.parametrize("version", ["auto", "v8", "v5"])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_boxes_of_both_versions(version: str, class_agnostic: bool) -> None:
    output = some_output(900, 5, seed=1)
    params: dict[str, Any] = {"score_threshold": 0.55, "class_agnostic": class_agnostic}
    item = detect(output if version != "v5" else as_v5(output), version=version, **params)
    x, y, w, h = output[0, :4].astype(np.float64)
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    scores, classes = output[0, 4:].max(0), output[0, 4:].argmax(0)
    above = np.flatnonzero(scores > 0.55)
    groups = np.zeros(len(above)) if class_agnostic else classes[above]
    kept = above[slowly(boxes[above], scores[above], groups, 0.45)]
    assert 5 < len(kept) < len(above)
    found = item["result"]
    assert [entry["class"] for entry in found] == classes[kept].tolist()
    assert [entry["score"] for entry in found] == scores[kept].tolist()
    np.testing.assert_allclose([entry["box"] for entry in found], boxes[kept], atol=1e-3)
    assert len(item["_box"]) == len(found) and "label" not in found[0]
    for (x1, y1, x2, y2), entry in zip(item["_box"], found, strict=True):
        left, top, right, bottom = entry["box"]
        assert x1 <= left < x1 + 1 and y1 <= top < y1 + 1
        assert x2 - 1 < right <= x2 and y2 - 1 < bottom <= y2
    best = detect(output, top_k=3, **params)["result"]
    assert best == found[:3]


def test_a_v5_score_is_that_of_the_object_times_that_of_the_class() -> None:
    output = some_output(200, 3, seed=2)
    whole = detect(output, score_threshold=0.5)["result"]
    half = detect(as_v5(output, 0.5), score_threshold=0.25)["result"]
    assert [entry["class"] for entry in half] == [entry["class"] for entry in whole]
    assert [entry["score"] * 2 for entry in half] == [entry["score"] for entry in whole]
    assert detect(as_v5(output, 0.25), score_threshold=0.25)["result"] == []


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (LetterBoxMat, {"resize_h": 320, "resize_w": 480, "pad_val": 114}),
        (TopLeftResizeMat, {"resize_h": 320, "resize_w": 480}),
        (ResizeCenterPadMat, {"max_h": 320, "max_w": 480}),
    ],
)
@pytest.mark.parametrize("size", [(640, 640), (427, 640), (30, 500), (801, 333)])
def test_boxes_go_back_to_the_original_image(cls: Any, params: Any, size: Any) -> None:
    height, width = size
    prepare = cls()
    prepare.init(cls.parameters(**params), Context())
    item: Item = {"data": np.zeros((height, width, 3), np.uint8)}
    prepare.forward([item])
    gain = min(320 / height, 480 / width)  # as Ultralytics' scale_boxes does it
    shown = round(width * gain), round(height * gain)
    left, top = (
        (0, 0) if cls is TopLeftResizeMat else ((480 - shown[0]) // 2, (320 - shown[1]) // 2)
    )
    box = [width * 0.25, height * 0.25, width * 0.75, height * 0.5]
    there = np.array(box) * gain + (left, top, left, top)
    sides = there[2:] - there[:2]
    output = np.zeros((1, 5, 400), np.float32)
    output[0, :, 0] = [*(there[:2] + sides / 2), *sides, 0.9]
    output[0, :, 1] = [240, 160, 2000, 1000, 0.8]  # more than the image
    output[0, :, 2] = [-50, -50, 10, 10, 0.7]  # outside
    result = detect(output, item, iou_threshold=1)["result"]
    exact = 1e-3 if cls is not ResizeCenterPadMat else 0.02 * max(size)
    assert result[0]["box"] == pytest.approx(box, abs=exact)
    assert result[1]["box"] == [0, 0, width, height]
    assert len(result) == 2


def test_labels_are_those_of_the_file_or_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    output = some_output(100, 2, seed=3)
    found = detect(output, labels=str(tmp_path / "labels.txt"))["result"]
    assert {(entry["class"], entry["label"]) for entry in found} == {(0, "one"), (1, "two")}
    output = some_output(100, 18, seed=3)
    found = detect(output, model=str(MODEL))["result"]
    names = nudenet.nudenet.__dict__["__labels"]
    assert found and all(entry["label"] == names[entry["class"]] for entry in found)
    with pytest.raises(BackendError, match=r"labels\.txt has 2 labels, but the model gives 18"):
        detect(output, labels=str(tmp_path / "labels.txt"))
    keypoints = some_output(100, 18 + 51, seed=3)
    with pytest.raises(BackendError, match=r"320n\.onnx has 18 labels, but the model gives 69"):
        detect(keypoints, model=str(MODEL))


def test_detections_of_nudenet() -> None:
    """Its NMS mixes classes. Its boxes end at whole pixels, those beyond the edge differ."""
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    photo = cv2.imread(str(PHOTO))
    blob, x_ratio, y_ratio, x_pad, y_pad, width, height = nudenet.nudenet._read_image(photo)
    outputs = session.run(None, {"images": blob})
    expected = nudenet.nudenet._postprocess(
        outputs, x_pad, y_pad, x_ratio, y_ratio, width, height, 320, 320
    )
    prepare = TopLeftResizeMat()
    prepare.init(LetterBoxMatParams(resize_h=320, resize_w=320, pad_val=(0.0,)), Context())
    item: Item = {"data": photo}
    prepare.forward([item])
    found = detect(outputs[0], item, model=str(MODEL), class_agnostic=True)["result"]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert (one["label"], one["score"]) == (other["class"], other["score"])
        x, y, w, h = other["box"]
        assert one["box"] == pytest.approx([x, y, x + w, y + h], abs=2)


def test_values_that_no_box_has() -> None:
    output = some_output(20, 2, seed=4)
    output[0, 4:] = 0.5
    output[0, :, :6] = np.nan
    output[0, 4:, 1:6] = 0.9
    output[0, :4, 1] = np.inf
    output[0, :4, 2] = 3e38
    output[0, :4, 3] = [9, 9, 0, 9]
    output[0, :4, 4] = [9, 9, 9, -9]
    found = detect(output, iou_threshold=1)
    assert len(found["result"]) == len(found["_box"]) == 14


@pytest.mark.parametrize("classes", [1, 80])
def test_no_boxes(classes: int) -> None:
    for output in (np.zeros((1, 4 + classes, 8400)), np.zeros((1, 25200, 5 + classes))):
        version = "v8" if output.shape[2] == 8400 else "v5"
        item = detect(output, version=version)
        assert item["result"] == item["_box"] == []


@pytest.mark.parametrize(
    "data",
    [
        "boxes",
        [np.zeros((1, 84, 100), np.float32)],
        np.zeros((2, 84, 100), np.float32),
        np.zeros((84, 100), np.float32),
        np.zeros((1, 4, 100), np.float32),
        np.zeros((1, 100, 5), np.float32),
        np.zeros((1, 300, 6), np.float32),
        np.zeros((1, 84, 100), np.int64),
    ],
    ids=str,
)
def test_a_bad_item_fails_alone(data: Any) -> None:
    with pytest.raises(InvalidInput, match="YoloTensor: expected"):
        detect(data)
    good = some_output(20, 2, seed=5)
    batch: list[Item] = [{"data": each} for each in (good, data, good)]
    make().forward(batch)
    assert isinstance(batch[1]["error"], InvalidInput) and "result" not in batch[1]
    assert batch[0]["result"] == batch[2]["result"] != []


def test_one_class_of_v5_and_a_model_with_its_own_nms_look_alike() -> None:
    output = np.zeros((1, 300, 6), np.float32)
    with pytest.raises(InvalidInput, match='write version = "v5" if it is the former'):
        detect(output)
    output[0, 7] = [50, 50, 20, 20, 0.9, 0.5]
    (found,) = detect(output, version="v5")["result"]
    assert found == {"box": [40, 40, 60, 60], "score": pytest.approx(0.45), "class": 0}


@pytest.mark.parametrize("before", ["LetterBoxMat(9,9)", "Mat2Tensor"])
@pytest.mark.parametrize("backend", ["YoloTensor", "CTCDecodeTensor"])
def test_an_image_is_no_output_of_a_model(bound: Any, before: str, backend: str) -> None:
    (problem,) = misfits(bound(f"S[{before},{backend}]"))
    assert f"{backend} takes an array of K scores, but" in problem.message


def test_a_way_back_that_is_none() -> None:
    with pytest.raises(InvalidInput, match=r"inverse_trans is 7: expected a function of x and y"):
        detect(some_output(20, 2, seed=5), {"inverse_trans": 7})


@pytest.mark.parametrize("executor", ["loop", "thread", "process"])
async def test_it_runs_on_every_executor(executor: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    output, inverse = some_output(100, 2, seed=6), InverseTransform(2, 2, 0, 40, (1280, 900))
    node = {"backend": "YoloTensor", "labels": str(tmp_path / "labels.txt"), "executor": executor}
    expected = detect(output, {"inverse_trans": inverse}, labels=node["labels"])
    async with Pipeline.load(node) as pipeline:
        answers = await pipeline([{"data": output, "inverse_trans": inverse}] * 4)
    for answer in answers:
        assert (answer["result"], answer["_box"]) == (expected["result"], expected["_box"])
