"""Predict requests over real sockets: every way to send an image, the answers, and every error of
the table.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount

from penstock import create_app, create_router, lifespan
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.backends.errors import InvalidInput
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import load


class Probe:
    """The data that the backend below has seen, and the gate at which it waits."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[bytes] = []
        self.inside = threading.Event()
        self.gate = threading.Event()


PROBE = Probe()


@register_backend("PredictProbe")
class PredictProbe(Backend):
    """Answers the length of `data`; some data are commands."""

    def see(self, data: Any) -> None:
        PROBE.seen.append(data)

    def forward(self, batch: Any) -> None:
        for item in batch:
            data = item["data"]
            self.see(data)
            item["note"], item["hidden"] = "declared", "not declared"
            if data == b"wait":
                PROBE.inside.set()
                PROBE.gate.wait(60)
            if data == b"slow":
                time.sleep(0.05)
            if data == b"fail":
                raise ValueError("secret of /etc/model")
            if data == b"unreadable":
                item["error"] = InvalidInput("not an image file")
            elif data == b"odd":
                item["result"] = object()
            elif data != b"break":
                item["result"] = len(data)


@pytest.fixture(autouse=True)
def probe() -> Any:
    PROBE.reset()
    yield
    PROBE.gate.set()


def config(backend: str = "PredictProbe", **pipeline: Any) -> Any:
    table = {"name": "probe", "outputs": {"note": {"kind": "text"}}, **pipeline}
    return load({"pipeline": table, "probe": {"backend": backend, "max": 8}})


@pytest.fixture(scope="module", params=["httptools", "penstock"])
def client(running: Any, request: Any) -> Any:
    """A server, once uvicorn's and once ours, which answers many requests past ASGI."""
    settings = Settings(max_body=100_000, max_images=3)
    app = create_app(config(), settings=settings)
    with running(app, http=request.param, proxy_headers=False) as client:
        yield client


@pytest.fixture(params=["httptools", "penstock"])
def fresh(running: Any, request: Any) -> Any:
    """A new server: what a server has learnt of its speed decides which requests it admits."""
    with running(create_app(config()), http=request.param, proxy_headers=False) as client:
        yield client


class Wire:
    """A connection that is written and read byte by byte."""

    def __init__(self, client: httpx.Client) -> None:
        self.socket = socket.create_connection((client.base_url.host, client.base_url.port), 60)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> Any:
        """Return status, headers and body of the next answer; None if the server has closed."""
        line = self.file.readline()
        if not line:
            return None
        headers = http.client.parse_headers(self.file)
        return int(line.split()[1]), headers, self.file.read(int(headers.get("content-length", 0)))


def head(
    path: Any = "/predict/probe", length: Any = None, method: Any = "POST", **headers: Any
) -> Any:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: test",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(
        [*lines, *([] if length is None else [f"Content-Length: {length}"]), "", ""]
    ).encode()


