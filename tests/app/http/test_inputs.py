"""Bodies follow the declared inputs: every kind, by every way to send it, through both ways of
answering.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import weakref
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import create_app
from penstock.app.http.inputs.reader import InputReader
from penstock.app.http.json_text import JsonLimits
from penstock.app.http.predict_call import PredictRules
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.errors import PenstockError
from penstock.backends.expressions.registry import register_backend
from penstock.backends.memory import MemoryBudget, Reservation
from penstock.pipelines.config.load import load
from penstock.pipelines.pipeline import Pipeline
from penstock.pipelines.repository import Repository


def shown(value: Any) -> Any:
    """Return what JSON can say of a value: its type and itself."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, list):
        return [shown(item) for item in value]
    return [type(value).__name__, value.decode("latin-1") if isinstance(value, bytes) else value]


@register_backend("InputProbe")
class InputProbe(Backend):
    """Answers what it got: the values of the keys that a client may set."""

    def forward(self, batch: Any) -> None:
        for item in batch:
            keys = {key: shown(value) for key, value in item.items() if key in KEYS}
            item["result"] = keys["data"] if len(keys) == 1 else keys


KEYS = {"data", "photo", "question", "number", "request_size"}

PORTS: dict[str, dict[str, Any]] = {
    "image": {"data": {"kind": "image"}},
    "photo": {"photo": {"kind": "image"}},
    "bytes": {"data": {"kind": "bytes"}},
    "sound": {"data": {"kind": "bytes", "media_types": ["audio/*", "application/json"]}},
    "png": {"data": {"kind": "image", "media_types": ["image/png"]}},
    "text": {"data": {"kind": "text"}},
    "words": {"words": {"kind": "text"}},
    "json": {"data": {"kind": "json"}},
    "plain": {"data": {}},
    "integer": {"data": {"kind": "integer"}},
    "number": {"data": {"kind": "number"}},
    "boolean": {"data": {"kind": "boolean"}},
    "tensor": {"data": {"kind": "tensor"}},
    "floats": {"data": {"kind": "tensor", "dtype": "float32", "shape": [2, -1]}},
    "rows": {"X": {"kind": "tensor", "dtype": "INT32", "shape": [-1, 2]}},
    "names": {"data": {"kind": "tensor", "dtype": "string", "shape": [-1]}},
    "texts": {"data": {"kind": "list", "items": {"kind": "text"}}},
    "images": {"data": {"kind": "list", "items": {"kind": "image"}}},
    "values": {"data": {"kind": "list"}},
    "asked": {
        "photo": {"kind": "image"},
        "question": {"kind": "text"},
        "number": {"kind": "number", "optional": True},
    },
    "keyed": {
        "data": {"kind": "image"},
        "question": {"kind": "text"},
        "number": {"kind": "json", "optional": True},
    },
    "pages": {
        "data": {"kind": "list", "items": {"kind": "bytes"}},
        "question": {"kind": "list", "items": {"kind": "number"}, "optional": True},
    },
    "pair": {
        "A": {"kind": "tensor", "dtype": "FP32", "shape": [-1, 2]},
        "B": {"kind": "tensor", "dtype": "INT64", "shape": [-1, 1]},
    },
}

JSON = "application/json"
OCTETS = "application/octet-stream"
CURL = "application/x-www-form-urlencoded"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pipeline(name: str, inputs: Any) -> Any:
    return load(
        {
            "pipeline": {"name": name, "inputs": inputs},
            "probe": {"backend": "InputProbe", "max": 4},
        }
    )


@pytest.fixture(scope="module", params=["httptools", "penstock"])
def client(running: Any, request: Any) -> Any:
    pipelines = [pipeline(name, inputs) for name, inputs in PORTS.items()]
    app = create_app(pipelines, settings=Settings(max_images=3, max_json_depth=20))
    with running(app, http=request.param, proxy_headers=False) as client:
        yield client


def send(client: httpx.Client, path: str, body: Any, kind: str | None) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if kind is None else {"Content-Type": kind}
    return client.post(f"/predict/{path}", content=content, headers=headers)


