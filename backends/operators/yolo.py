"""The output of a YOLO detector to boxes: decoding, non-maximum suppression, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..base import Backend, Context, Params
from ..errors import InvalidInput
from ..item import Item
from .classify import on_host
from .labels import LABELS, Labels, ModelNamesParams

Floats: TypeAlias = NDArray[np.floating[Any]]


class YoloParams(ModelNamesParams):
    version: Literal["auto", "v5", "v8"] = Field(
        "auto",
        description="v5: the model gives 1xAx(5+K), for A places and K classes (YOLOv5, v7); v8: "
        "1x(4+K)xA (YOLOv8 and later); auto: v8 if the second axis is the shorter one",
    )
    score_threshold: float = Field(
        0.25, ge=0, le=1, description="boxes with a score up to this are left out"
    )
    iou_threshold: float = Field(
        0.45,
        ge=0,
        le=1,
        description="of two boxes of a class that overlap by more (intersection over union), the "
        "one with the lower score is left out",
    )
    class_agnostic: bool = Field(False, description="true: so are boxes of different classes")
    top_k: int = Field(300, ge=1, description="the most boxes, the best ones")
    labels: str | None = Field(None, description=LABELS)


class YoloTensor(Backend):
    """The boxes that a detector of the YOLO family has found, in pixels of the original image.

    `data`: the model's output for one image, as Ultralytics exports it without NMS, floats from
    NumPy or from torch on any device: 1x(4+K)xA (v8: x, y, w, h of A boxes, then the scores of K
    classes) or 1xAx(5+K) (v5: also the score of any object, which multiplies those of the classes).

    Sets `result`: a list of the boxes, the best first, each a dict of `box` ([x1, y1, x2, y2],
    floats), `score`, `class` and, if there are labels, `label`; and `_box`: the same boxes in whole
    pixels, made larger, for CropMat.

    An `inverse_trans` in the item, as LetterBoxMat and its like set it, maps the boxes back to
    the original image. Boxes outside of it are left out.

    Raises InvalidInput for another shape or dtype. Raises BackendError if the numbers of labels and
    classes differ: no other input can mend that.
    """

    parameters: ClassVar[type[Params] | None] = YoloParams
    takes, gives = "scores", "value"
    params: YoloParams
    labels: Labels

    @classmethod
    def keys_set(cls, params: Any) -> tuple[str, ...]:
        return ("_box",)

    def init(self, params: YoloParams, context: Context) -> None:
        """Raises BackendError if the file of labels can't be read or is empty."""
        self.params = params
        self.labels = Labels(params.labels, params.model, context, "YoloTensor")

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            try:
                self._detect(item)
            except InvalidInput as error:
                if len(batch) == 1:
                    raise
                item["error"] = error

    def _detect(self, item: Item) -> None:
        params = self.params
        with np.errstate(all="ignore"):  # a model may give values that are not finite
            found = self._decode(item["data"])
            kept = suppress(
                found.boxes,
                found.scores,
                None if params.class_agnostic else found.classes,
                params.iou_threshold,
                params.top_k,
            )
        boxes = _mapped_back(found.boxes[kept].tolist(), item)
        result, whole = [], []
        for box, score, index in zip(
            boxes, found.scores[kept].tolist(), found.classes[kept].tolist(), strict=True
        ):
            if box[0] < box[2] and box[1] < box[3]:
                entry = {"box": box, "score": score, "class": index}
                if self.labels.texts:
                    entry["label"] = self.labels.texts[index]
                result.append(entry)
                whole.append([floor(box[0]), floor(box[1]), ceil(box[2]), ceil(box[3])])
        item["result"], item["_box"] = result, whole

    def _decode(self, data: Any) -> Candidates:
        rows, has_object = self._rows(data)
        scores = rows[:, 4 + has_object :]
        # Outputs of other tasks have more numbers, which would pass for scores of classes.
        self.labels.check(scores.shape[1], droppable=False)
        if has_object:  # what is no object needs no class
            rows = rows[rows[:, 4] > self.params.score_threshold]
            scores = rows[:, 5:] * rows[:, 4:5]
        return candidates(rows[:, :4], scores, self.params.score_threshold)

    def _rows(self, data: Any) -> tuple[Floats, bool]:
        """Return A×(4+K) or A×(5+K) values, and whether they have the score of any object."""
        if not hasattr(data, "__array__"):
            raise InvalidInput(
                "YoloTensor: expected the one output of a detector as an array, found "
                f"{type(data).__name__}"
            )
        array = np.asarray(on_host(data))
        if array.dtype.kind == "f" and array.ndim == 3 and len(array) == 1:
            version = self.params.version
            if version == "auto" and array.shape[2] != 6:
                version = "v8" if array.shape[1] < array.shape[2] else "v5"
            rows = array[0].T if version == "v8" else array[0]
            if version != "auto" and rows.shape[1] > 4 + (version == "v5"):
                return rows.astype(np.float32, copy=False), version == "v5"
        hint = ""
        if array.ndim == 3 and array.shape[2] == 6:
            hint = (
                ". The last axis of 6 may be one class of v5, or a model with its own NMS: write "
                'version = "v5" if it is the former'
            )
        raise InvalidInput(
            "YoloTensor: expected floats of shape 1x(4+K)xA (v8) or 1xAx(5+K) (v5) for A boxes and "
            f"K classes, found {array.dtype} of shape {array.shape}{hint}"
        )


