"""Phrases of torchpipe's files: understood, or refused with what to write instead
(docs/how-to/torchpipe.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.backends.errors import ConfigError
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.blocking.pipe import pipe
from penstock.pipelines.config.load import load

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")

SUB: dict[str, Any] = {"sub": {"backend": "Identity"}}


def answer(tables: Any, **keys: Any) -> dict[str, Any]:
    item = {"data": 1, **keys}
    with pipe(tables) as made:
        made(item)
    return item


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "marked.toml"
    file.write_bytes(b"\xef\xbb\xbf[n]\nbackend = 'Identity'\n")
    assert answer(file)["result"] == 1


def test_composites_take_their_node_in_brackets() -> None:
    assert answer({"n": {"backend": "Jump[sub]"}, **SUB})["result"] == 1
    for name in ("MapReduce", "CopySplit"):
        node = {"backend": f"{name}[sub]", **({"split_size": 1} if name == "CopySplit" else {})}
        assert answer({"n": node, **SUB}, data=[1, 2])["result"] == [1, 2]


@pytest.mark.parametrize("name", ["Remove", "del", "Del", "rm"])
def test_names_of_remove(name: str) -> None:
    seen: list[list[str]] = []

    class Look:
        def forward(self, batch: list[Item]) -> None:
            seen.append(sorted(batch[0]))

    register_backend("Look", Look)
    answer({"n": {"backend": f"S[{name}[other],Look]"}}, other=2)
    assert seen == [["data"]]


def test_keys_of_the_callers_dict_stay() -> None:
    expected = {"data": 1, "other": 2, "result": 1}
    assert answer({"n": {"backend": "S[Identity,Remove[other]]"}}, other=2) == expected
    moved = answer({"n": {"backend": "S[Identity,Move[other:new]]"}}, other=2)
    assert moved == {**expected, "new": 2}
    with pipe({"n": {"backend": "Identity"}}) as made:
        made([])


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"n": {"backend": "CopySplit"}}, "CopySplit needs jump, which is not given"),
        ({"n": {"backend": "Max(4)"}}, "Max takes 1 in brackets, found 0"),
        (
            {"n": {"backend": "S[DecodeMat,Mat2Tensor]", "data_format": "hwc"}},
            "data_format: found 'hwc': input should be 'nchw' or 'nhwc'",
        ),
        ({"n": {"backend": "Identity", "device_id": -1}}, "device_id: .*did you mean 'device'"),
        ({"n": {"backend": "Sequential[Identity;Identity]"}}, "expected ',' or ']', found ';'"),
        ({"n": {"backend": "Sequential[]"}}, "expected a backend's name, found ']'"),
        (
            {"n": {"backend": "ResizeMat", "resize_h": True, "resize_w": 3}},
            "resize_h: found True: input should be a number",
        ),
        ({"n": {"backend": "Identity", "max": True}}, "max: found True: input should be a number"),
        (
            {"pipeline": {"timeout": True}, "n": {"backend": "Identity"}},
            "timeout: found True: input should be a number",
        ),
        (
            {"pipeline": {"timeout": float("nan")}, "n": {"backend": "Identity"}},
            "timeout: found nan: input should be",
        ),
        (
            {"n": {"backend": "MapReduce", "jump": "sub", "split": "x,y"}, **SUB},
            "split: found 'x,y': expected one key",
        ),
        (
            {"n": {"backend": "MapReduce", "jump": "sub", "split": ""}, **SUB},
            "split: found '': expected the key that is split",
        ),
        ({"n": {"backend": "S[Identity,Move[a:b:c]]"}}, "expected two keys with one colon"),
        ({"n": {"backend": "S[Identity,Copy[a:b:c]]"}}, "expected two keys with one colon"),
        (
            {"n": {"backend": "AlignMat", "resize_h": 8, "max_w": 31}},
            r"max_w is 31, and no multiple of align \(32\) fits into it",
        ),
        (
            {"n": {"backend": "OnnxTensor", "model": "m.onnx", "mean": float("nan")}},
            "mean.*: found nan: input should be a finite number",
        ),
        (
            {"n": {"backend": "OnnxTensor", "model": "m.onnx", "mean": [True, 2, 3]}},
            "mean: found .*True, 2, 3.*: input should be a number",
        ),
    ],
)
def test_what_can_not_be_meant_is_refused_at_load(tables: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tables)