ONE: list[tuple[str, str | None, Any, Any]] = [
    # An explicit type is believed; only a generic one is sniffed, and only for images.
    ("image", "image/png", b"x", ["bytes", "x"]),
    ("image", None, b"x", ["bytes", "x"]),
    ("image", None, {"image": base64_of(b"x")}, ["bytes", "x"]),
    ("image", JSON, {"data": base64_of(b"x")}, ["bytes", "x"]),
    ("image", JSON, base64_of(b"x"), ["bytes", "x"]),
    ("photo", JSON, {"photo": base64_of(b"x")}, ["bytes", "x"]),
    ("photo", JSON, {"image": base64_of(b"x")}, ["bytes", "x"]),
    ("bytes", OCTETS, {"image": "eA=="}, ["bytes", '{"image": "eA=="}']),
    ("bytes", None, {"image": "eA=="}, ["bytes", '{"image": "eA=="}']),
    ("bytes", CURL, b"a=b", ["bytes", "a=b"]),
    ("bytes", "application/pdf", b"%PDF", ["bytes", "%PDF"]),
    ("bytes", "audio/wav; rate=8000", b"RIFF", ["bytes", "RIFF"]),
    ("bytes", JSON, {"data": "eA=="}, ["bytes", "x"]),
    ("bytes", JSON, "eA==", ["bytes", "x"]),
    ("sound", "AUDIO/wav", b"RIFF", ["bytes", "RIFF"]),
    ("sound", None, b"RIFF", ["bytes", "RIFF"]),
    ("sound", JSON, {"a": 1}, ["bytes", '{"a": 1}']),
    ("png", "image/png", b"x", ["bytes", "x"]),
    ("text", "text/plain", "ä".encode(), ["str", "ä"]),
    ("text", "text/plain; charset=latin-1", "ä".encode("latin-1"), ["str", "ä"]),
    ("text", 'text/html; charset="UTF-16"', "ä".encode("utf-16"), ["str", "ä"]),
    ("text", "text/plain; charset=shift_jis", "日本".encode("shift_jis"), ["str", "日本"]),
    ("text", None, b'{"a": 1}', ["str", '{"a": 1}']),
    ("text", OCTETS, b"plain", ["str", "plain"]),
    ("text", CURL, b"one two=3", ["str", "one two=3"]),
    ("text", JSON, "ä", ["str", "ä"]),
    ("text", JSON, {"data": ""}, ["str", ""]),
    ("words", "text/markdown", b"# x", ["str", "# x"]),
    ("words", JSON, {"words": "x"}, ["str", "x"]),
    ("json", JSON, {"data": [1, None, "x"]}, ["dict", {"data": [1, None, "x"]}]),
    ("json", "application/ld+json", None, ["NoneType", None]),
    ("json", None, {"a": 1}, ["dict", {"a": 1}]),
    ("json", CURL, "x", ["str", "x"]),
    ("plain", JSON, 1.5, ["float", 1.5]),
    ("integer", JSON, 3.0, ["int", 3]),
    ("integer", JSON, -(2**63), ["int", -(2**63)]),
    ("integer", "text/plain", b"3\n", ["int", 3]),
    ("number", JSON, 3, ["int", 3]),
    ("number", None, b"-2.5e3", ["float", -2500.0]),
    ("number", JSON, {"data": 1.5}, ["float", 1.5]),
    ("boolean", JSON, True, ["bool", True]),
    ("tensor", JSON, [[1, 2], [3, 4]], ["int64", [[1, 2], [3, 4]]]),
    ("tensor", None, [1, 2.5], ["float64", [1.0, 2.5]]),
    ("tensor", JSON, {"data": [True]}, ["bool", [True]]),
    ("tensor", JSON, [["a"]], ["object", [["a"]]]),
    ("floats", JSON, [[1], [2]], ["float32", [[1.0], [2.0]]]),
    ("rows", JSON, [[1, 2]], ["int32", [[1, 2]]]),
    (
        "rows",
        JSON,
        [[1, 2], [3, 4]],
        {"data": ["int32", [[1, 2], [3, 4]]], "request_size": ["int", 2]},
    ),
    ("names", JSON, ["a", "ä"], ["object", ["a", "ä"]]),
    ("texts", JSON, ["a", "ä"], [["str", "a"], ["str", "ä"]]),
    ("texts", None, [], []),
    ("images", JSON, {"data": ["eA=="]}, [["bytes", "x"]]),
    ("values", JSON, [1, {"a": []}], [["int", 1], ["dict", {"a": []}]]),
]


