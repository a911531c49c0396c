"""Requests that pass to Triton, and answers that come back, whatever they are."""

from __future__ import annotations

import gzip
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc

from penstock.app.settings import Settings

from .conftest import Shadowing, models
from .raw_server import RawServer, ok, raw_server

INFER = "/v2/models/simple/infer"


@pytest.fixture(scope="module")
def raw() -> Iterator[RawServer]:
    with raw_server(lambda request: ok()) as server:
        yield server


@pytest.fixture(scope="module")
def module_shadow(raw: RawServer, shadowing: Any, ops: Path) -> Iterator[Shadowing]:
    with shadowing(models(ops), f"{raw.url}/below", timeout=60.0) as server:
        assert raw.left.wait(60)  # its look whether Triton is ready, which no test counts
        yield server


@pytest.fixture
def server(raw: RawServer, module_shadow: Shadowing) -> Iterator[Shadowing]:
    raw.answer = lambda request: ok()
    raw.requests.clear()
    raw.left.clear()
    yield module_shadow
    raw.hang_up()
    raw.requests.clear()


def exchange(server: Shadowing, request: bytes) -> http.client.HTTPResponse:
    """Send bytes, and return the answer to them."""
    url = server.client.base_url
    connection = socket.create_connection((url.host, url.port or 0), 60)
    with connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        answer.body = answer.read()  # type: ignore[attr-defined]  # of a closed connection
    return answer


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: mine", *lines, "", ""]).encode()


def test_an_answer_passes_as_it_is(server: Shadowing, raw: RawServer) -> None:
    answer = ok(b"\x00\xff", b"X-Odd:  a, b ", b"X-Odd: c", b"Content-Type: what/ever",
                status=b"418 Tea")  # fmt: skip
    raw.answer = lambda request: answer
    got = server.client.get("/v2/models/simple?a=%2F&b")
    assert (got.status_code, got.content) == (418, b"\x00\xff")
    assert got.headers.get_list("x-odd") == ["a, b", "c"]
    assert got.headers["content-type"] == "what/ever"
    assert raw.requests[-1].startswith(b"GET /below/v2/models/simple?a=%2F&b HTTP/1.1\r\n")
    assert b"\r\nHost: 127.0.0.1:%d\r\n" % raw.port in raw.requests[-1]


def test_a_redirect_is_not_followed(server: Shadowing, raw: RawServer) -> None:
    raw.answer = lambda request: ok(b"", b"Location: /v2", status=b"307 There")
    assert server.client.get("/v2/models/simple").headers["location"] == "/v2"
    assert len(raw.requests) == 1


def test_what_goes_with_a_connection_is_not_passed_on(server: Shadowing, raw: RawServer) -> None:
    raw.answer = lambda request: ok(
        b"", b"Connection: keep-alive, X-Mine", b"X-Mine: 1", b"Keep-Alive: timeout=5",
        b"Trailer: X", b"Upgrade: h2c", b"X-Yours: 2",
    )  # fmt: skip
    lines = ("Connection: close, X-Mine", "X-Mine: 1", "Keep-Alive: 1", "TE: trailers",
             "Proxy-Authorization: x", "Expect: 100-continue", "X-Yours: 2",
             "Content-Length: 0")  # fmt: skip
    got = exchange(server, head("POST", "/v2/models/simple", *lines))
    sent = raw.requests[-1].lower()
    for text in (sent, str(got.headers).lower().encode()):
        assert b"x-yours: 2" in text
        for name in (b"x-mine", b"keep-alive", b"te:", b"proxy", b"expect", b"trailer", b"upgrade"):
            assert b"\r\n" + name not in text and b"\n" + name not in text


def test_requests_share_a_connection(server: Shadowing, raw: RawServer) -> None:
    before = raw.connections
    for _ in range(3):
        assert server.client.get("/v2").status_code == 200
    assert raw.connections == before + 1


def test_a_connection_that_was_idle_for_too_long_is_replaced(
    server: Shadowing, raw: RawServer
) -> None:
    server.client.get("/v2")
    before, raw.answer = raw.connections, lambda request: None  # closed without an answer
    fresh = threading.Event()

    def once(request: bytes) -> bytes | None:
        if not fresh.is_set():
            fresh.set()
            return None
        return ok(b"late")

    raw.answer = once
    assert server.client.post(INFER, content=b"{}").content == b"late"
    assert raw.connections == before + 1


