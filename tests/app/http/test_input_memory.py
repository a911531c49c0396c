"""What is read from a body is counted in `max_memory`, whatever the kinds of its inputs."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from typing import Any

import pytest

from penstock.app.http.inputs.reader import InputReader
from penstock.app.http.json_text import JsonLimits
from penstock.backends.errors import MemoryFull, TooLarge
from penstock.backends.memory import MemoryBudget, Reservation
from penstock.pipelines.pipeline import Pipeline

JSON = b"application/json"
FORM = b"multipart/form-data; boundary=b"

LIST_OF_TEXTS = {"kind": "list", "items": {"kind": "text"}}
LIST_OF_FILES = {"kind": "list", "items": {"kind": "bytes"}}


def form_of(*values: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n'
    return b"".join([b"%b%b\r\n" % (head, value) for value in values]) + b"--b--\r\n"


BODIES: dict[str, tuple[Any, bytes, bytes | None]] = {
    "numbers": ({"kind": "json"}, json.dumps([1.5] * 4_000).encode(), JSON),
    "integers": ({"kind": "json"}, json.dumps(list(range(10**9, 10**9 + 4_000))).encode(), JSON),
    "lists": ({"kind": "json"}, json.dumps([[]] * 4_000).encode(), JSON),
    "objects": ({"kind": "json"}, json.dumps([{"a": {}}] * 2_000).encode(), JSON),
    "words": ({"kind": "json"}, json.dumps([str(n) for n in range(4_000)]).encode(), JSON),
    "text": ({"kind": "text"}, b"x" * 50_000, None),
    "wide": ({"kind": "text"}, b"x" * 50_000 + "😀".encode(), None),
    "charset": ({"kind": "text"}, ("日本" * 20_000).encode("gbk"), b"text/plain; charset=gbk"),
    "string": ({"kind": "text"}, json.dumps("x" * 100_000 + "é").encode(), JSON),
    "tensor": ({"kind": "tensor"}, json.dumps([[1.5] * 100] * 200).encode(), JSON),
    "strings": ({"kind": "tensor"}, json.dumps([str(n) for n in range(4_000)]).encode(), JSON),
    "texts": (LIST_OF_TEXTS, json.dumps([str(n) for n in range(4_000)]).encode(), JSON),
    "files": (LIST_OF_FILES, json.dumps(["eHh4"] * 4_000).encode(), JSON),
    "large files": (
        LIST_OF_FILES,
        json.dumps([base64.b64encode(bytes(300_000)).decode()] * 3).encode(),
        JSON,
    ),
    "numbers of a list": (
        {"kind": "list", "items": {"kind": "number"}},
        json.dumps([n + 0.5 for n in range(4_000)]).encode(),
        JSON,
    ),
    "form": ({"kind": "json"}, form_of(json.dumps([1.5] * 4_000).encode()), FORM),
    "fields": (LIST_OF_TEXTS, form_of(*[b"%d" % n for n in range(250)]), FORM),
    "form of text": ({"kind": "text"}, form_of(b"x" * 50_000 + "é".encode()), FORM),
}


async def reader_of(port: Any) -> InputReader:
    node = {"backend": "Identity", "executor": "loop"}
    pipeline = {"name": "x", "inputs": {"data": port}}
    async with Pipeline.load({"pipeline": pipeline, "x": node}) as running:
        return InputReader(running)


def read(port: Any, body: bytes, kind: bytes | None, limit: int, *, many: bool = False) -> Any:
    reader = asyncio.run(reader_of(port))
    memory = Reservation(MemoryBudget(limit))
    memory.resize(len(body), "a body")
    method = reader.read_many if many else reader.read
    media = reader.media_of(kind)
    limits = JsonLimits(20, 1 << 22)
    method(body, media, Reservation(MemoryBudget(1 << 30)), limits, 10_000)  # what is kept for all
    tracemalloc.start()
    try:
        item = method(body, media, memory, limits, 10_000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return item, memory, held


@pytest.mark.parametrize("name", BODIES)
def test_what_is_read_is_counted(name: str) -> None:
    port, body, kind = BODIES[name]
    _, memory, held = read(port, body, kind, 1 << 30)
    assert held <= memory.size + 10_000, (held, memory.size)


@pytest.mark.parametrize("name", BODIES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    port, body, kind = BODIES[name]
    with pytest.raises((MemoryFull, TooLarge)):
        read(port, body, kind, len(body) + 5_000)


def test_a_batch_is_counted() -> None:
    body = json.dumps([[1.5] * 100] * 200).encode()
    items, memory, held = read({"kind": "json"}, body, JSON, 1 << 30, many=True)
    assert len(items) == 200
    assert held <= memory.size + 10_000