def problem(answer: Any, status: int, code: str, detail: Any = "") -> Any:
    """Check that an answer is this problem, whole and in its form. Return the problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert (document["type"], document["status"], document["code"]) == ("about:blank", status, code)
    assert document["title"] and detail in document["detail"], document
    assert document["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert "Traceback" not in answer.text and "secret" not in answer.text
    return document


# Ways to send an image.


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    "kind",
    [
        "image/png",
        "image/jpeg; q=1",
        "IMAGE/PNG",
        None,
        "",
        "application/octet-stream",
        "binary/octet-stream",
        "application/x-www-form-urlencoded",
    ],
)
def test_the_raw_body(client: httpx.Client, digit: bytes, method: str, kind: str) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.request(method, "/predict/probe", content=digit, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"result": len(digit), "note": "declared"}
    assert PROBE.seen == [digit]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_multipart_and_json(client: httpx.Client, digit: bytes, method: str) -> None:
    encoded = base64.b64encode(digit).decode()
    ways: list[dict[str, Any]] = [
        {"files": {"image": ("digit.png", digit, "image/png")}},
        {"files": {"image": digit}},
        {"json": {"image": encoded}},
        {"json": {"image": f"data:image/png;base64,{encoded}"}},
        {
            "content": json.dumps({"image": encoded}),
            "headers": {"Content-Type": "application/json; charset=utf-8"},
        },
        {"content": json.dumps({"image": encoded}) + "\n"},  # no type: it looks like JSON
    ]
    for way in ways:
        assert client.request(method, "/predict/probe", **way).json()["result"] == len(digit)
    assert PROBE.seen == [digit] * len(ways)


def test_a_chunked_body_in_pieces(client: httpx.Client, digit: bytes) -> None:
    assert client.post("/predict/probe", content=iter([digit[:5], digit[5:9], digit[9:]])).json()[
        "result"
    ] == len(digit)
    assert PROBE.seen == [digit]


def test_large_bodies_are_parsed_off_the_loop(running: Any, digit: bytes) -> None:
    large = digit + bytes(3_000_000)
    with running(create_app(config())) as client:
        assert client.post("/predict/probe", files={"image": large}).json()["result"] == len(large)
        assert client.post(
            "/predict/probe", json={"image": base64.b64encode(large).decode()}
        ).json()["result"] == len(large)
        assert client.post("/predict/probe", content=large).json()["result"] == len(large)
    assert PROBE.seen == [large] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["-T", "FILE"],
        ["--data-binary", "@FILE"],
        ["--data-binary", "@FILE", "-H", "Content-Type: image/png"],
        ["-F", "image=@FILE"],
        ["-F", "image=<FILE;type=image/png"],
        ["-H", "Expect: 100-continue", "--data-binary", "@FILE"],
        ["-H", "Transfer-Encoding: chunked", "-T", "FILE"],
    ],
    ids=" ".join,
)
def test_curl(running: Any, digits: Path, digit: bytes, tmp_path: Path, arguments: Any) -> None:
    file = tmp_path / "digit.png"
    file.write_bytes(digit)
    with running(create_app(digits)) as client:
        command = [
            "curl",
            "-sS",
            "--max-time",
            "20",
            *[argument.replace("FILE", str(file)) for argument in arguments],
        ]
        done = subprocess.run(
            [*command, f"{client.base_url}/predict/digits"],
            capture_output=True,
            timeout=30,
            check=True,
        )
    assert json.loads(done.stdout)["label"] == "three", done


# Answers.


def test_a_given_request_id_comes_back(client: httpx.Client) -> None:
    answer = client.post("/predict/probe", content=b"x", headers={"X-Request-Id": "photo-1"})
    assert answer.headers["x-request-id"] == "photo-1"
    problem(
        client.post("/predict/probe", content=b"", headers={"X-Request-Id": "photo-1"}),
        400,
        "invalid_request",
    )


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "naïve".encode(), "tab\there"])
def test_an_unfit_request_id_is_replaced(client: httpx.Client, sent: Any) -> None:
    request_ids = {
        client.post("/predict/probe", content=b"x", headers={"X-Request-Id": sent}).headers[
            "x-request-id"
        ]
        for _ in range(2)
    }
    assert len(request_ids) == 2 and sent not in request_ids
    assert all(re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", request_id) for request_id in request_ids)


def timings(answer: Any) -> Any:
    """Parse Server-Timing into {name: (milliseconds, description)}."""
    timing = {}
    for metric in answer.headers["server-timing"].split(", "):
        name, *parameters = metric.split(";")
        values = dict(parameter.split("=", 1) for parameter in parameters)
        timing[name] = float(values["dur"]), values.get("desc", "").strip('"')
    return timing


def test_server_timing(running: Any) -> None:
    with running(create_app(config())) as client, ThreadPoolExecutor(4) as pool:
        blocker = pool.submit(client.post, "/predict/probe", content=b"wait")
        assert PROBE.inside.wait(60)
        others = [pool.submit(client.post, "/predict/probe", content=b"slow") for _ in range(3)]
        wait_inside(client, 4)
        PROBE.gate.set()
        assert timings(blocker.result())["run.probe"][1] == "batch 1"
        for other in others:
            timing = timings(other.result())
            assert set(timing) == {"queue.probe", "run.probe"}
            assert (
                timing["queue.probe"][0] > 0
                and timing["run.probe"][0] >= 150
                and timing["run.probe"][1] == "batch 3"
            )
        assert "server-timing" not in client.post("/predict/probe", content=b"unreadable").headers


def wait_inside(client: httpx.Client, count: Any, name: Any = "probe") -> None:
    """Wait until `count` requests are in flight."""
    until(lambda: inside(client, name) == count)


def until(condition: Callable[[], object]) -> None:
    """Poll the server of another thread: over HTTP there is no event to wait for."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def inside(client: httpx.Client, name: str) -> float:
    return metric(client, f'penstock_requests_in_flight{{pipeline="{name}"}}')


def metric(client: httpx.Client, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)", client.get("/metrics").text, re.M)
    assert match is not None
    return float(match[1])


def test_timings_of_every_node(running: Any) -> None:
    nodes = {"one": {"backend": "Identity", "next": "two"}, "two": {"backend": "Identity"}}
    with running(create_app(load({"pipeline": {"name": "chain"}, **nodes}))) as client:
        timing = timings(client.post("/predict/chain", content=b"x"))
    assert list(timing) == ["queue.one", "run.one", "queue.two", "run.two"]


def test_no_result_is_an_answer_and_only_declared_outputs_are_in_it(client: httpx.Client) -> None:
    assert client.post("/predict/probe", content=b"break").json() == {
        "result": None,
        "note": "declared",
    }
    assert client.post("/predict/probe", content=b"four").json() == {
        "result": 4,
        "note": "declared",
    }


def test_a_soft_failure(client: httpx.Client) -> None:
    problem(
        client.post("/predict/probe", content=b"unreadable"),
        422,
        "invalid_input",
        "not an image file",
    )