@pytest.mark.parametrize(("name", "kind", "body", "expected"), ONE)
def test_one_input(client: httpx.Client, name: str, kind: Any, body: Any, expected: Any) -> None:
    answer = send(client, name, body, kind)
    assert answer.json().get("result") == expected, answer.text


@pytest.mark.parametrize(
    ("name", "kind", "body", "status", "detail"),
    [
        ("image", "text/plain", b"x", 415, "'text/plain' is not understood; send the image itself"),
        ("png", "image/jpeg", b"x", 415, "'image/jpeg' is not understood; input 'data' is of kind"),
        ("sound", "video/mp4", b"x", 415, "send it as one of audio/*, application/json, multi"),
        ("text", "audio/wav", b"x", 415, "is of kind text: send it as one of text/*, multipart"),
        ("json", "text/plain", b"{}", 415, "is of kind json: send it as one of multipart"),
        ("text", "text/plain; charset=klingon", b"x", 415, "the charset 'klingon'"),
        ("text", "text/plain; charset=idna", b"x", 415, "the charset 'idna'"),
        ("text", "text/plain; charset=hex", b"x", 415, "the charset 'hex'"),
        ("text", "text/plain; charset=utf-8-sig", b"x", 415, "the charset 'utf-8-sig'"),
        ("text", "text/plain", b"\xff", 400, "input 'data' is not valid UTF-8"),
        ("text", "text/plain; charset=utf-16", b"null", 400, "input 'data' is not valid utf-16"),
        ("text", "text/plain", b"", 400, "the body is empty: expected 'data' (text)"),
        ("json", None, b"", 400, "the body is empty: expected 'data' (json)"),
        ("bytes", None, b"", 400, "the body is empty: expected 'data' (bytes)"),
        ("json", JSON, b"{", 400, "column 2 (char 1); expected any JSON for input 'data'"),
        ("json", JSON, b"[" * 21 + b"]" * 21, 400, "nesting depth"),
        ("text", JSON, 7, 400, "'data' is a JSON number, expected a string (kind = \"text\")"),
        ("text", JSON, {"x": 1}, 400, "the body has the unknown key 'x', expected a string, or {"),
        ("text", JSON, {}, 400, "the body has no 'data'"),
        ("bytes", JSON, "*", 400, "'data' is not valid base64"),
        ("bytes", JSON, 7, 400, "'data' is a JSON number, expected a base64 string"),
        ("number", JSON, True, 400, "is a JSON boolean, expected a number"),
        ("number", None, b"abc", 400, 'expected a number, or {"data": …}'),
        ("integer", JSON, 1.5, 400, "expected a whole number"),
        ("integer", JSON, 1e30, 400, "'data' is about 1e+30, expected a whole number of 64 bits"),
        ("integer", JSON, 2**63, 400, "'data' is 9223372036854775808, expected at most"),
        ("integer", "text/plain", b"-9223372036854775809", 400, "'data' is about -9.22337e+18"),
        ("boolean", JSON, 1, 400, "expected true or false"),
        ("tensor", JSON, 1, 400, "'data' is a JSON number, expected nested arrays"),
        ("tensor", JSON, [[1], [2, 3]], 400, "its arrays at level 2 have several lengths"),
        ("tensor", JSON, [[1, 2], [3], [4, 5, 6]], 400, "several lengths"),
        ("tensor", JSON, [1, [2]], 400, "elements are of the JSON types array, number"),
        ("tensor", JSON, [1, "a"], 400, "elements are of the JSON types number, string"),
        ("floats", JSON, [[1]], 400, "'data' is a tensor of shape [1, 1], expected [2, -1]"),
        ("floats", JSON, [[1e300], [2]], 400, "input 'data' has a number beyond the range of FP32"),
        ("rows", JSON, [[1, 2**40]], 400, "input 'X' has datatype INT32, whose values are"),
        ("rows", JSON, [[1, 2]] * 5, 400, "'X' has 5 rows"),
        ("texts", JSON, "a", 400, "'data' is a JSON string, expected an array (kind = \"list\")"),
        ("texts", JSON, ["a", 1], 400, "'data[1]' is a JSON number, expected a string"),
        ("images", JSON, ["*"], 400, "'data[0]' is not valid base64"),
    ],
)
def test_one_bad_input(
    client: httpx.Client, name: str, kind: Any, body: Any, status: int, detail: str
) -> None:
    answer = send(client, name, body, kind)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"] and len(answer.json()["detail"]) < 400
    assert answer.json()["code"] == {400: "invalid_request", 415: "unsupported_media"}[status]