def test_a_fresh_connection_that_breaks_is_no_reason_to_send_again(
    server: Shadowing, raw: RawServer
) -> None:
    raw.hang_up()
    raw.answer = lambda request: None
    assert server.client.post(INFER, content=b"{}").status_code == 502
    assert len(raw.requests) == 1


@pytest.mark.parametrize("length", [True, False])
def test_bodies_pass_in_pieces(server: Shadowing, raw: RawServer, length: bool) -> None:
    content = bytes(range(256)) * 8192  # 2 MiB
    raw.answer = lambda request: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n%b\r\n0\r\n\r\n" % content
    )
    pieces = (content[start : start + 50_000] for start in range(0, len(content), 50_000))
    headers = {"content-length": str(len(content))} if length else {}
    got = server.client.post(INFER, content=pieces, headers=headers)
    assert got.content == content
    request_head, _, body = raw.requests[-1].partition(b"\r\n\r\n")
    if length:
        assert body == content
        assert b"Content-Length: 2097152" in request_head
    else:
        assert b"Transfer-Encoding: chunked" in request_head
        assert unchunked(body) == content


def unchunked(body: bytes) -> bytes:
    content = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        if not int(size, 16):
            return content
        content += rest[: int(size, 16)]
        body = rest[int(size, 16) + 2 :]