def test_a_batch_mixes_results_and_problems(client: httpx.Client) -> None:
    files = [("images", data) for data in (b"four", b"unreadable", b"fail")]
    for answer in (
        client.post("/predict/probe/batch", files=files),
        client.put(
            "/predict/probe/batch",
            json={"images": [base64.b64encode(data).decode() for _, data in files]},
        ),
    ):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        good, soft, failed = answer.json()["results"]
        assert good == {"result": 4, "note": "declared"}
        assert (soft["status"], soft["code"], soft["detail"]) == (
            422,
            "invalid_input",
            "not an image file",
        )
        assert (failed["status"], failed["code"]) == (
            500,
            "backend_error",
        ) and "secret" not in answer.text
        assert soft["request_id"] == failed["request_id"] == answer.headers["x-request-id"]


def test_a_result_without_a_json_form_is_a_problem_of_that_image_alone(
    client: httpx.Client,
) -> None:
    answer = client.post(
        "/predict/probe/batch", files=[("images", b"four"), ("images", b"odd"), ("images", b"four")]
    )
    first, odd, last = answer.json()["results"]
    assert first == last == {"result": 4, "note": "declared"}
    assert odd["code"] == "backend_error" and "JSON" in odd["detail"]
    problem(client.post("/predict/probe", content=b"odd"), 500, "backend_error", "JSON")


def test_a_batch_queues_its_items_together(running: Any) -> None:
    with running(create_app(config())) as client:
        answer = client.post(
            "/predict/probe/batch", files=[("images", b"%d" % index) for index in range(8)]
        )
        assert len(answer.json()["results"]) == 8
        sizes = re.findall(
            r"penstock_batch_size_(?:sum|count){.*} (\S+)", client.get("/metrics").text
        )
    assert sorted(map(float, sizes)) == [1, 8]
    assert PROBE.seen == [b"%d" % index for index in range(8)]


def test_a_batch_of_which_some_images_are_refused(running: Any) -> None:
    with running(create_app(config(max_requests=2))) as client:
        good, other, refused = client.post(
            "/predict/probe/batch", files=[("images", b"four")] * 3
        ).json()["results"]
        assert good == other == {"result": 4, "note": "declared"}
        assert (refused["status"], refused["code"]) == (429, "queue_full")


# Errors.


@pytest.mark.parametrize("path", ["/predict/probe", "/predict/probe/batch"])
@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (
            {"content": b"1", "headers": {"Content-Type": "application/json"}},
            400,
            "the body is a JSON number",
        ),
        (
            {"content": b'{"image": ', "headers": {"Content-Type": "application/json"}},
            400,
            "not valid JSON",
        ),
        (
            {"content": b"[" * 50_000, "headers": {"Content-Type": "application/json"}},
            400,
            "nesting depth exceeds",
        ),
        ({"content": b"", "headers": {"Content-Type": "application/json"}}, 400, "not valid JSON"),
        ({"content": b'{"\xff": 1}'}, 400, "not valid JSON"),
        ({"json": {}}, 400, "no 'image"),
        ({"json": {"IMAGE": ""}}, 400, "unknown key 'IMAGE'"),
        ({"files": {"picture": b"x"}}, 400, "unknown field 'picture'"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "no boundary"),
        (
            {
                "content": b"x",
                "headers": {"Content-Type": "multipart/form-data; boundary*1=a; boundary*=b"},
            },
            400,
            "no boundary",
        ),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "malformed",
        ),
        (
            {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "cut off",
        ),
        ({"content": b"x", "headers": {"Content-Type": "text/html"}}, 415, "'text/html'"),
        ({"content": b"x", "headers": {"Content-Type": "x" * 10_000}}, 415, "not understood"),
        ({"data": {"image": "cat.jpg"}}, 415, "a form without files"),
    ],
)
def test_bad_bodies(client: httpx.Client, path: str, sent: Any, status: int, detail: str) -> None:
    document = problem(
        client.post(path, **sent),
        status,
        {400: "invalid_request", 415: "unsupported_media"}[status],
        detail,
    )
    assert len(document["detail"]) < 300 and PROBE.seen == []


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        ({"content": b""}, 400, "the body is empty"),
        ({}, 400, "the body is empty"),
        ({"json": {"image": "a*b"}}, 400, "not valid base64"),
        ({"json": {"image": "Zm9vY"}}, 400, "not valid base64: Invalid base64-encoded string"),
        ({"json": {"image": "Zm9vYg="}}, 400, "not valid base64: Incorrect padding"),
        ({"json": {"image": "data:image/png,Zm9v"}}, 400, "a data URL without ';base64'"),
        ({"json": {"image": "é"}}, 400, "not valid base64"),
        ({"json": {"image": 7}}, 400, "is a JSON number, expected a base64 string"),
        ({"json": {"image": ["Zm91cg=="]}}, 400, "is a JSON array"),
        ({"json": {"images": ["Zm91cg=="]}}, 400, "unknown key 'images'"),
        ({"files": [("image", b"x"), ("image", b"x")]}, 400, "2 fields 'image'"),
        ({"files": [("image", b"x")] * 5}, 400, "5 fields 'image'"),
        ({"files": [("image", b"x")] * 50}, 400, "more than 8 parts"),
    ],
)
def test_bad_bodies_of_one_image(client: httpx.Client, sent: Any, status: int, detail: str) -> None:
    problem(client.post("/predict/probe", **sent), status, "invalid_request", detail)
    assert PROBE.seen == []


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        ({"content": b"raw", "headers": {"Content-Type": "image/png"}}, 415, "several images"),
        ({"content": b"raw"}, 415, "several images"),
        ({"json": {"images": []}}, 400, "the request has no image"),
        ({"json": {"images": "Zm91cg=="}}, 400, "is a JSON string"),
        ({"json": {"images": ["Zm91cg==", "*"]}}, 400, "images[1]"),
        ({"json": {"images": ["Zm91cg=="] * 4}}, 413, "4 images, at most 3"),
        ({"files": [("images", b"x")] * 4}, 413, "4 images, at most 3"),
        ({"files": [("images", b"x")] * 100}, 413, "more than 3 parts"),
    ],
)
def test_bad_batches(client: httpx.Client, sent: Any, status: int, detail: str) -> None:
    code = {400: "invalid_request", 413: "too_large", 415: "unsupported_media"}[status]
    problem(client.post("/predict/probe/batch", **sent), status, code, detail)
    assert PROBE.seen == []