def form(client: httpx.Client, path: str, fields: Any) -> httpx.Response:
    """Send fields: a name, and a value or a value and its media type."""
    files = [
        (name, (None, *value) if isinstance(value, tuple) else (None, value))
        for name, value in fields
    ]
    return client.post(f"/predict/{path}", files=files)


def results(answer: httpx.Response) -> Any:
    document = answer.json()
    if "results" in document:
        return [one.get("result") for one in document["results"]]
    return document.get("result", answer.text)


PHOTO, QUESTION = ["bytes", "x"], ["str", "why?"]


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("image", [("image", b"x")], PHOTO),
        ("image", [("data", (b"x", "text/plain"))], PHOTO),
        ("bytes", [("data", (b"x", JSON))], PHOTO),
        ("sound", [("data", (b"x", "audio/wav"))], PHOTO),
        ("text", [("data", (b"\xe4", "text/plain; charset=latin-1"))], ["str", "ä"]),
        ("text", [("data", (b'"x"', JSON))], ["str", "x"]),
        ("text", [("data", b"")], ["str", ""]),
        ("json", [("data", b'{"a": 1}')], ["dict", {"a": 1}]),
        ("number", [("data", b"1.5")], ["float", 1.5]),
        ("tensor", [("data", b"[1, 2]")], ["int64", [1, 2]]),
        ("texts", [("data", b"a"), ("data", b"b")], [["str", "a"], ["str", "b"]]),
        ("texts", [("data", (b'["a", "b"]', JSON))], [["str", "a"], ["str", "b"]]),
        ("images", [("data", b"x")], [PHOTO]),
        ("asked", [("question", b"why?"), ("photo", b"x")], [PHOTO, QUESTION, ["NoneType", None]]),
        (
            "keyed",
            [("question", b"why?"), ("data", b"x"), ("number", b"[1]")],
            {"data": PHOTO, "question": QUESTION, "number": [["int", 1]]},
        ),
        (
            "pages",
            [("data", b"x"), ("question", b"1"), ("data", b"y")],
            {"data": [PHOTO, ["bytes", "y"]], "question": [["int", 1]]},
        ),
        (
            "pair",
            [("A", b"[[1, 2], [3, 4]]"), ("B", b"[[1], [2]]")],
            {
                "data": [["float32", [[1.0, 2.0], [3.0, 4.0]]], ["int64", [[1], [2]]]],
                "request_size": ["int", 2],
            },
        ),
    ],
)
def test_forms(client: httpx.Client, name: str, fields: Any, expected: Any) -> None:
    assert results(form(client, name, fields)) == expected


@pytest.mark.parametrize("kind", [JSON, None])
@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        (
            "asked",
            {"photo": "eA==", "question": "why?", "number": 2},
            [PHOTO, QUESTION, ["int", 2]],
        ),
        (
            "asked",
            {"photo": "eA==", "question": "why?", "number": None},
            [PHOTO, QUESTION, ["NoneType", None]],
        ),
        ("keyed", {"data": "eA==", "question": "why?"}, {"data": PHOTO, "question": QUESTION}),
        (
            "pages",
            {"data": ["eA=="], "question": [1.5]},
            {"data": [PHOTO], "question": [["float", 1.5]]},
        ),
        ("pair", {"A": [[1, 2]], "B": [[3]]}, [["float32", [[1.0, 2.0]]], ["int64", [[3]]]]),
    ],
)
def test_several_inputs_in_an_object(
    client: httpx.Client, name: str, body: Any, expected: Any, kind: Any
) -> None:
    assert results(send(client, name, body, kind)) == expected


