"""Inputs that are texts count what they take once they are decoded."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from penstock.app.http.inputs.text import MAX_WIDE_TEXT_BYTES
from penstock.app.http.json_text import JsonLimits
from penstock.app.v2.infer.request import InferRequest, parse
from penstock.app.v2.models.model import Models
from penstock.app.v2.shared_memory import SharedMemory
from penstock.backends.errors import TooLarge
from penstock.backends.memory import MemoryBudget, Reservation
from penstock.pipelines.config.load import load
from penstock.pipelines.repository import Repository


async def parsed(text: str) -> tuple[InferRequest, int]:
    """Return the request of an input that is a text, as binary data, and the bytes of these."""
    pipeline = {"name": "text", "inputs": {"data": {"kind": "text"}}}
    repository = Repository([load({"pipeline": pipeline, "n": {"backend": "Identity"}})])
    await repository.start()
    content = text.encode()
    blob = len(content).to_bytes(4, "little") + content
    fields: Any = {
        "name": "data",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(blob)},
    }
    request = InferRequest(Reservation(MemoryBudget(1 << 30)), JsonLimits(100, 1000))
    model = Models(repository).get("text")
    if model.max_batch_size:
        fields["shape"] = [1, 1]
    parse(request, {"inputs": [fields]}, memoryview(bytearray(blob)), model, SharedMemory())
    await repository.close(0)
    return request, len(blob)


@pytest.mark.parametrize("text", ["a" * 100_000, "a" * 100_000 + "\U0001f600"])
async def test_a_text_counts_as_it_is_held(text: str) -> None:
    request, blob = await parsed(text)
    assert request.item["data"] == text
    # The string, and the bytes it is decoded from.
    assert request.memory.size >= sys.getsizeof(text) + blob


async def test_a_text_that_would_take_long_to_decode_is_refused() -> None:
    await parsed("a" * (MAX_WIDE_TEXT_BYTES + 1))
    await parsed("a" * (MAX_WIDE_TEXT_BYTES - 4) + "\U0001f600")
    with pytest.raises(TooLarge, match="input 'data' is a text of 16777217 bytes"):
        await parsed("a" * (MAX_WIDE_TEXT_BYTES - 3) + "\U0001f600")
