"""What requests hold is back at 0 at their end, whatever they send and whenever they leave."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import socket
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.memory import budget

PATHS = ("/predict/length", "/predict/length/batch", "/predict/none", "/v2/models/length/infer")
BODIES = (
    b"",
    b"x",
    bytes(300_000),
    b'{"image": "' + b"A" * 400_000 + b'"}',
    b'{"images": ["AAAA", "AAAB"]}',
    b'{"image": [[], []]}',
    b'{"inputs": [{"name": "data", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}',
    json.dumps({"inputs": [1.5] * 50_000}).encode(),
    b"bad",
)
HEADS = (
    "",
    "Content-Type: application/json\r\n",
    "Content-Encoding: gzip\r\n",
    "Content-Encoding: deflate\r\n",
    "Content-Encoding: br\r\n",
    "Inference-Header-Content-Length: 0\r\n",
    "Accept: text/event-stream\r\n",
)


@pytest.fixture(scope="module")
def client(running: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory: Path = tmp_path_factory.mktemp("length")
    (directory / "operators.py").write_text(
        "def length(data):\n"
        "    if data == b'bad':\n"
        "        raise ValueError(data)\n"
        "    return len(data)\n"
    )
    file = directory / "length.toml"
    file.write_text('[length]\nbackend = "Python[operators.py:length]"\n')
    app = create_app(file, settings=Settings(max_memory=4 << 20))
    with running(app) as client:
        yield client


def request_bytes(path: str, head: str, body: bytes, chunked: bool) -> bytes:
    if "gzip" in head:
        body = gzip.compress(body)
    elif "deflate" in head:
        body = zlib.compress(body)
    if chunked:
        length = "Transfer-Encoding: chunked"
        body = b"".join(b"%x\r\n%s\r\n" % (len(body[:70_000]), body[:70_000]) for _ in body[:1])
        body += b"0\r\n\r\n"
    else:
        length = f"Content-Length: {len(body)}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}{length}\r\n\r\n".encode() + body


REQUESTS = st.tuples(
    st.sampled_from(PATHS), st.sampled_from(HEADS), st.sampled_from(BODIES), st.booleans()
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(REQUESTS, st.floats(0, 1), st.booleans()), max_size=8))
def test_nothing_is_held_after_requests_and_aborts(client: httpx.Client, sent: Any) -> None:
    """Each request is sent up to some part of it; then the client reads an answer, or leaves."""
    gc.collect()
    gc.disable()  # what is held must go by itself: collections may be hours apart
    try:
        for request, part, wait in sent:
            content = request_bytes(*request)
            with closing(
                socket.create_connection((client.base_url.host, client.base_url.port))
            ) as s:
                s.sendall(content if wait else content[: int(part * len(content))])
                if wait:
                    s.settimeout(30)
                    assert s.recv(100).startswith(b"HTTP/1.1 ")
        wait_until_nothing_is_held(client)
    finally:
        gc.enable()


def wait_until_nothing_is_held(client: httpx.Client) -> None:
    """Let the server's loop run until it has seen that clients have left."""
    for _ in range(2000):
        if not budget.used:
            return
        assert client.get("/health/live").status_code == 200
    raise AssertionError(repr(budget))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "X-Gzip", "identity"])
def test_compressed_bodies(client: httpx.Client, encoding: str) -> None:
    compress: Any = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[
        encoding.lower().removeprefix("x-")
    ]
    for body, headers, answer in (
        (b"abc", {}, {"result": 3}),
        (b'{"image": "AAAA"}', {"Content-Type": "application/json"}, {"result": 3}),
    ):
        response = client.post(
            "/predict/length",
            content=compress(body),
            headers={"Content-Encoding": encoding, **headers},
        )
        assert response.json() == answer


def test_unknown_and_broken_compression(client: httpx.Client) -> None:
    for encoding, body, status, words in (
        ("br", b"abc", 415, "content encoding 'br'"),
        ("gzip, gzip", b"abc", 415, "content encoding 'gzip, gzip'"),
        ("gzip", b"abc", 400, "can't be decompressed"),
        ("gzip", gzip.compress(b"abc")[:-1], 400, "cut off"),
        ("gzip", gzip.compress(b"abc") + b"x", 400, "something follows"),
        ("gzip", gzip.compress(bytes(70 << 20)), 413, "max_memory"),
    ):
        answer = client.post(
            "/predict/length", content=body, headers={"Content-Encoding": encoding}
        )
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True)


def test_what_does_not_fit_now_is_refused(client: httpx.Client) -> None:
    budget.reserve(3 << 20, "a test")
    try:
        for path, status in (("/predict/length", 503), ("/v2/models/length/infer", 503)):
            answer = client.post(path, content=bytes(1 << 20))
            assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")
            assert "max_memory" in answer.text
        assert client.post("/predict/length", content=b"abc").json() == {"result": 3}
    finally:
        budget.release(3 << 20)
    assert client.post("/predict/length", content=bytes(5 << 20)).status_code == 413


@pytest.mark.parametrize("path", ["/predict/images", "/predict/images/batch", "/v2", "stream"])
@pytest.mark.parametrize("kind", ["truncated", "no image", "failure"])
def test_what_failed_leaves_nothing(
    running: Any, tmp_path: Path, path: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of a traceback hold an item that holds the exception, or its cause: a cycle."""
    (tmp_path / "operators.py").write_text(
        "def fail(image):\n"
        "    try:\n"
        "        raise KeyError('first')\n"
        "    except KeyError as error:\n"
        "        raise RuntimeError('second') from error\n"
    )
    file = tmp_path / "images.toml"
    file.write_text('[images]\nbackend = "S[DecodeMat,Python[operators.py:fail]]"\nmax = 4\n')
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    whole = cv2.imencode(".png", noise)[1].tobytes()
    content = {"truncated": whole[:-3000], "no image": b"bad", "failure": whole}[kind]
    # pytest keeps what is logged, and so the frames of the exceptions.
    monkeypatch.setattr(logging.getLogger("penstock"), "propagate", False)
    gc.collect()
    gc.disable()
    try:
        with running(create_app(file, settings=Settings(max_memory=8 << 20))) as client:
            for _ in range(3):
                if path.endswith("batch"):
                    files = [("images", content)] * 3
                    statuses = {
                        result["status"]
                        for result in client.post(path, files=files).json()["results"]
                    }
                elif path == "/v2":
                    size = {"binary_data_size": len(content) + 4}
                    tensor = {"name": "data", "shape": [1], "datatype": "BYTES", "parameters": size}
                    head = json.dumps({"inputs": [tensor]}).encode()
                    length = {"Inference-Header-Content-Length": str(len(head))}
                    binary = len(content).to_bytes(4, "little") + content
                    answer = client.post(
                        "/v2/models/images/infer", content=head + binary, headers=length
                    )
                    statuses = {answer.status_code}
                else:
                    accept = {"Accept": "text/event-stream"} if path == "stream" else {}
                    statuses = {
                        client.post("/predict/images", content=content, headers=accept).status_code
                    }
                failed = {500} if kind == "failure" else {400 if path == "/v2" else 422}
                assert statuses == failed
            wait_until_nothing_is_held(client)
    finally:
        gc.enable()