BATCHES: list[tuple[str, Any, Any]] = [
    ("image", {"images": ["eA=="]}, [PHOTO]),
    ("image", ["eA==", {"image": "eA=="}], [PHOTO] * 2),
    ("bytes", ["eA==", {"data": "eA=="}], [PHOTO] * 2),
    ("text", ["a", {"data": "b"}], [["str", "a"], ["str", "b"]]),
    ("json", [{"a": 1}, None], [["dict", {"a": 1}], ["NoneType", None]]),
    ("number", [1, 2.5], [["int", 1], ["float", 2.5]]),
    ("rows", [[[1, 2]]], [["int32", [[1, 2]]]]),
    ("texts", [["a"], []], [[["str", "a"]], []]),
    (
        "keyed",
        [{"data": "eA==", "question": "why?"}] * 2,
        [{"data": PHOTO, "question": QUESTION}] * 2,
    ),
]


@pytest.mark.parametrize("kind", [JSON, None])
@pytest.mark.parametrize(("name", "body", "expected"), BATCHES)
def test_batches_in_json(
    client: httpx.Client, name: str, body: Any, expected: Any, kind: Any
) -> None:
    assert results(send(client, f"{name}/batch", body, kind)) == expected


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("image", [("images", b"x"), ("data", b"x")], [PHOTO] * 2),
        ("bytes", [("data", b"x"), ("data", b"x")], [PHOTO] * 2),
        ("text", [("data", b"a"), ("data", b"b")], [["str", "a"], ["str", "b"]]),
        ("number", [("data", b"1"), ("data", b"2")], [["int", 1], ["int", 2]]),
        ("texts", [("data", b'["a"]'), ("data", b"[]")], [[["str", "a"]], []]),
        (
            "keyed",
            [("data", b"x"), ("question", b"why?"), ("data", b"y"), ("question", b"why?")],
            [
                {"data": PHOTO, "question": QUESTION},
                {"data": ["bytes", "y"], "question": QUESTION},
            ],
        ),
    ],
)
def test_batches_in_forms(client: httpx.Client, name: str, fields: Any, expected: Any) -> None:
    assert results(form(client, f"{name}/batch", fields)) == expected


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "detail"),
    [
        (
            "asked",
            b"x",
            None,
            415,
            "the body is no JSON, and no media type says what else it is: th",
        ),
        (
            "asked",
            b"x",
            "image/png",
            415,
            "takes several inputs, 'photo' (image), 'question' (text",
        ),
        ("asked", [1], JSON, 400, "the body is a JSON array, expected an object with 'photo' (im"),
        ("asked", {"photo": "eA=="}, JSON, 400, "the body has no 'question', expected an object"),
        ("asked", {"image": "eA=="}, JSON, 400, "the unknown key 'image'"),
        ("asked", {"photo": "*", "question": ""}, JSON, 400, "'photo' is not valid base64"),
        ("asked", {"photo": "", "question": 1}, JSON, 400, "'question' is a JSON number, expected"),
        ("pair", {"A": [[1, 2]], "B": [[1], [2]]}, JSON, 400, "'B' has 2 rows and another input"),
        ("text/batch", b"x", "text/plain", 415, "several items must come as multipart/form-data"),
        (
            "text/batch",
            b"x",
            None,
            415,
            "several items must come as multipart/form-data (field 'da",
        ),
        ("text/batch", "x", JSON, 400, "the body is a JSON string, expected an array with an ele"),
        ("text/batch", [], JSON, 400, "the request has no item"),
        ("text/batch", ["x"] * 4, JSON, 413, "4 items, at most 3 are accepted (max_images)"),
        ("text/batch", ["x", 1], JSON, 400, "'data[1]' is a JSON number, expected a string"),
        ("json/batch", {"data": []}, JSON, 400, "the body is a JSON object, expected an array"),
        ("keyed/batch", [{"data": "eA=="}], JSON, 400, "item [0] has no 'question'"),
        ("texts/batch", [["x", 1]], JSON, 400, "'data[0][1]' is a JSON number"),
    ],
)
def test_bad_bodies_of_several(
    client: httpx.Client, path: str, body: Any, kind: Any, status: int, detail: str
) -> None:
    answer = send(client, path, body, kind)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"] and len(answer.json()["detail"]) < 400


