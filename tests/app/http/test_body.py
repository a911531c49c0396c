"""From bodies to images: what the encoder writes comes back, and whatever else a client sends
raises a `PenstockError`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.app.http import body
from penstock.app.http.helper_thread import on_helper_thread
from penstock.app.http.inputs.reader import InputReader
from penstock.app.http.json_text import JsonLimits
from penstock.backends.errors import InvalidRequest, PenstockError, TooLarge, UnsupportedMedia
from penstock.backends.memory import MemoryBudget, Reservation
from penstock.pipelines.pipeline import Pipeline

SEPARATORS = [
    b"\r\n",
    b"\r",
    b"\n",
    b"--",
    b"--x",
    b"\r\n--x",
    b"\r\n--x--",
    b"\r\n--x\r\n",
    b'Content-Disposition: form-data; name="image"',
    b";",
    b"=",
]

PIECES = st.lists(st.sampled_from(SEPARATORS) | st.binary(max_size=8), max_size=12).map(b"".join)
"""Bytes that look like multipart with the boundary `x`."""


READER = InputReader(Pipeline.load("Identity"))
"""The reader of a pipeline that declares no inputs."""


def images_of(
    content: Any,
    form: Any,
    kind: Any = b"multipart/form-data; boundary=x",
    many: Any = False,
    limit: Any = 8,
) -> Any:
    if form == "json":
        kind = b"application/json"
    budget = MemoryBudget(1 << 30)
    memory = Reservation(budget)
    memory.resize(len(content), "a body")
    read = READER.read_many if many else READER.read
    read_items = read(content, READER.media_of(kind), memory, JsonLimits(100, 1000), limit)
    items: Any = read_items if many else [read_items]
    images = [item["data"] for item in items]
    assert budget.used == memory.size == sum(map(len, images))
    return images


def encoded(images: Any, field: Any, boundary: Any = b"x") -> Any:
    """Return a form as httpx writes it, whole."""
    request = httpx.Request(
        "POST",
        "http://x",
        files=[
            (field, (f'"odd"; name="{index}".png', image, "image/png"))
            for index, image in enumerate(images)
        ],
        headers={"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"},
    )
    return request.read()


@given(st.lists(st.binary(max_size=50) | PIECES, min_size=1, max_size=8))
@example([b"\r\n--y", b"", b"\r\n"])
def test_multipart_comes_back(images: Any) -> None:
    boundary = b"y" * 20  # which no piece of PIECES holds
    kind = b"multipart/form-data; boundary=" + boundary
    assert images_of(encoded(images, "images", boundary), "multipart", kind, many=True) == images
    quoted = b'Multipart/Form-Data; charset=utf-8; boundary="' + boundary + b'"'
    assert images_of(encoded(images[:1], "image", boundary), "multipart", quoted) == images[:1]


@given(st.lists(st.binary(), min_size=1, max_size=8))
def test_json_comes_back(images: Any) -> None:
    texts = [base64.b64encode(image).decode() for image in images]
    assert images_of(json.dumps({"images": texts}).encode(), "json", many=True) == images
    assert (
        images_of(json.dumps({"image": f"data:image/png;base64,{texts[0]}"}).encode(), "json")
        == images[:1]
    )


@pytest.mark.parametrize(
    "preamble",
    [b"\r\n", b"This is a message in MIME format.\r\n", b"--\r\n\r\n--xy\r\n", b"--\xff\r\n\r\n"],
)
def test_text_before_the_first_boundary_is_ignored(preamble: bytes) -> None:
    content = encoded([b"one", b"--x"], "images")
    assert images_of(preamble + content, "multipart", many=True) == [b"one", b"--x"]
    assert images_of(preamble + content + b"epilogue", "multipart", many=True) == [b"one", b"--x"]


@pytest.mark.parametrize("content", [b"no boundary at all", b"preamble\r\n--x--\r\n"])
def test_a_preamble_alone_holds_no_image(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the multipart body is malformed"):
        images_of(content, "multipart")


def lines_of(text: str, end: str) -> str:
    """Return a text in lines of 76 characters, as `base64` and MIME write it."""
    return "".join(text[start : start + 76] + end for start in range(0, len(text), 76))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: lines_of(text, "\n"),
        lambda text: lines_of(text, "\r\n"),
        lambda text: text.rstrip("="),
        lambda text: text.translate(str.maketrans("+/", "-_")),
        lambda text: lines_of(text, "\n").rstrip("=\n").translate(str.maketrans("+/", "-_")),
        lambda text: f"data:image/png;base64,{text.rstrip('=')}",
    ],
)
def test_base64_as_others_write_it(rewrite: Any) -> None:
    """In lines, URL-safe, without padding."""
    for image in (bytes(range(256)), b"\xfb\xff", b"x"):
        text = rewrite(base64.b64encode(image).decode())
        assert images_of(json.dumps({"image": text}).encode(), "json") == [image]
        assert images_of(json.dumps({"images": [text]}).encode(), "json", many=True) == [image]


@pytest.mark.parametrize(
    "rewrite",
    [
        str,
        lambda text: text.rstrip("="),
        lambda text: text.translate(str.maketrans("+/", "-_")),
        lambda text: lines_of(text, " "),
        lambda text: lines_of(text, "\n"),
        lambda text: f"data:image/png;base64,{text}",
    ],
    ids=["plain", "unpadded", "URL-safe", "spaces", "lines", "data URL"],
)
def test_large_images_in_json(rewrite: Any) -> None:
    image = bytes(range(256)) * 8000 + b"x"
    text = rewrite(base64.b64encode(image).decode())
    assert images_of(json.dumps({"image": text}).encode(), "json") == [image]
    images = images_of(json.dumps({"images": [text, "eHg=", text]}).encode(), "json", many=True)
    assert images == [image, b"xx", image]


@pytest.mark.parametrize(
    "content",
    [
        '{"image": "%s\n"}',
        '{"image": "%s\\u00e9"}',
        '{"image": "%sé"}',
        '{"image": "%s" 1}',
        '{"image": "%s}',
        '{"image": ["%s"]}',
        '{"image": "data:image/png,%s"}',
        '{"url": "%s"}',
        '{"%s": 1}',
    ],
)
def test_large_images_that_are_refused(content: str) -> None:
    text = base64.b64encode(bytes(2_000_000)).decode()
    with pytest.raises(InvalidRequest):
        images_of((content % text).encode(), "json")


def test_large_bodies_are_joined_on_a_helper_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the loop the copy of 60 MiB would delay every other request by 35 ms."""
    threads = []
    join = body.Pieces.join

    def noted(pieces: Any, memory: Reservation) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return join(pieces, memory)

    monkeypatch.setattr(body.Pieces, "join", noted)

    async def receive() -> Any:
        return {"type": "http.request", "body": bytes(count), "more_body": False}

    for count in (2_000_000, 20_000_000):
        first = {"type": "http.request", "body": b"first", "more_body": True}
        memory = Reservation(MemoryBudget(1 << 30))
        whole = asyncio.run(body.read_rest(first, receive, 1 << 30, memory))
        assert whole == b"first" + bytes(count)
        assert memory.size == len(whole)
    assert threads == [True, False]


