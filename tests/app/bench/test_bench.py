"""`penstock bench`: what it sends, what it counts and what it prints.

Servers are real and on a socket; no test is about speed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import numpy as np
import pytest
import typer
import uvicorn
from typer.testing import CliRunner, Result

from penstock.app.bench.client import HttpClient
from penstock.app.bench.images import read_folder, synthetic_jpegs
from penstock.app.bench.load import NO_ANSWER, Answer, Record, Sample, closed_loop, open_loop
from penstock.app.bench.measure import Load, NotAnswering, bench_file, bench_url
from penstock.app.bench.report import Report, percentile
from penstock.app.bench.usage import listener, processor_seconds, rss
from penstock.app.cli.bench import bench_command
from penstock.app.factory import create_app
from penstock.backends import timeline

from ...backends.trace_events import Shown

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


class Recorder:
    """An ASGI app that records requests and answers `statuses` in turn, the last one for ever."""

    def __init__(self, *statuses: int, connection: bytes = b"keep-alive") -> None:
        self.statuses = list(statuses) or [200]
        self.connection = connection
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.clients: set[Any] = set()
        self.methods: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.gate: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        self.headers.append(dict(scope["headers"]))
        self.clients.add(scope["client"])
        self.methods.append(scope["method"])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await (self.gate.wait() if self.gate is not None else asyncio.sleep(0.002))
        self.in_flight -= 1
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        headers = [(b"content-length", b"2"), (b"connection", self.connection)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"no" if status != 200 else b"ok"})


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an app on a free port, and yield its URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", lifespan="auto", ws="none")
    )
    server.capture_signals = no_signals  # type: ignore[method-assign]  # pytest keeps its signals
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.001)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


@contextmanager
def no_signals() -> Iterator[None]:
    yield


@contextmanager
def served_in_thread(app: Any) -> Iterator[str]:
    """Serve an app in a thread, for the command, which runs a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    context = served(app)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(60)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def command(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(bench_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# what is sent


async def test_closed_loop_sends_each_request_once_over_one_connection_a_client() -> None:
    app = Recorder()
    async with served(app) as url:
        report = await bench_url(
            f"{url}/predict/x", Load([b"a", b"bb"], clients=3, requests=30, warm_up=0)
        )
    assert sorted(app.bodies) == [b"a"] * 15 + [b"bb"] * 15
    assert len(app.clients) == app.most_in_flight == 3
    assert (report.requests, report.outcomes) == (30, {"200": 30})


async def test_warm_up_is_sent_and_not_counted() -> None:
    app = Recorder()
    async with served(app) as url:
        report = await bench_url(f"{url}/predict/x", Load([b"a"], clients=2, requests=5, warm_up=7))
    assert (len(app.bodies), report.requests) == (12, 5)


async def test_closed_loop_ends_by_time() -> None:
    app = Recorder()
    async with served(app) as url:
        report = await bench_url(
            f"{url}/predict/x", Load([b"a"], clients=2, seconds=0.1, warm_up=0)
        )
    assert report.requests == len(app.bodies) >= 2
    assert report.seconds >= 0.1


async def test_open_loop_sends_the_schedule_without_waiting_for_answers() -> None:
    app = Recorder()
    app.gate = asyncio.Event()
    draw = random.Random(5).expovariate
    due, expected = draw(400.0), 0
    while due < 0.2:
        due, expected = due + draw(400.0), expected + 1
    async with served(app) as url:
        running = asyncio.create_task(
            bench_url(f"{url}/predict/x", Load([b"a"], rate=400.0, seconds=0.2, seed=5, warm_up=0))
        )
        while app.in_flight < expected:
            await asyncio.sleep(0.001)
        assert not running.done()
        app.gate.set()
        report = await running
    assert report.requests == len(app.bodies) == app.most_in_flight == expected
    assert report.offered == pytest.approx(expected / 0.2)


async def test_open_loop_measures_from_the_scheduled_arrival() -> None:
    """A generator that can't keep up shows in the latencies: it does not send less."""
    loop = asyncio.get_running_loop()
    sent: list[float] = []

    async def send(body: bytes) -> Answer:
        sent.append(loop.time())
        if len(sent) == 1:
            time.sleep(0.2)  # the whole loop stands still
        return Answer(200, b"")

    record = await open_loop(send, [b""], 100.0, seconds=0.2)
    during = [
        sample for sample in record.samples[1:] if sample.started < record.samples[0].started + 0.1
    ]
    assert during
    assert all(sample.latency > 0.09 for sample in during)
    assert record.late > 0.09


async def test_deadline_and_headers_travel_with_each_request() -> None:
    app = Recorder()
    async with served(app) as url:
        load = Load(
            [b"a"], requests=1, deadline=25, warm_up=0, headers={"Authorization": "Bearer k"}
        )
        report = await bench_url(f"{url}/predict/x", load)
    assert app.headers[0][b"penstock-deadline-ms"] == b"25000"
    assert app.headers[0][b"authorization"] == b"Bearer k"
    assert (report.deadline_ms, report.in_time) == (25_000, 1)


# what is counted


async def test_outcomes_are_counted_by_status_and_only_200_counts_as_answered() -> None:
    async with served(Recorder(200, 429, 429, 503, 200)) as url:
        report = await bench_url(f"{url}/predict/x", Load([b"a"], clients=1, requests=6, warm_up=0))
    assert report.outcomes == {"200": 3, "429": 2, "503": 1}
    assert report.latency.count == 3
    assert report.latency_by_status["429"].count == 2
    assert report.qps == pytest.approx(3 / report.seconds)


async def test_connections_that_the_server_closes_are_replaced() -> None:
    app = Recorder(connection=b"close")
    async with served(app) as url:
        report = await bench_url(f"{url}/predict/x", Load([b"a"], clients=2, requests=6, warm_up=0))
    assert (report.outcomes, len(app.clients)) == ({"200": 6}, 6)


@pytest.mark.parametrize(
    "wire", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"SSH-2.0-OpenSSH_9\r\n"]
)
async def test_a_broken_answer_is_no_answer(wire: bytes) -> None:
    assert await answer_to_pieces(wire) == Answer(NO_ANSWER, b"")


async def test_an_answer_in_pieces_after_an_informational_one_is_read() -> None:
    head = (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Enc",
        b"oding: chunked\r\n\r\n",
    )
    assert await answer_to_pieces(*head, b"2\r\nhe\r\n", b"1\r\ny\r\n0\r\n\r\n") == Answer(
        200, b"hey"
    )


async def answer_to_pieces(*pieces: bytes, read_headers: bool = False) -> Answer:
    """Return what the client makes of an answer that comes in pieces before the connection ends."""
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict/x"
        client = HttpClient(url, read_headers=read_headers)
        received = await client.send(b"")
        await client.close()
        await closed.wait()
    return received


async def test_an_answer_has_the_headers_that_its_sender_reads() -> None:
    wire = (
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nServer-Timing: run.x;dur=1\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert await answer_to_pieces(wire) == Answer(429, b"")
    answer = await answer_to_pieces(wire, read_headers=True)
    assert answer == Answer(429, b"", "run.x;dur=1", 7.0)


async def test_a_client_that_loses_patience_closes_its_connection() -> None:
    left = asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client closes
        writer.close()
        left.set()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict/x"
        assert await HttpClient(url, patience=0.01).send(b"") == Answer(NO_ANSWER, b"")
        await left.wait()


async def test_a_client_sends_its_method_from_its_address() -> None:
    app = Recorder()
    async with served(app) as url:
        client = HttpClient(f"{url}/health", method="GET", local_address="127.0.0.1")
        assert (await client.send(b"")).status == 200
        await client.close()
    assert app.methods == ["GET"]
    assert {host for host, _ in app.clients} == {"127.0.0.1"}


async def test_the_clients_of_a_closed_loop_begin_one_by_one() -> None:
    loop = asyncio.get_running_loop()
    begun: list[float] = []
    all_have_begun = asyncio.Event()

    async def send(body: bytes) -> Answer:
        begun.append(loop.time())
        if len(begun) == 3:
            all_have_begun.set()
        await all_have_begun.wait()
        return Answer(200, body)

    start = loop.time()
    record = await closed_loop(send, [b"a", b"b"], 3, requests=3, ramp=0.3)
    assert begun[1] - start >= 0.05
    assert begun[2] - start >= 0.15
    assert sorted(sample.body for sample in record.samples) == [0, 0, 1]


async def test_a_server_that_does_not_listen_is_an_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, but not listening
        with pytest.raises(NotAnswering, match=r"no answer from http.*: is the server running"):
            await bench_url(
                f"http://127.0.0.1:{probe.getsockname()[1]}/predict/x", Load([b"a"], requests=1)
            )


async def test_a_warm_up_without_success_is_an_error_with_the_answer() -> None:
    async with served(Recorder(404)) as url:
        with pytest.raises(NotAnswering, match="status 404: no"):
            await bench_url(f"{url}/predict/x", Load([b"a"], requests=1))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://127.0.0.1:1/", "ftp://x/y", "predict/x"]
)
def test_a_url_without_scheme_or_path_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a pipeline"):
        HttpClient(url)


async def test_closed_loop_takes_either_requests_or_seconds() -> None:
    async def send(body: bytes) -> Answer:
        return Answer(200, b"")

    with pytest.raises(ValueError, match="either requests or seconds"):
        await closed_loop(send, [b""], 1)


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, share) for share in (50, 90, 99, 100)] == [50, 90, 99, 100]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7
    assert percentile([], 50) == 0


