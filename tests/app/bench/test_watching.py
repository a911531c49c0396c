"""A load while it goes on: its progress, its end by Ctrl-C, and what a page shows of it."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from penstock.app.bench.load import NO_ANSWER, Answer, Record, Sample, closed_loop
from penstock.app.bench.measure import Load, Watch, bench, bench_file
from penstock.app.bench.plot import page
from penstock.app.bench.progress import progress_line
from penstock.app.bench.report import Report

from .test_bench import DIGITS, Recorder, command, served_in_thread


async def test_a_client_waits_as_long_as_retry_after_says(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noting(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", noting)
    answers = [Answer(503, b"", retry_after=7.0), Answer(200, b""), Answer(429, b"", "", 3.0)]

    async def send(body: bytes) -> Answer:
        return answers.pop(0) if answers else Answer(503, b"", retry_after=3600.0)

    record = await closed_loop(send, [b"a"], 1, requests=3)
    assert slept == [7.0] and (record.pauses, record.paused) == (1, 7.0)
    assert "Retry-After 1 waits, 7.0 s in all" in str(Report.of(record))
    await closed_loop(send, [b"a"], 1, seconds=0.05)
    assert 0 < max(slept[1:]) <= 0.05  # not past the end of the load


async def test_the_report_has_the_sizes_of_batches() -> None:
    report = await bench_file(
        DIGITS / "digits.toml", Load([(DIGITS / "digit.png").read_bytes()], 4, requests=20)
    )
    sizes = report.batch_sizes["digits"]
    assert sum(sizes.values()) == 20 and set(sizes) <= {1, 2, 3, 4}
    report = Report.of(Record([], 1.0), seconds=1.0)
    record = Record([], 1.0)
    record.batches.update({("a", 1): 2, ("a", 4): 8, ("b", 2): 10})
    text = str(Report.of(record))
    assert "batches     a: mean 2.5, largest 4 (80 % in 4, 20 % in 1)" in text
    assert "batches     b: mean 2.0, largest 2 (100 % in 2)" in text


@pytest.mark.parametrize("rate", [None, 1000.0])
async def test_an_interrupted_load_is_reported_so_far(rate: float | None) -> None:
    watch = Watch()

    async def send(body: bytes) -> Answer:
        if len(watch.record.samples) == 10:
            watch.interrupt()
            await asyncio.Event().wait()  # an answer that never comes
        return Answer(200, b"")

    load = Load([b"a"], clients=1, seconds=3600, warm_up=0, rate=rate)
    report = await bench(send, load, watch=watch)
    assert (report.requests, report.interrupted) == (10, True)
    assert report.seconds < 3600 and "interrupted" in str(report)


def test_ctrl_c_prints_the_report_so_far(spawn: Any, tmp_path: Path) -> None:
    plot = tmp_path / "plot.html"
    app = Recorder()
    with served_in_thread(app) as url:
        options = ("--images", DIGITS, "--seconds", 3600, "--plot", plot)
        process = spawn("bench", f"{url}/predict/x", *options).process
        while len(app.bodies) < 40:  # 16 of the warm-up
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert re.search(r"^requests +\d+ in .* s, interrupted$", output, re.MULTILINE)
    assert "<svg" in plot.read_text()


def test_headers_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer s3cret\n\nX-Other: a: b\n")
    app = Recorder()
    options = ("--requests", "2", "--header", f"@{file}", "--header", "X-Third: c")
    with served_in_thread(app) as url:
        assert command(f"{url}/predict/x", *options).exit_code == 0
    sent = app.headers[-1]
    assert (sent[b"authorization"], sent[b"x-other"], sent[b"x-third"]) == (
        b"Bearer s3cret",
        b"a: b",
        b"c",
    )
    answer = command("http://h/predict/x", "--header", "@nowhere")
    assert answer.exit_code == 2 and "nowhere can't be read: No such file" in answer.output


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load([b""], seconds=8.0), "2.0 s of 8 s, 4 answers, 2/s, 1 failed"),
        (Load([b""], requests=10), "2.0 s, 4 of 10 answers, 2/s, 1 failed"),
        (Load([b""]), "2.0 s of 10 s, 4 answers, 2/s, 1 failed"),
    ],
)
def test_progress(load: Load, expected: str) -> None:
    samples = [Sample(0.0, 0.1, status) for status in (200, 200, 503, 200)]
    assert progress_line(Record(samples), load, 2.0) == expected


def test_a_page_shows_all_outcomes_and_loads_nothing() -> None:
    samples = [Sample(index / 100, index / 100 + 0.01, 200, 0) for index in range(9000)]
    samples += [Sample(1.0, 9.5, 503), Sample(2.0, 2.5, NO_ANSWER)]
    record = Record(samples, 95.0)
    html = page("http://h/<predict>", Report.of(record), record)
    assert html.count("<circle") <= 4000 + 2 and html.count("<svg") == 2
    for text in ("status 503, 8.5e+03 ms", "no answer, 500 ms", "TP99 10 ms", "&lt;predict&gt;"):
        assert text in html, text
    for loader in ("<script", "<link", "<img", "src=", "href=", "url(", "@import"):
        assert loader not in html
    empty = Record([], 1.0)
    assert "no answer with status 200" in page("x", Report.of(empty), empty)