def test_no_memory_is_said_if_no_helper_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The executor keeps what it got. It must not run once a thread is there again."""
    called: list[int] = []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def call() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(MemoryError):
                await on_helper_thread(called.append, 1)
        await on_helper_thread(called.append, 2)

    asyncio.run(call())
    assert called == [2]


def test_a_large_body_is_parsed_whole() -> None:
    """It is parsed in one piece, on a helper thread."""
    image = bytes(range(256)) * 20_000
    assert images_of(encoded([image, image], "images"), "multipart", many=True) == [image, image]
    assert images_of(json.dumps({"image": base64.b64encode(image).decode()}).encode(), "json") == [
        image
    ]


def only_ours(call: Any, *arguments: Any, **options: Any) -> None:
    """Call it: it returns images, or raises an error of ours."""
    try:
        images = call(*arguments, **options)
    except PenstockError as error:
        assert str(error).isprintable() and len(str(error)) < 400
    else:
        assert images and all(type(image) is bytes for image in images)


@given(PIECES, st.booleans())
@example(b"", False)
@example(b"--x--", False)
@example(b"--x\r\nContent-Disposition: form-data; name*1=a;name*=b\r\n\r\nx\r\n--x--\r\n", False)
@example(
    b"--x\r\nContent-Disposition: form-data; name*" + b"9" * 4100 + b"=1\r\n\r\nx\r\n--x--\r\n",
    False,
)
@example(b"--x\r\nContent-Disposition: \xff\x80\r\n\r\nx\r\n--x--\r\n", False)
@example(b"--x\r\nA: " + b"b" * 9000 + b"\r\n\r\nx\r\n--x--\r\n", True)
@example(b"--x\r\n" + b"a: b\r\n" * 1000 + b"\r\nx\r\n--x--\r\n", True)
def test_any_multipart_body_is_read_or_refused(content: Any, many: bool) -> None:
    only_ours(images_of, content, "multipart", many=many)


@given(
    st.text(st.characters(codec="latin-1"), max_size=50),
    st.sampled_from(["", "; boundary=x", "; boundary", "; boundary*0=x", ";" * 50]),
)
@example("; boundary*1=a; boundary*=b", "")
@example("; boundary*" + "9" * 5000 + "=x", "")
@example("; boundary=" + "x" * 5000, "")
@example('; boundary="', "")
def test_any_content_type_is_read_or_refused(text: Any, end: Any) -> None:
    kind = f"multipart/form-data{end}{text}".encode("latin-1")
    try:
        media = READER.media_of(kind)
    except UnsupportedMedia as error:
        assert len(str(error)) < 300
    else:
        only_ours(images_of, encoded([b"image"], "image"), media.form, kind)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "images", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.binary(max_size=60)
    | VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.booleans(),
)
@example(b'{"image": "\\ud800"}', False)
@example(b'{"\\ud800": 1}', False)
@example(b"{" * 5000, True)
@example(b'{"a":' * 5000 + b"1" + b"}" * 5000, True)
def test_any_json_body_is_read_or_refused(content: Any, many: bool) -> None:
    only_ours(images_of, content, "json", many=many)


@given(
    st.binary(max_size=300),
    st.none()
    | st.sampled_from([b"", b"application/octet-stream", b"application/x-www-form-urlencoded"]),
)
def test_any_body_can_be_sniffed(content: Any, kind: Any) -> None:
    try:
        assert sniffed(content, kind) in {"raw", "json"}
    except UnsupportedMedia:
        assert kind == b"application/x-www-form-urlencoded" and b"=" in content


def sniffed(content: bytes, kind: bytes | None) -> str:
    media = READER.media_of(kind)
    assert media.form == "generic"
    return READER._sniffed(content, media)


@pytest.mark.parametrize(
    ("content", "kind", "form"),
    [
        (b"\x89PNG\r\n\x1a\n=", b"application/x-www-form-urlencoded", "raw"),
        (b"\xff\xd8\xff\xe0=", b"application/x-www-form-urlencoded; charset=utf-8", "raw"),
        (b'{"image": "eA=="} \n', b"application/x-www-form-urlencoded", "json"),
        (b"{not json", None, "raw"),
        (b"a=b", None, "raw"),
        (b"", None, "raw"),
    ],
)
def test_forms_that_bytes_are_taken_for(content: Any, kind: Any, form: Any) -> None:
    assert sniffed(content, kind) == form


@pytest.mark.parametrize("name", [b"IMAGE", b'im"age', "bild-ü".encode(), b""])
def test_the_error_names_the_unknown_field(name: Any) -> None:
    content = (
        b'--x\r\nContent-Disposition: form-data; name="'
        + name.replace(b'"', b'\\"')
        + b'"\r\n\r\nabc\r\n--x--\r\n'
    )
    with pytest.raises(InvalidRequest) as caught:
        images_of(content, "multipart")
    assert repr(name.decode()) in str(caught.value)


def test_bounds() -> None:
    form = encoded([b"x"] * 9, "images")
    assert len(images_of(form, "multipart", many=True, limit=9)) == 9
    with pytest.raises(TooLarge, match="9 images, at most 8"):
        images_of(form, "multipart", many=True)
    with pytest.raises(TooLarge, match="more than 3 parts"):
        images_of(form, "multipart", many=True, limit=3)
    with pytest.raises(InvalidRequest, match="more than 8 parts"):
        images_of(encoded([b"x"] * 20, "image"), "multipart")
    memory = Reservation(MemoryBudget(1000))
    for length in (b"101", b"9" * 400, b"0" * 5000 + b"101"):
        with pytest.raises(TooLarge):
            body.reserve_body(length, 100, memory)
    body.reserve_body(b"0" * 5000 + b"100", 100, memory)
    assert memory.size == 100


def test_malformed_bodies_leave_no_lines_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "penstock"):
        for content in (
            b"--x\r\nA\r\n\r\n--x",
            b"--y",
            b"--x\r\n\xff: a\r\n\r\n--x--",
            b"--x--junk",
        ):
            only_ours(images_of, content, "multipart")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ([], False),
        ([(b"content-length", b"1000")], False),
        ([(b"content-length", b"1000"), (b"expect", b"100-continue")], True),
        ([(b"content-length", b"300000")], True),
        ([(b"content-length", b"9" * 5000)], True),
        ([(b"transfer-encoding", b"chunked")], True),
    ],
)
def test_connections_that_end_with_an_unread_body(headers: Any, closes: Any) -> None:
    assert body.must_close({"headers": headers, "http_version": "1.1"}) == closes
    assert not body.must_close({"headers": headers, "http_version": "2"})