def test_unknown_pipelines_and_paths(client: httpx.Client) -> None:
    for path in ("/predict/prob", "/predict/prob/batch"):
        problem(
            client.post(path, content=b"x"),
            404,
            "not_found",
            "no pipeline 'prob', did you mean 'probe'?",
        )
    for path in (
        "/predict/",
        "/predict/probe/batch/more",
        "/predict/probe/other",
        "/predict",
        "/predict//probe",
        "/PREDICT/probe",
    ):
        for method in ("POST", "PUT", "GET"):
            answer = client.request(method, path, content=b"x")
            nameless = path == "/predict/" and method != "GET"
            nothing = "there is no pipeline ''" if nameless else f"there is nothing at {path}"
            problem(answer, 404, "not_found", nothing)
    assert client.post("/predict/%70robe", content=b"four").json()["result"] == 4
    assert (
        client.post("/predict/probe%2Fbatch", json={"images": ["Zm91cg=="]}).json()["results"][0][
            "result"
        ]
        == 4
    )
    assert client.post("/predict/probe?x=1", content=b"four").json()["result"] == 4
    assert PROBE.seen == [b"four"] * 3


@pytest.mark.parametrize("path", ["/predict/probe", "/predict/probe/batch"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_methods(client: httpx.Client, running: Any, path: str, method: str) -> None:
    answer = client.request(method, path)
    problem(answer, 405, "method_not_allowed", f"{method} is not allowed here: use POST or PUT")
    assert set(answer.headers["allow"].split(", ")) == {"POST", "PUT"}


def test_a_pipeline_named_batch(running: Any) -> None:
    pipeline = load("PredictProbe", name="batch")
    with running(create_app(pipeline)) as client:
        assert client.post("/predict/batch", content=b"four").json() == {"result": 4}
        assert client.post("/predict/batch/batch", files=[("images", b"four")]).json() == {
            "results": [{"result": 4}]
        }


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", "", "1e999", "0x10"])
def test_malformed_deadlines(client: httpx.Client, value: Any) -> None:
    problem(
        client.post("/predict/probe", content=b"x", headers={"Penstock-Deadline-Ms": value}),
        400,
        "invalid_request",
        "positive number",
    )
    assert PROBE.seen == []


def test_deadlines(fresh: Any) -> None:
    client = fresh
    with ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(client.post, "/predict/probe", content=b"wait")
        assert PROBE.inside.wait(60)
        short = {"Penstock-Deadline-Ms": "60"}
        with Wire(client) as wire:
            # In one piece: the deadline passes in the queue, and not during the upload.
            wire.send(head(length=4, Penstock_Deadline_Ms=60) + b"late")
            status, _, body = wire.read()
        assert (status, json.loads(body)["code"]) == (504, "deadline_exceeded")
        assert "while" in json.loads(body)["detail"]
        (late,) = client.post(
            "/predict/probe/batch", files=[("images", b"late")], headers=short
        ).json()["results"]
        assert (late["status"], late["code"]) == (504, "deadline_exceeded")
        PROBE.gate.set()
        assert blocker.result().status_code == 200
    assert b"late" not in PROBE.seen
    for value in ("60000", "30000.5", "99999999999"):
        assert (
            client.post(
                "/predict/probe", content=b"four", headers={"Penstock-Deadline-Ms": value}
            ).status_code
            == 200
        )


@pytest.mark.parametrize("http", ["httptools", "penstock"])
def test_the_upload_counts_for_the_deadline(running: Any, clock: Any, http: str) -> None:
    with running(create_app(config()), loop=clock, http=http, proxy_headers=False) as client:
        for path in ("/predict/probe", "/predict/probe/batch"):
            problem(
                passed_while_uploading(client, clock, path),
                504,
                "deadline_exceeded",
                "before the body arrived",
            )
    assert PROBE.seen == []


@pytest.mark.parametrize("value", ["high", "-1", "1.5", "0", "", "99", "9" * 50])
def test_malformed_priorities(running: Any, value: Any) -> None:
    node = {"backend": "PredictProbe", "priority_levels": 3}
    with running(create_app(load({"pipeline": {"name": "probe"}, "node": node}))) as client:
        headers = {"Penstock-Priority": value}
        problem(
            client.post("/predict/probe", content=b"x", headers=headers),
            400,
            "invalid_request",
            "1 is the highest",
        )
        problem(
            client.post("/predict/probe/batch", files={"images": b"x"}, headers=headers),
            400,
            "invalid_request",
            "1 is the highest",
        )
        assert client.post(
            "/predict/probe", content=b"four", headers={"Penstock-Priority": "3"}
        ).json() == {"result": 4}
    assert PROBE.seen == [b"four"]


def test_priorities_are_ignored_unless_the_node_has_levels(client: httpx.Client) -> None:
    for priority in ("1", "7"):
        headers = {"Penstock-Priority": priority}
        answer = client.post("/predict/probe", content=b"four", headers=headers)
        assert (answer.status_code, answer.json()["result"]) == (200, 4)
        answer = client.post("/predict/probe/batch", files={"images": b"four"}, headers=headers)
        assert answer.json()["results"][0]["result"] == 4
    answer = client.post("/predict/probe", content=b"x", headers={"Penstock-Priority": "0"})
    problem(answer, 400, "invalid_request", "1 is the highest")


def test_the_request_of_higher_priority_goes_first(running: Any) -> None:
    node = {"backend": "PredictProbe", "priority_levels": 3, "max": 1}
    with (
        running(create_app(load({"pipeline": {"name": "probe"}, "node": node}))) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        pool.submit(client.post, "/predict/probe", content=b"wait")
        assert PROBE.inside.wait(60)
        pool.submit(
            client.post, "/predict/probe", content=b"low", headers={"Penstock-Priority": "3"}
        )
        wait_inside(client, 2)
        pool.submit(
            client.post, "/predict/probe", content=b"high", headers={"Penstock-Priority": "1"}
        )
        wait_inside(client, 3)
        PROBE.gate.set()
    assert PROBE.seen == [b"wait", b"high", b"low"]


def test_too_many_requests_in_flight(running: Any) -> None:
    with running(create_app(config(max_requests=1))) as client, ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(client.post, "/predict/probe", content=b"wait")
        assert PROBE.inside.wait(60)
        for path, sent in (("", {"content": b"x"}), ("/batch", {"files": {"images": b"x"}})):
            answer = client.post(f"/predict/probe{path}", **sent)
            problem(answer, 429, "queue_full", "max_requests")
            assert int(answer.headers["retry-after"]) >= 1
        PROBE.gate.set()
        assert blocker.result().status_code == 200
        assert client.post("/predict/probe", content=b"four").status_code == 200


def test_a_refused_client_need_not_send_the_body(running: Any) -> None:
    with running(create_app(config(max_requests=1))) as client, ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(client.post, "/predict/probe", content=b"wait")
        assert PROBE.inside.wait(60)
        with Wire(client) as wire:
            wire.send(head(length=1000))  # not one byte of it
            status, _, body = wire.read()
            assert status == 429 and json.loads(body)["code"] == "queue_full"
            PROBE.gate.set()
            assert blocker.result().status_code == 200
            wire.send(b"x" * 1000 + head(length=4) + b"four")
            assert wire.read()[0] == 200
    assert PROBE.seen == [b"wait", b"four"]


def test_a_wait_that_would_be_too_long(fresh: Any) -> None:
    client = fresh
    for _ in range(3):
        client.post("/predict/probe", content=b"slow")
    with ThreadPoolExecutor(1) as pool:
        blocker = pool.submit(client.post, "/predict/probe", content=b"wait")
        assert PROBE.inside.wait(60)
        answer = client.post("/predict/probe", content=b"x", headers={"Penstock-Deadline-Ms": "20"})
        problem(answer, 429, "overloaded", "an answer would take about")
        PROBE.gate.set()
        blocker.result()
    assert b"x" not in PROBE.seen


def test_not_ready(running: Any) -> None:
    app = create_app(config(inputs={"data": {"kind": "tensor"}}))
    with running(
        Starlette(routes=[Mount("/models", app)])
    ) as client:  # the host does not run its lifespan
        for path, sent in (("", {"content": b"x"}), ("/batch", {"files": {"images": b"x"}})):
            problem(client.post(f"/models/predict/probe{path}", **sent), 503, "not_ready", "probe")


def test_a_backend_that_raises(client: httpx.Client) -> None:
    document = problem(
        client.post("/predict/probe", content=b"fail"), 500, "backend_error", "node 'probe'"
    )
    assert "PredictProbe" in document["detail"] and "ValueError" in document["detail"]


def test_a_failure_is_logged_with_its_request_pipeline_and_node(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.post("/predict/probe", content=b"fail", headers={"X-Request-Id": "photo-1"})
    (record,) = (record for record in caplog.records if record.name == "penstock.executor")
    fields = [getattr(record, name) for name in ("request_id", "pipeline", "node")]
    assert fields == ["photo-1", "probe", "probe"]


def test_a_pipeline_that_is_replaced_while_the_body_comes(running: Any, tmp_path: Path) -> None:
    (tmp_path / "probe.toml").write_text('[probe]\nbackend = "PredictProbe"\n')
    settings = Settings(admin_token=SecretStr("token"), allow_model_control=True)
    with (
        running(create_app(tmp_path / "probe.toml", settings=settings)) as client,
        Wire(client) as wire,
    ):
        wire.send(head(length=4) + b"ab")
        assert client.get("/health/ready").status_code == 200  # by now the head has been read
        assert (
            client.post(
                "/pipelines/probe/load", headers={"Authorization": "Bearer token"}
            ).status_code
            == 200
        )
        wire.send(b"cd")
        status, _, body = wire.read()
        assert (status, json.loads(body)) == (200, {"result": 4})


def test_an_unexpected_exception_is_answered_with_the_request_id_only(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(config())
    with running(app) as client:
        app.state.penstock.pipelines["probe"].answer_keys = None  # a bug in Penstock, for example
        document = problem(
            client.post("/predict/probe", content=b"x", headers={"X-Request-Id": "mine"}),
            500,
            "internal",
            "request id",
        )
        assert document["detail"] == "the server failed; its log has more under this request id"
    (record,) = [record for record in caplog.records if record.name == "penstock.http"]
    fields = [getattr(record, name) for name in ("request_id", "pipeline")]
    assert fields == ["mine", "probe"] and record.exc_info


# Sizes, and messages cut in half.


def test_a_body_above_the_limit_is_refused_before_it_is_read(client: httpx.Client) -> None:
    with Wire(client) as wire:
        wire.send(head(length=100_001))  # not one byte of it
        status, _, body = wire.read()
        assert (
            status == 413
            and json.loads(body)["code"] == "too_large"
            and b"100001 bytes, at most 100000" in body
        )
        wire.send(
            b"x" * 100_001 + head(length=4) + b"four"
        )  # few enough to be read and thrown away
        status, _, body = wire.read()
        assert status == 200 and json.loads(body)["result"] == 4
    assert PROBE.seen == [b"four"]


@pytest.mark.parametrize("length", [300_000, 10**15, 10**18])
def test_a_huge_body_ends_the_connection(client: httpx.Client, length: Any) -> None:
    with Wire(client) as wire:
        wire.send(head(length=length))
        status, headers, _ = wire.read()
        assert (status, headers["connection"]) == (413, "close")
        assert wire.read() is None


def test_clients_that_send_a_huge_body_get_their_answer(client: httpx.Client) -> None:
    for _ in range(10):
        problem(
            client.post("/predict/probe", content=bytes(5_000_000)), 413, "too_large", "max_body"
        )
    assert client.post("/predict/probe", content=b"x" * 100_000).json()["result"] == 100_000


def test_a_huge_body_in_chunks(client: httpx.Client) -> None:
    with Wire(client) as wire:
        wire.send(head(Transfer_Encoding="chunked"))
        for _ in range(11):
            wire.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        status, headers, body = wire.read()
        assert (
            status == 413
            and json.loads(body)["code"] == "too_large"
            and headers["connection"] == "close"
        )
    assert PROBE.seen == []


@pytest.mark.parametrize("path", ["/predict/other", "/predict/probe"])
def test_refusals_leave_the_connection_usable(client: httpx.Client, path: str) -> None:
    """The body of a refused request is not taken for the next request."""
    kind = {} if "other" in path else {"Content_Type": "text/html"}
    with Wire(client) as wire:
        wire.send(
            head(path, length=len(head(length=0)), **kind)
            + head(length=0)
            + head(length=4)
            + b"four"
        )
        assert wire.read()[0] in (404, 415)
        status, _, body = wire.read()
        assert status == 200 and json.loads(body)["result"] == 4
    assert PROBE.seen == [b"four"]


def test_lengths_with_many_digits(client: httpx.Client) -> None:
    with Wire(client) as wire:
        wire.send(head(length="0" * 5000 + "4") + b"four")
        status, _, body = wire.read()
        assert status == 200, body


def test_expect_100_continue(client: httpx.Client) -> None:
    with Wire(client) as wire:
        wire.send(head(length=4, Expect="100-continue"))
        assert (
            wire.file.readline() == b"HTTP/1.1 100 Continue\r\n" and wire.file.readline() == b"\r\n"
        )
        wire.send(b"four")
        status, _, body = wire.read()
        assert status == 200 and json.loads(body)["result"] == 4
    for path, kind, wanted in (("other", "image/png", 404), ("probe", "text/html", 415)):
        with Wire(client) as wire:
            wire.send(head(f"/predict/{path}", length=4, Expect="100-continue", Content_Type=kind))
            status, headers, _ = wire.read()  # without being asked for the body
            assert status == wanted and headers["connection"] == "close"
            assert wire.read() is None


def test_a_truncated_multipart_body(client: httpx.Client) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc'
    answer = client.post(
        "/predict/probe", content=form, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    problem(answer, 400, "invalid_request", "cut off")


GOOD = b"good"


def bad_requests(client: httpx.Client) -> Any:
    """Yield bad requests of every kind, each with the statuses that it may get."""
    post = client.post
    yield post("/predict/probe", content=b""), 400
    yield post("/predict/probe", content=b"{", headers={"Content-Type": "application/json"}), 400
    yield (
        post(
            "/predict/probe",
            content=b"x",
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        ),
        400,
    )
    yield post("/predict/probe", content=b"x", headers={"Content-Type": "text/html"}), 415
    yield post("/predict/probe", content=bytes(2_000_000)), 413
    yield post("/predict/probe", content=b"unreadable"), 422
    yield post("/predict/probe", content=b"fail"), 500
    yield post("/predict/probe", content=b"odd"), 500
    yield post("/predict/missing", content=b"x"), 404
    yield client.get("/predict/probe"), 405
    yield post("/predict/probe", content=b"x", headers={"Penstock-Deadline-Ms": "?"}), 400
    for data in (
        head(length=100) + b"cut",
        head(Transfer_Encoding="chunked") + b"4\r\nfo",
        b"POST /predict/probe HTTP/1.1\r\n",
        b"\x16\x03\x01",
    ):
        with Wire(client) as wire:
            wire.send(data)


def test_bad_requests_cost_others_nothing(client: httpx.Client) -> None:
    stop = threading.Event()

    def good() -> Any:
        count = 0
        with httpx.Client(base_url=client.base_url, timeout=30) as own:
            while not stop.is_set() or not count:
                answer = own.post("/predict/probe", content=GOOD)
                assert answer.status_code == 200 and answer.json() == {
                    "result": 4,
                    "note": "declared",
                }, answer.text
                count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(good) for _ in range(4)]
        try:
            for _ in range(10):
                for answer, status in bad_requests(client):
                    assert answer.status_code == status
        finally:
            stop.set()
        assert all(worker.result() > 0 for worker in workers)


# Proxies, mounts and routers.


@pytest.mark.parametrize("root", ["", "/api", "/predict", "/predict/probe"])
def test_behind_a_proxy_that_cuts_a_prefix(running: Any, root: Any) -> None:
    with running(create_app(config()), root_path=root) as client:
        assert client.post("/predict/probe", content=b"four").json()["result"] == 4
        assert (
            client.post("/predict/probe/batch", files={"images": b"four"}).json()["results"][0][
                "result"
            ]
            == 4
        )


def test_a_mount_strips_its_own_prefix_only(running: Any) -> None:
    models = create_app(config())
    host = Starlette(routes=[Mount("/api", models)], lifespan=lambda host: lifespan(models))
    with running(host) as client:
        assert client.post("/api/predict/probe", content=b"four").json()["result"] == 4
        for path in (
            "/apix/predict/probe",
            "/api/api/predict/probe",
            "/predict/probe",
            "/api/x/predict/probe",
            "/apipredict/probe",
        ):
            assert client.post(path, content=b"four").status_code == 404, path
    assert PROBE.seen == [b"four"]


def test_a_router_answers_the_same(running: Any) -> None:
    from fastapi import FastAPI

    host = FastAPI()
    host.include_router(create_router(config(), prefix="/models"))
    with running(host) as client:
        assert client.post("/models/predict/probe", content=b"four").json() == {
            "result": 4,
            "note": "declared",
        }
        assert (
            client.put("/models/predict/probe/batch", files={"images": b"four"}).json()["results"][
                0
            ]["result"]
            == 4
        )
        problem(client.post("/models/predict/probe", content=b"unreadable"), 422, "invalid_input")
        problem(client.post("/models/predict/prob", content=b"x"), 404, "not_found", "did you mean")
        problem(
            client.post(
                "/models/predict/probe", content=b"x", headers={"Content-Type": "text/html"}
            ),
            415,
            "unsupported_media",
        )


# The document.


def passed_while_uploading(client: httpx.Client, clock: Any, path: str) -> Any:
    """Return the answer to a request whose deadline passes during the upload."""
    body = b'{"images": ["Zm9v"]}' if path.endswith("/batch") else b"foo"
    held = metric(client, "penstock_memory_bytes")
    with Wire(client) as wire:
        wire.send(
            head(
                path,
                length=len(body),
                Penstock_Deadline_Ms=20_000,  # not refused for the time that an answer takes
                Authorization=client.headers.get("Authorization", "-"),
            )
            + body[:1]
        )
        until(lambda: metric(client, "penstock_memory_bytes") > held)  # the head has been read
        clock.advance(20)
        wire.send(body[1:])
        status, headers, body = wire.read()
    return httpx.Response(status, headers=dict(headers), content=body)


def test_every_documented_status_is_answered_as_documented(running: Any, clock: Any) -> None:
    """A real request gets each status of the predict operations, and none gets another.

    Each body is what the document says.
    """
    paths = ("/predict/probe", "/predict/probe/batch")
    answers_by_path: dict[str, list[httpx.Response]] = {path: [] for path in paths}

    def ask(
        client: httpx.Client, data: bytes, kind: Any = None, prefix: Any = "", **headers: Any
    ) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()} | (
            {"Content-Type": kind} if kind else {}
        )
        answers_by_path[paths[0]].append(
            client.post(prefix + paths[0], content=data, headers=headers)
        )
        batch: dict[str, Any] = {"content": data} if kind else {"files": {"images": data}}
        answers_by_path[paths[1]].append(client.post(prefix + paths[1], headers=headers, **batch))

    settings = Settings(
        max_body=1000,
        api_key=SecretStr("key"),
        admin_token=SecretStr("admin"),
        allow_model_control=True,
    )
    app = create_app(config(max_requests=2), settings=settings)
    with running(app, loop=clock) as client, ThreadPoolExecutor(2) as pool:
        ask(client, b"x")
        client.headers["Authorization"] = "Bearer key"
        document = client.get("/openapi.json").json()
        for data in (b"four", b"break", b"unreadable", b"fail", b"odd", bytes(1001)):
            ask(client, data)
        ask(client, b"x", kind="text/html")
        ask(client, b"x", Penstock_Deadline_Ms="no")
        blockers = [pool.submit(client.post, paths[0], content=b"wait")]
        assert PROBE.inside.wait(60)
        ask(client, b"late", Penstock_Deadline_Ms="50")
        for path in paths:
            answers_by_path[path].append(passed_while_uploading(client, clock, path))
        blockers.append(pool.submit(client.post, paths[0], content=b"wait"))
        wait_inside(client, 2)
        ask(client, b"x")
        PROBE.gate.set()
        assert [blocker.result().status_code for blocker in blockers] == [200, 200]
        keys = app.state.penstock.pipelines["probe"].answer_keys
        app.state.penstock.pipelines["probe"].answer_keys = None
        ask(client, b"x")
        app.state.penstock.pipelines["probe"].answer_keys = keys
        assert (
            client.post(
                "/pipelines/probe/unload", headers={"Authorization": "Bearer admin"}
            ).status_code
            == 200
        )
        ask(client, b"x")
    with running(Starlette(routes=[Mount("/models", create_app(config()))])) as client:
        ask(client, b"x", prefix="/models")
    for path, answers in answers_by_path.items():
        responses = document["paths"][path]["post"]["responses"]
        assert {str(answer.status_code) for answer in answers} == set(responses)
        for answer in answers:
            response = responses[str(answer.status_code)]
            if "$ref" in response:
                response = document["components"]["responses"][response["$ref"].split("/")[-1]]
            content = response["content"][answer.headers["content-type"]]
            schema = {**content["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.json())
            if answer.status_code != 200:
                assert answer.json()["code"] in content["examples"]


IDS = """
from penstock import Backend


class Own(Backend):
    takes_request_id = True

    def forward(self, batch):
        for item in batch:
            if item["data"] == b"fail":
                raise ValueError
            item["result"] = item["request_id"]


class Plain:
    takes_request_id = True

    def forward(self, batch):
        for item in batch:
            item["result"] = item["request_id"]


class Silent:
    def forward(self, batch):
        for item in batch:
            item["result"] = item.get("request_id")


async def logic(item, call):
    called = await call("own", {"data": item["data"]})
    return [call.request_id, called["result"]]
"""


def test_the_id_of_the_request_reaches_a_backend_that_asks(running: Any, tmp_path: Path) -> None:
    file = tmp_path / "ids.py"
    file.write_text(IDS)
    sources: list[Any] = [
        {"pipeline": {"name": name}, "node": {"backend": backend, **keys}}
        for name, backend, keys in (
            ("own", f"Python[{file}:Own]", {"max": 4}),
            ("plain", f"S[Identity,Python[{file}:Plain]]", {}),
            ("process", f"Python[{file}:Own]", {"executor": "process"}),
            ("silent", f"Python[{file}:Silent]", {}),
        )
    ]
    nodes = {"think": {"backend": f"Python[{file}:logic]"}, "own": sources[0]["node"]}
    sources.append({"pipeline": {"name": "logic", "entry": "think"}, **nodes})
    with running(create_app(sources)) as client:

        def ask(path: str, **body: Any) -> Any:
            headers = {"X-Request-Id": "photo-1"}
            return client.post(path, headers=headers, **body).raise_for_status().json()

        for name in ("own", "plain", "process"):
            assert ask(f"/predict/{name}", content=b"x") == {"result": "photo-1"}
        assert ask("/predict/silent", content=b"x") == {"result": None}
        assert ask("/predict/logic", content=b"x") == {"result": ["photo-1", "photo-1"]}
        forms = [("images", data) for data in (b"x", b"fail", b"x")]
        results = ask("/predict/own/batch", files=forms)["results"]
        assert [result.get("result") for result in results] == ["photo-1/0", None, "photo-1/2"]
        image = {"name": "data", "shape": [1], "datatype": "BYTES", "data": ["x"]}
        for more in ({}, {"parameters": {"request_id": "mine"}}):  # the client can't set it
            (output,) = ask("/v2/models/own/infer", json={"inputs": [image], **more})["outputs"]
            assert output["data"] == ["photo-1"]
