"""Kinds of values: what is refused at load would fail at run, and what runs is not refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from penstock.backends.base import Context, DataKind
from penstock.backends.errors import ConfigError
from penstock.backends.expressions.kinds import fits
from penstock.backends.expressions.registry import BUILTINS, find_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load

IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
VALUES: dict[DataKind, Any] = {
    "file": cv2.imencode(".png", IMAGE)[1].tobytes(),
    "image": IMAGE,
    "tensor": IMAGE.transpose(2, 0, 1)[np.newaxis].copy(),
    "array": np.array([[1, 2, 3]], np.float32),
    "value": 3,
}
KEYS = {
    "resize_h": 4, "resize_w": 4, "max_h": 4, "max_w": 4, "color": "rgb", "align": 4, "multiple": 4,
    "target_h": 4, "target_w": 4, "crop_h": 4, "crop_w": 4,
}  # fmt: skip
ITEM: Item = {
    "_box": [0, 0, 4, 4], "resize_h": 4, "resize_w": 4, "color": "bgr",
    "affine_matrix": [1, 0, 0, 0, 1, 0],
}  # fmt: skip
TAKING = sorted(
    name
    for name in BUILTINS
    if name == find_backend(name).__name__
    and find_backend(name).takes
    and not hasattr(find_backend(name).parameters, "declared_range")  # engines need a model
    and name != "SaveMat"
)


@pytest.mark.parametrize("name", TAKING)
def test_what_does_not_fit_fails(name: str, tmp_path: Path) -> None:
    cls = find_backend(name)
    fields = cls.parameters.model_fields if cls.parameters else {}
    keys = {key: value for key, value in KEYS.items() if key in fields}
    if "dictionary" in fields:
        (tmp_path / "characters.txt").write_text("a\nb\n")
        keys["dictionary"] = str(tmp_path / "characters.txt")
    if "_box" in (cls.__doc__ or "") and "4 points" in (cls.__doc__ or ""):
        box: Any = [[0, 0], [4, 0], [4, 4], [0, 4]]
    else:
        box = ITEM["_box"]
    backend = (
        load({"backend": name, **keys}).nodes["main"].instance_groups[0].spec.create(Context())
    )
    try:
        for kind, value in VALUES.items():
            item = {**ITEM, "_box": box, "data": value}
            try:
                backend.forward([item])
            except Exception as error:
                item["error"] = error
            if not fits(kind, cls.takes):
                assert "error" in item, f"{name} takes {kind}"
            elif kind == cls.takes and kind != "array":
                assert "error" not in item, item["error"]
    finally:
        backend.close()


def test_expressions_that_can_not_work_are_refused() -> None:
    for text in (
        "S[ResizeMat(4,4),DecodeMat]",
        "S[DecodeMat,SoftmaxArgMaxTensor]",
        "S[DecodeMat,Identity,Mat2Tensor,SyncTensor[S[ResizeMat(4,4)]]]",
        "S[Identity,S[DecodeMat,Mat2Tensor],Max(2)[DecodeMat]]",
    ):
        with pytest.raises(ConfigError, match="expected another order of the backends"):
            load(text)
    for text in (
        "S[DecodeMat,ResizeMat(4,4),Mat2Tensor]",
        "S[DecodeMat,(or)DecodeMat]",  # which of them runs depends on the item
        "S[DecodeMat,Python[builtins:sorted],DecodeMat]",
        "S[DecodeMat,Copy[original:data],DecodeMat]",
        "S[DecodeMat,(or)S[DecodeMat,Mat2Tensor]]",
    ):
        load(text)