@pytest.mark.parametrize("status", [413, 502])
def test_an_answer_before_the_end_of_the_body(
    server: Shadowing, raw: RawServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As of a server that finds a body too large, or that ends. The rest is not waited for."""

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(1 << 16)
            if status == 413:
                connection.sendall(ok(b"too large", status=b"413 No"))

    raw.hang_up()
    monkeypatch.setattr(raw, "_serve", serve)
    url = server.client.base_url
    connection = http.client.HTTPConnection(url.host, url.port or 0, timeout=60)
    connection.putrequest("POST", INFER)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    while not select.select([connection.sock], [], [], 0.005)[0]:
        connection.send(b"1\r\na\r\n")
    answer = connection.getresponse()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    answer.read()
    connection.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "closed the connection without a whole answer"),
        (b"SSH-2.0\r\n\r\n", "is not HTTP/1.1"),
        (b"HTTP/1.1 101 No\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "another protocol"),
        (b"HTTP/1.1 200 OK\r\nX: %b" % (b"x" * (1 << 19)), "the head of its answer"),
    ],
)
def test_an_answer_that_is_none(
    server: Shadowing, raw: RawServer, answer: bytes | None, said: str
) -> None:
    raw.answer = lambda request: answer
    got = server.client.get("/v2")
    assert got.status_code == 502
    assert said in got.json()["error"]


def test_an_answer_that_breaks_off_breaks_off_here_too(server: Shadowing, raw: RawServer) -> None:
    def half(request: bytes) -> bytes:
        threading.Timer(0.05, raw.hang_up).start()
        return b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"

    raw.answer = half
    with pytest.raises(http.client.IncompleteRead):
        exchange(server, head("GET", "/v2"))


def test_informational_answers_and_those_that_a_closed_connection_ends(
    server: Shadowing, raw: RawServer
) -> None:
    def answer(request: bytes) -> bytes:
        threading.Timer(0.05, raw.hang_up).start()
        return b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nall of it"

    raw.answer = answer
    assert server.client.get("/v2").content == b"all of it"


def test_head_and_answers_without_a_body(server: Shadowing, raw: RawServer) -> None:
    raw.answer = lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
    assert server.client.head("/v2/models/simple").headers["content-length"] == "7"
    raw.answer = lambda request: b"HTTP/1.1 204 No\r\n\r\n"
    assert server.client.get("/v2/models/simple").status_code == 204


def test_a_client_that_leaves_is_gone_at_triton_too(
    server: Shadowing, raw: RawServer, leaving: Any
) -> None:
    come, go = threading.Event(), threading.Event()

    def wait(request: bytes) -> None:
        come.set()
        go.wait(30)

    raw.answer = wait
    skipped = server.model().get("not_compared", {}).get("client_left", 0)
    with leaving(server.client, INFER, b"{}"):
        assert come.wait(30)
    server.model("simple", in_flight_at_triton=0)
    go.set()
    assert server.model("simple")["not_compared"]["client_left"] == skipped + 1


def test_no_more_requests_wait_for_triton_than_may_be(
    server: Shadowing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.app.shadow.front.MAX_FORWARDED", 0)
    got = server.client.get("/v2")
    assert (got.status_code, "0 requests wait for Triton" in got.json()["error"]) == (503, True)


def test_compressed_requests_pass_as_they_are(server: Shadowing, raw: RawServer) -> None:
    packed = gzip.compress(b"{}")
    raw.answer = lambda request: ok(packed, b"Content-Encoding: gzip")
    got = server.client.post(INFER, content=packed, headers={"content-encoding": "gzip"})
    assert got.content == b"{}"
    assert raw.requests[-1].endswith(packed)
    assert b"accept-encoding: " in raw.requests[-1].lower()


def test_a_triton_that_can_not_be_reached(shadowing: Any, ops: Path) -> None:
    """Neither now nor at the start. It is found when it comes."""
    with raw_server(lambda request: ok()) as gone:
        pass
    with shadowing(models(ops), gone.url) as server:
        got = server.client.post(INFER, content=b"{}")
        assert got.status_code == 502
        assert got.json()["error"].startswith(f"Triton at {gone.url} can't be reached: ")
        assert server.client.get("/health/ready").status_code == 200
        assert server.model(in_flight_at_triton=0)["not_compared"] == {"failed_at_triton": 1}
        with raw_server(lambda request: ok(b"here"), gone.port):
            assert server.client.get("/v2").content == b"here"


def test_a_triton_that_is_too_slow(shadowing: Any, ops: Path) -> None:
    slow = threading.Event()

    def wait(request: bytes) -> None:
        slow.wait(60)

    with (
        raw_server(wait) as raw,
        shadowing(models(ops), raw.url, timeout=0.05, grpc=f"127.0.0.1:{raw.port}") as server,
    ):
        got = server.client.post(INFER, content=b"{}")
        triton: Any = tritonclient.grpc.InferenceServerClient(server.grpc)
        with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
            triton.get_server_metadata()
        triton.close()
        slow.set()
        assert got.status_code == 504
        assert "no answer came within 0.05 s" in got.json()["error"]


def test_a_triton_that_takes_nothing_of_a_body(shadowing: Any, ops: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,  # that accepts no one
        shadowing(
            models(ops), f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.05
        ) as server,
    ):
        got = server.client.post(INFER, content=b"x" * (32 << 20))
        assert (got.status_code, "took nothing" in got.json()["error"]) == (504, True)
        server.model(in_flight_at_triton=0)
        assert server.report()["held"]["requests"] == 0


def test_keys_are_checked_here_and_not_passed_on(raw: RawServer, shadowing: Any, ops: Path) -> None:
    raw.requests.clear()
    raw.answer = lambda request: ok(b"forwarded")
    secrets: dict[str, Any] = {
        "api_key": "key",
        "admin_token": "token",
        "restricted_api": "metadata:x-secret=1",
    }
    settings = Settings(**secrets)
    with shadowing(models(ops), raw.url, settings) as server:
        client, key = server.client, {"authorization": "Bearer key"}
        assert client.get("/v2/models/simple/stats").status_code == 401
        assert client.get("/v2/models/simple", headers=key).status_code == 403
        assert not [one for one in raw.requests if b" /v2/models" in one]
        assert client.get("/v2/models/simple/stats", headers=key).content == b"forwarded"
        assert b"authorization" not in raw.requests[-1].lower()
        assert client.get("/shadow").status_code == 401
        assert client.get("/shadow", headers=key).status_code == 403
        assert client.post("/shadow/switch", headers=key).status_code == 403
        assert "models" in server.report(authorization="Bearer token")


def test_http_without_a_place_to_forward_it_to(shadowing: Any, ops: Path) -> None:
    with shadowing(models(ops), None) as server:
        got = server.client.get("/v2")
        assert (got.status_code, "--from http://" in got.json()["error"]) == (502, True)