class Candidates(NamedTuple):
    """Boxes above the threshold: N×4 as [x1, y1, x2, y2], the score and class of each."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.intp]


def candidates(centred: Floats, scores: Floats, threshold: float) -> Candidates:
    """Return the boxes whose best class has a score above the threshold.

    `centred`: A×4, [x, y, w, h] with the centre of the box. `scores`: A×K.
    """
    above = scores.max(1) > threshold  # a tenth of the time of argmax, which few boxes need
    scores = scores[above]
    classes, best = scores.argmax(1), scores.max(1)
    middle, half = centred[above, :2], centred[above, 2:] / 2
    boxes = np.concatenate([middle - half, middle + half], 1)
    # A model may give infinite and empty boxes.
    sound = np.isfinite(boxes).all(1) & (boxes[:, :2] < boxes[:, 2:]).all(1)
    return Candidates(boxes[sound], best[sound], classes[sound])


def suppress(
    boxes: Floats,
    scores: Floats,
    classes: NDArray[np.intp] | None,
    iou_threshold: float,
    top_k: int,
) -> NDArray[np.intp]:
    """Return the indices of the boxes that greedy non-maximum suppression keeps, the best first.

    The rule is that of torchvision's `nms`: the best box stays, all that overlap it by more than
    `iou_threshold` go, and so on. With `classes`, only boxes of one class suppress each other
    (`batched_nms`). Of equal scores the first box is the better one.

    IoU = overlap / (area + other area - overlap), of boxes [x1, y1, x2, y2] with x1 < x2, y1 < y2.
    """
    order = np.argsort(-scores, kind="stable")
    # Columns in this order, so that what comes after a box is a slice of each, without a copy.
    left, top, right, bottom = np.ascontiguousarray(boxes[order].T)
    areas = (right - left) * (bottom - top)
    groups = None if classes is None else classes[order]
    remains = np.ones(len(order), bool)
    kept: list[int] = []
    best = 0
    while best < len(order) and len(kept) < top_k:
        kept.append(best)
        rest = slice(best + 1, None)
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        apart = overlap / (areas[best] + areas[rest] - overlap) <= iou_threshold
        if groups is not None:
            apart |= groups[rest] != groups[best]
        remains[rest] &= apart
        following = remains[rest].argmax() if remains[rest].any() else len(order)
        best += 1 + int(following)
    return order[kept]


def _mapped_back(boxes: list[list[float]], item: Item) -> list[list[float]]:
    """Return boxes of the model's image in pixels of the original one."""
    inverse: Any = item.get("inverse_trans")
    if inverse is None:
        return boxes
    if not callable(inverse):
        raise InvalidInput(
            f"YoloTensor: inverse_trans is {inverse!r:.100}: expected a function of x and y, as "
            "LetterBoxMat sets it"
        )
    back = cast(Callable[[float, float], tuple[float, float]], inverse)
    return [[*back(x1, y1), *back(x2, y2)] for x1, y1, x2, y2 in boxes]