def test_goodput_counts_successes_within_the_deadline() -> None:
    samples = [Sample(0, 0.1, 200), Sample(0, 0.6, 200), Sample(0, 0.01, 429)]
    report = Report.of(Record(samples, 2.0), seconds=2.0, open_loop=True, deadline=0.5)
    assert (report.in_time, report.goodput, report.qps, report.offered) == (1, 0.5, 1.0, 1.5)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_this_process_is_measured_and_one_that_does_not_exist_is_unknown() -> None:
    used, seconds = rss(os.getpid()), processor_seconds(os.getpid())
    assert used is not None
    assert 10 < used < 100_000
    assert seconds is not None
    assert seconds > 0
    assert rss(2**22 + 1) is processor_seconds(2**22 + 1) is None


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
async def test_the_process_that_listens_is_found() -> None:
    async with await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0
    ) as server:
        port = server.sockets[0].getsockname()[1]
        assert listener(port) == os.getpid()
    assert listener(port) is None


# images


def test_synthetic_images_have_the_default_size() -> None:
    jpegs = synthetic_jpegs(2)
    assert jpegs == synthetic_jpegs(2)
    assert jpegs[0] != jpegs[1]
    for jpeg in jpegs:
        assert 80_000 < len(jpeg) < 120_000
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (427, 640, 3)


