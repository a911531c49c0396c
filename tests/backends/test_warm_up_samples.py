"""Samples for warm-up: their values, how often they run, and what is said of those that fail."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import Context
from penstock.backends.errors import ConfigError, InvalidInput
from penstock.backends.warm_up_samples import Sample, SampleInput, run_samples


def value(context: Context, dtype: Any, shape: tuple[int, ...], data: str) -> Any:
    return SampleInput(dtype=dtype, shape=shape, data=data).array("x", context)


def test_values_of_samples(tmp_path: Path) -> None:
    context = Context(directory=tmp_path)
    zeros = value(context, "int64", (2, 3), "zeros")
    assert zeros.tolist() == [[0] * 3] * 2 and zeros.dtype == np.int64
    assert value(context, "string", (2,), "zeros").tolist() == ["", ""]
    numbers = value(context, "float16", (100,), "random")
    assert numbers.dtype == np.float16 and numbers.min() >= 0 and len(set(numbers.tolist())) > 9
    assert set(value(context, "uint8", (100,), "random").tolist()) == {0, 1}
    (tmp_path / "x").write_bytes(np.arange(6, dtype="<i4").tobytes() + b"more")
    assert value(context, "int32", (2, 3), "x").tolist() == [[0, 1, 2], [3, 4, 5]]
    (tmp_path / "halves").write_bytes(struct.pack("<2H", 0x3F80, 0xC000))
    assert value(context, "bfloat16", (2,), "halves").tolist() == [1, -2]
    (tmp_path / "texts").write_bytes(struct.pack("<I2sI", 2, b"ab", 0))
    assert value(context, "string", (2, 1), "texts").tolist() == [[b"ab"], [b""]]


@pytest.mark.parametrize(
    ("dtype", "content", "message"),
    [
        ("int32", b"1234567", "x has 7 bytes for x, expected 8"),
        ("string", struct.pack("<I", 0), "x has 1 texts for x, expected 2"),
        ("string", struct.pack("<II", 0, 9), "x ends within a text of x"),
        ("int32", None, "x can't be read: No such file"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, dtype: Any, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        value(Context(directory=tmp_path), dtype, (2,), "x")


def sample(**keys: Any) -> Sample:
    return Sample.model_validate({"inputs": {"x": {"dtype": "int32", "shape": [2]}}, **keys})


def test_a_sample_runs_as_often_and_in_batches_as_large_as_it_says() -> None:
    sizes: list[int] = []

    def forward(batch: list[Any]) -> None:
        sizes.append(len(batch))
        assert all(item["data"]["x"].shape == (1, 2) for item in batch)

    run_samples([sample(batch_size=5, count=2)], forward, Context(), 4, batched=True)
    assert sizes == [4, 1, 4, 1]


def test_a_sample_that_fails_is_named() -> None:
    def refuse(batch: list[Any]) -> None:
        batch[-1]["error"] = InvalidInput("too cold")

    with pytest.raises(ConfigError, match="warm_up: the sample big failed: too cold"):
        run_samples([sample(name="big")], refuse, Context(node="n"), 1, batched=True)
    with pytest.raises(ConfigError, match="the sample number 1 failed"):
        run_samples([sample()], refuse, Context(node="n"), 1, batched=False)