@pytest.mark.parametrize(
    ("path", "fields", "status", "detail"),
    [
        ("text", [("words", b"x")], 400, "unknown field 'words'; expected 'data' (text)"),
        ("text", [("data", b"x")] * 2, 400, "the form has 2 fields 'data', expected one; send sev"),
        ("text", [("data", b"\xff")], 400, "input 'data' is not valid UTF-8"),
        ("text", [("data", (b"x", "text/plain; charset=no"))], 415, "'data' has the charset 'no'"),
        ("sound", [("data", (b"x", "video/mp4"))], 415, "the media type 'video/mp4', expected one"),
        ("number", [("data", b"x")], 400, 'expected a number (kind = "number")'),
        ("asked", [("photo", b"x")], 400, "the form has no field 'question', expected 'photo' (im"),
        ("asked", [("photo", b"x")] * 20, 400, "the form has more than 10 parts, expected fields"),
        ("texts", [("data", b"x")] * 20, 400, "the form has more than 11 parts"),
        ("text/batch", [("data", b"x")] * 4, 413, "4 items, at most 3"),
        ("keyed/batch", [("data", b"x")] * 20, 413, "more than 9 parts (max_images)"),
        (
            "keyed/batch",
            [("data", b"x"), ("data", b"x"), ("question", b"x")],
            400,
            "the form has 2 'data', 1 'question': expected as many fields of each input",
        ),
    ],
)
def test_bad_forms(client: httpx.Client, path: str, fields: Any, status: int, detail: str) -> None:
    answer = form(client, path, fields)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"] and len(answer.json()["detail"]) < 400


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([2**63, -(2**63), 2**64, 1e308, -0.0, "eA==", "\ud800", "data:,x"])
    | st.integers()
    | st.floats()
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "photo", "question", "number", "image", "url", "A", "B", "?"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
TYPES = [
    None, b"", b"*/*", b"image/png", b"text/plain", b"text/plain; charset=utf-16", b"audio/wav",
    b"application/json", b"application/x-www-form-urlencoded", b"text/plain; charset*0=x",
    b"multipart/form-data; boundary=b", b"application/", b"/", b"text/\xff; charset=\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def readers() -> list[InputReader]:
    async def start() -> list[InputReader]:
        async with contextlib.AsyncExitStack() as running:
            return [
                InputReader(await running.enter_async_context(Pipeline(pipeline(name, inputs))))
                for name, inputs in PORTS.items()
            ]

    return asyncio.run(start())


@settings(max_examples=50)
@given(
    VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=40),
    st.lists(st.sampled_from(["data", "photo", "question", "A", ""]), min_size=1, max_size=3),
    st.sampled_from(TYPES),
)
def test_any_body_is_read_or_refused(readers: Any, content: bytes, names: Any, kind: Any) -> None:
    """Whatever the kinds of the inputs: nothing else than an error of ours is raised."""
    if kind is not None and kind.startswith(b"multipart"):
        head = 'Content-Disposition: form-data; name="{}"\r\nContent-Type: {}\r\n\r\n'
        parts = [head.format(name, name and JSON).encode() + content for name in names]
        content = b"".join([b"--b\r\n%b\r\n" % part for part in parts]) + b"--b--\r\n"
    for reader in readers:
        for read in (reader.read, reader.read_many):
            memory = Reservation(MemoryBudget(1 << 30))
            try:
                items = read(content, reader.media_of(kind), memory, JsonLimits(20, 1000), 3)
            except PenstockError as error:
                assert len(str(error)) < 500
            else:
                for item in items if isinstance(items, list) else [items]:
                    assert type(item) is dict and ("data" in item or not reader.inputs.tensors)


def test_a_pipeline_that_is_gone_is_not_kept() -> None:
    """What reads its bodies would keep the memory of its models."""

    async def read() -> None:
        rules = PredictRules(Repository([]), Settings(), None)
        async with Pipeline(pipeline("text", PORTS["text"])) as running:
            assert rules.reader_of(running) is rules.reader_of(running)
        gone = weakref.ref(running)
        del running
        gc.collect()
        assert gone() is None
        assert not rules._readers

    asyncio.run(read())