def test_a_folder_is_read_by_name_and_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image in"):
        read_folder(tmp_path)
    for name in ("b.PNG", "a.jpg", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert read_folder(tmp_path) == [b"a.jpg", b"b.PNG"]
    assert read_folder(tmp_path / "c.txt") == [b"c.txt"]


# Penstock itself


async def test_a_pipeline_file_is_measured_in_process() -> None:
    report = await bench_file(
        DIGITS / "digits.toml", Load(read_folder(DIGITS), clients=4, requests=20)
    )
    assert report.outcomes == {"200": 20}
    assert report.usage.rss_mb


async def test_errors_in_process_have_the_status_of_http() -> None:
    image = (DIGITS / "digit.png").read_bytes()
    report = await bench_file(
        DIGITS / "digits.toml", Load([image, b"no image"], clients=1, requests=4, warm_up=2)
    )
    assert report.outcomes == {"200": 2, "422": 2}


async def test_a_timeline_has_every_batch_and_wait_of_the_load_and_none_of_the_warm_up() -> None:
    recording = timeline.Recording()
    await bench_file(
        DIGITS / "digits.toml",
        Load(read_folder(DIGITS), clients=4, requests=20, warm_up=5),
        recording,
    )
    assert timeline.recording is None
    shown = Shown(recording.trace())
    assert set(shown.threads.values()) == {"digits/digits queue", "digits/digits#0"}
    track = shown.spans["digits/digits#0"]
    batches = [
        (start, end, arguments)
        for depth, name, start, end, arguments in track
        if (depth, name) == (0, "batch")
    ]
    assert (
        sum(arguments["items"] for *_, arguments in batches)
        == sum(arguments["rows"] for *_, arguments in batches)
        == 20
    )
    assert [name for depth, name, *_ in track if depth == 0] == ["batch"] * len(batches)
    assert [name for depth, name, *_ in track if depth == 1 and name == "run"] == ["run"] * len(
        batches
    )
    waits = shown.waits["digits/digits queue"]
    assert len(waits) == 20
    assert len(shown.rows["digits/digits queue"]) <= 4
    # An item waits until its batch begins.
    assert {end for _, end in waits} == {start for start, *_ in batches}


def test_command_writes_a_timeline(tmp_path: Path) -> None:
    file = tmp_path / "timeline.json"
    result = command(
        str(DIGITS / "digits.toml"),
        "--images",
        str(DIGITS),
        "--requests",
        "10",
        "--profile",
        str(file),
        "--json",
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["requests"] == 10
    assert str(file) in result.stderr
    shown = Shown(json.loads(file.read_bytes()))
    assert len(shown.waits["digits/digits queue"]) == 10
    assert shown.about["spans that did not fit"] == 0


def test_command_says_how_much_a_timeline_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "Recording", partial(timeline.Recording, limit=5))
    file = tmp_path / "timeline.json"
    result = command(
        str(DIGITS / "digits.toml"),
        "--images",
        str(DIGITS),
        "--requests",
        "10",
        "--profile",
        str(file),
    )
    assert result.exit_code == 0, result.output
    about = Shown(json.loads(file.read_bytes())).about
    assert about["spans"] == 5
    missing = about["spans that did not fit"]
    assert f"only the first 5 spans are in it, {missing} later ones are not" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_command_reports_even_if_its_timeline_can_not_be_written() -> None:
    result = command(
        str(DIGITS / "digits.toml"),
        "--images",
        str(DIGITS),
        "--requests",
        "2",
        "--profile",
        "/dev/full",
    )
    assert result.exit_code == 1
    assert "/dev/full can't be written: No space left on device" in result.stderr
    assert "QPS" in result.stdout


async def test_a_penstock_server_is_measured() -> None:
    async with served(create_app(DIGITS / "digits.toml")) as url:
        load = Load(read_folder(DIGITS), clients=4, requests=40, deadline=20.0)
        report = await bench_url(f"{url}/predict/digits", load, os.getpid())
    assert (report.outcomes, report.in_time) == ({"200": 40}, 40)
    assert report.usage.cpu_percent is not None


def test_command_prints_every_figure() -> None:
    with served_in_thread(Recorder(200, 200, 200, 429, 200)) as url:
        result = command(f"{url}/predict/x", "--clients", "1", "--requests", "9", "--warm-up", "2")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert {
        "requests",
        "outcomes",
        "QPS",
        "TP50",
        "TP90",
        "TP99",
        "mean",
        "CPU",
        "memory",
    } <= lines.keys()
    assert lines["outcomes"] == "200: 8, 429: 1"
    assert lines["requests"].startswith("9 in ")
    if Path("/proc/net/tcp").exists():
        assert lines["memory"].endswith(" MB")


def test_command_prints_json_of_an_open_loop() -> None:
    app = Recorder()
    with served_in_thread(app) as url:
        result = command(
            f"{url}/predict/x",
            "--rate",
            "200",
            "--seconds",
            "0.2",
            "--deadline-ms",
            "50000",
            "--header",
            "X-A: b",
            "--json",
        )
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    sent = len(app.bodies) - 16  # without the warm-up
    assert report["requests"] == report["in_time"] == report["outcomes"]["200"] == sent
    assert report["latency"].keys() == {"count", "mean", "p50", "p90", "p99", "max"}
    assert report["usage"].keys() == {
        "cpu_percent",
        "rss_mb",
        "rss_max_mb",
        "gpu_percent",
        "gpu_memory_mb",
    }
    assert app.headers[-1][b"x-a"] == b"b"
    assert 80_000 < len(app.bodies[0]) < 120_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["http://127.0.0.1:1"], 1, "is not the URL of a pipeline"),
        (["missing.toml"], 1, "there is no such file"),
        (["missing.toml", "--pid", "1"], 2, "running server"),
        (["http://127.0.0.1:1/x", "--requests", "1", "--seconds", "1"], 2, "either --requests or"),
        (["http://127.0.0.1:1/x", "--header", "nothing"], 2, "is not a header"),
        (["http://127.0.0.1:1/x", "--profile", "t.json"], 2, "in this process"),
        (["missing.toml", "--profile", "t.json", "--verify"], 2, "exclude each other"),
        (["missing.toml", "--profile", "nowhere/t.json"], 2, "does not exist"),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], code: int, message: str) -> None:
    result = command(*arguments)
    assert result.exit_code == code
    assert message in result.output
