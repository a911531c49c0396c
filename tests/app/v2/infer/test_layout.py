"""Requests that repeat get answers from their own bytes, and their own errors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.app.http.json_text import JsonLimits
from penstock.app.v2.infer.layout import LAYOUTS_PER_MODEL, recall, remember
from penstock.app.v2.infer.request import InferRequest, parse
from penstock.app.v2.models.model import Models
from penstock.app.v2.shared_memory import SharedMemory
from penstock.backends.memory import MemoryBudget, Reservation
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository

if TYPE_CHECKING:
    from tests.app.v2.conftest import Served


def infer_request() -> InferRequest:
    return InferRequest(Reservation(MemoryBudget(1 << 30)), JsonLimits(100, 1000))


TENSOR = {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]}


@pytest.fixture
async def models() -> Any:
    repository = Repository(
        [
            load(
                {
                    "pipeline": {"name": "one", "inputs": {"x": TENSOR}},
                    "n": {"backend": "Identity", "max": 8},
                }
            ),
            load(
                {
                    "pipeline": {"name": "two", "inputs": {"x": TENSOR, "y": TENSOR}},
                    "n": {"backend": "Identity", "max": 8},
                }
            ),
            load(
                {
                    "pipeline": {"name": "keyed", "inputs": {"data": TENSOR, "y": TENSOR}},
                    "n": {"backend": "Identity", "max": 8},
                }
            ),
            load(
                {
                    "pipeline": {"name": "any", "inputs": {"x": {"kind": "tensor"}}},
                    "n": {"backend": "Identity"},
                }
            ),
        ]
    )
    await repository.start()
    yield Models(repository)
    await repository.close(0)


def document(*names: Any, rows: Any = 1, datatype: Any = "FP32", size: Any = 8, **more: Any) -> Any:
    port = {
        "shape": [rows, 2],
        "datatype": datatype,
        "parameters": {"binary_data_size": size * rows},
    }
    return {"inputs": [{"name": name, **port} for name in names], **more}


def parsed(model: Any, fields: Any, blobs: Any) -> Any:
    """Return the request as `parse` fills it, and remember it."""
    request = infer_request()
    parse(request, fields, blobs, model, SharedMemory())
    remember(request, fields, json.dumps(fields).encode(), blobs, model)
    return request


def recalled(model: Any, fields: Any, blobs: Any) -> Any:
    request = infer_request()
    return (
        request
        if recall(request, json.dumps(fields).encode(), blobs, model, SharedMemory())
        else None
    )


def same(one: Any, other: Any) -> None:
    assert list(one.item) == list(other.item) or set(one.item) == set(other.item)
    for key, value in one.item.items():
        np.testing.assert_equal(other.item[key], value)
    for name in ("rows", "timeout", "priority", "outputs", "binary", "id"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("one", ["x"]),
        ("two", ["x", "y"]),
        ("two", ["y", "x"]),
        ("keyed", ["data", "y"]),
        ("keyed", ["y", "data"]),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
async def test_a_recalled_request_equals_a_parsed_one(
    models: Any, name: str, inputs: Any, rows: int
) -> None:
    model = models.get(name)
    fields = document(
        *inputs,
        rows=rows,
        parameters={"timeout": 9, "factor": 2, "binary_data_output": True},
        outputs=[{"name": "result"}],
    )
    first, second = (np.random.default_rng(seed).bytes(8 * rows * len(inputs)) for seed in (1, 2))
    parsed(model, fields, memoryview(bytearray(first)))
    blobs = memoryview(bytearray(second))
    again = recalled(model, fields, blobs)
    assert again is not None
    same(parsed(model, fields, blobs), again)


async def test_recalled_requests_share_nothing(models: Any) -> None:
    model, fields = models.get("one"), document("x", parameters={"factor": 2})
    parsed(model, fields, memoryview(bytearray(8)))
    one, other = (recalled(model, fields, memoryview(bytearray(8))) for _ in range(2))
    one.item["factor"] = 3
    one.item["data"][:] = 7
    assert other.item["factor"] == 2 and (other.item["data"] == 0).all()


async def test_requests_that_the_json_does_not_describe_in_full_are_not_kept(models: Any) -> None:
    blobs = memoryview(bytearray(8))
    cases = [
        ("one", document("x", id="7"), blobs),
        (
            "one",
            {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]},
            memoryview(b""),
        ),
        ("any", document("x", datatype="BOOL", size=2), blobs[:2]),
        ("any", document("x", datatype="BF16", size=4), blobs[:4]),
        ("any", document("x", datatype="BYTES", size=8), blobs),
        ("one", document("x", parameters={"note": "x" * 3000}), blobs),
    ]
    for name, fields, sent in cases:
        parsed(models.get(name), fields, sent)
        assert recalled(models.get(name), fields, sent) is None


async def test_a_body_of_another_size_is_not_recalled(models: Any) -> None:
    model, fields = models.get("one"), document("x")
    parsed(model, fields, memoryview(bytearray(8)))
    assert recalled(model, fields, memoryview(bytearray(9))) is None


async def test_the_number_of_layouts_is_bounded(models: Any) -> None:
    model, blobs = models.get("one"), memoryview(bytearray(8))
    for number in range(3 * LAYOUTS_PER_MODEL):
        parsed(model, document("x", parameters={"number": number}), blobs)
    assert 0 < len(model.layouts) <= LAYOUTS_PER_MODEL


def test_the_server_answers_from_the_bytes_of_each_request(served: Served) -> None:
    fields = served.one("FP32", [2, 2], size=16) | {"parameters": {"binary_data_output": True}}
    for number in range(3):
        blob = np.full(4, number, np.float32).tobytes()
        assert served.infer("identity_FP32", fields, blob).content.endswith(blob)
    assert "unexpected additional input data" in served.refused("identity_FP32", fields, bytes(20))
    assert "expecting 4 additional bytes" in served.refused("identity_FP32", fields, bytes(12))
