"""The logic of scripts/bench: what it reads from wrk, and the tables that it writes."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts" / "benchmark"))  # its modules import each other so

import figures  # noqa: E402
import http_noop  # noqa: E402
import servers  # noqa: E402
import stages  # noqa: E402
import wrk  # noqa: E402
from figures import HTTP, PROFILE, Figure  # noqa: E402

OUTPUT = """Running 1s test @ http://127.0.0.1:8000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.81ms    1.56ms  17.07ms   88.51%
    Req/Sec    17.06k     4.26k   24.24k    57.14%
  Latency Distribution
     50%  890.00us
     75%    4.18ms
     90%    5.51ms
     99%    1.02s
  35631 requests in 2.10s, 7.78MB read
Requests/sec:  16951.88
Transfer/sec:      3.70MB
"""
ENVIRONMENT = {
    "when": "now",
    "commit": "abc",
    "processors": 2,
    "processor": "a processor",
    "load": [0.1],
    "python": "3.11",
    "packages": {"uvicorn": "1"},
}


def run(rate: float) -> wrk.Run:
    return wrk.Run(rate, p50=1.0, p99=3.0, processor=20.0, requests=int(rate))


def test_the_output_of_wrk_is_read_in_milliseconds() -> None:
    run = wrk.read_output(OUTPUT, "http://…", 0.35631)
    assert tuple(run) == pytest.approx((16951.88, 0.89, 1020.0, 10.0, 35631, 0.0))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (OUTPUT + "Non-2xx or 3xx responses: 3\n", "http://… failed under wrk"),
        (OUTPUT + "Socket errors: connect 0, read 3, write 0\n", "http://… failed under wrk"),
        (OUTPUT.replace("99%", "98%"), "lacks its 99 % line"),
        ("unable to connect", "lacks a figure"),
    ],
)
def test_a_run_that_failed_gives_no_figure(output: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        wrk.read_output(output, "http://…", 0.1)


def test_rates_are_compared_turn_by_turn() -> None:
    assert wrk.ratios([run(10), run(30)], [run(20), run(10)]) == [0.5, 3.0]
    assert wrk.compared([run(10)], [run(20)]).startswith("10 to 20 requests/s")


def test_targets_hold_or_do_not() -> None:
    assert Figure("p", "w", 1.0, least=1.0).holds is True
    assert Figure("p", "w", 0.99, least=1.0).holds is False
    assert Figure("p", "w", 2.01, most=2.0).holds is False
    assert Figure("p", "w", 2.0).holds is None


def test_what_was_not_measured_says_why_and_has_no_number() -> None:
    figure = Figure("p", "w", math.nan, least=1.0, note="no wheel")
    assert figure.holds is None
    assert figure.row == "| p | w | not measured | ≥ 1 |  |  | no wheel |"
    assert json.loads(json.dumps(figure.to_dict()))["value"] is None


def test_a_part_may_have_a_table_of_its_own() -> None:
    some = [
        Figure(HTTP, "ours", 1234.5, "requests/s", column="1 connection"),
        Figure(HTTP, "other", 5.0, "requests/s", column="1 connection"),
        Figure(HTTP, "ours", 99.0, "requests/s", column="64 connections"),
        Figure(PROFILE, "parsing", 1.5, "µs", column="thread"),
        Figure(HTTP, "ratio", 1.5),
    ]
    peers = figures.table_of_part(some, HTTP, ENVIRONMENT, quick=False)
    assert peers.splitlines()[2:] == [
        "| | 1 connection | 64 connections |",
        "|---|---|---|",
        "| ours | 1,234 | 99 |",
        "| other | 5 |  |",
    ]
    profile = figures.table_of_part(some, PROFILE, ENVIRONMENT, quick=False)
    assert profile.splitlines()[2:] == ["| | thread |", "|---|---|", "| parsing | 1.5 |"]
    assert "ratio" in figures.table(some, ENVIRONMENT, quick=False)
    assert "1,234" not in figures.table(some, ENVIRONMENT, quick=False)
    assert figures.table_of_part(some[4:], HTTP, ENVIRONMENT, quick=False) == ""


def test_the_page_has_all_sections_and_only_they_are_replaced() -> None:
    page = figures.PAGE.read_text()
    sections = [section for section, _ in figures.SECTIONS.values()]
    for section in (figures.FIGURES, figures.WEB_PAGE_FIGURES, *sections):
        written = figures.replace_section(page, section, "TABLE")
        before, _, after = written.partition("TABLE")
        assert page.startswith(before) and page.endswith(after) and len(after) > 100
        assert before.endswith(f"<!-- {section}: begin -->\n")
        assert after.startswith(f"\n<!-- {section}: end -->")
    with pytest.raises(SystemExit, match="lacks the line"):
        figures.replace_section(page, "nothing", "TABLE")


def test_penstock_is_compared_with_each_peer_that_ran() -> None:
    runs = {
        http_noop.BARE: [run(10), run(10)],
        http_noop.THREAD: [run(13), run(15)],
        http_noop.LOOP: [run(16), run(15)],
        http_noop.MOSEC: [run(7), run(7)],
    }
    by_what = {figure.what: figure for figure in http_noop.comparisons(runs, 64)}
    bare = by_what["thread: rate ÷ bare ASGI app's, 64 connections"]
    assert (bare.value, bare.least, bare.holds) == (1.4, 1.3, True)
    mosec = by_what["thread: rate ÷ mosec's, 64 connections"]
    assert (mosec.value, mosec.least, mosec.aim) == (2.0, 1.3, 1.5)
    assert by_what["thread: p99 ÷ p50, 64 connections"].holds is False  # 3 ms to 1 ms
    on_loop = by_what["loop: rate ÷ bare ASGI app's, 64 connections"]
    assert (on_loop.value, on_loop.least, on_loop.holds) == (1.55, 1.6, False)
    del runs[http_noop.MOSEC]
    assert not any("mosec" in figure.what for figure in http_noop.comparisons(runs, 64))


def test_stages_name_functions_that_exist() -> None:
    """A stage whose functions have other names by now would lose their ticks to another one."""
    for stage in stages.STAGES:
        for place, pattern in stage.places:
            if place == "noop_backend.py":
                continue
            path = ROOT / "penstock" / place
            assert path.exists(), f"{stage.name}: {place}"
            if pattern != stages.ANY:
                names = [
                    node.name
                    for node in ast.walk(ast.parse(path.read_text()))
                    if isinstance(node, ast.FunctionDef)
                ]
                for part in pattern.split("|"):
                    assert any(re.fullmatch(part, name) for name in names), f"{place}: {part}"


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        ([], stages.LOOP),
        ([("asyncio/runners.py", "run"), ("app/server/serve.py", "serve")], stages.LOOP),
        ([("app/server/head.py", "parse"), ("app/server/connection.py", "_read_head")], "finding"),
        ([("app/server/connection.py", "write"), ("app/server/direct.py", "_send")], "writing"),
        ([("app/server/direct_routes.py", "call_of")], "route"),
        ([("app/server/direct.py", "_send_lines")], "finish"),
        ([("enum.py", "__call__"), ("app/http/render.py", "to_json")], "finish"),
        ([("backends/memory.py", "reserve"), ("app/http/predict_call.py", "begin")], "memory"),
        ([("pipelines/node/scheduler.py", "decide")], "queue"),
        ([("noop_backend.py", "size"), ("pipelines/node/executor.py", "run_batch")], "running"),
    ],
)
def test_a_tick_counts_for_the_innermost_stage(stack: list[tuple[str, str]], stage: str) -> None:
    ours = ("app/", "pipelines/", "backends/")
    full = [
        (f"{ROOT}/penstock/{file}" if file.startswith(ours) else f"/lib/{file}", function)
        for file, function in stack
    ]
    assert stages.stage_of(full).startswith(stage)
    ticks = stages.by_stage([(3, full), (2, [])])
    assert sum(ticks.values()) == 5 and ticks[stages.stage_of(full)] >= 3


ENTERED = """
import signal, sys

sys.path.insert(0, sys.argv[1])
import sampled_server

stacks = []

def entered(): ...

def caller():
    while not stacks:
        entered()

signal.signal(signal.SIGALRM, lambda _, frame: stacks.append(sampled_server.stack_of(frame)))
signal.setitimer(signal.ITIMER_REAL, 0.05)
caller()
print(*[name for _, name in stacks[0]])
"""


def test_a_function_that_was_only_entered_did_not_run_at_the_tick() -> None:
    # In a process of its own: native libraries that other tests load may not bear the signal.
    command = [sys.executable, "-c", ENTERED, str(ROOT / "scripts" / "benchmark")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["caller", "<module>"]


@pytest.mark.skipif(sys.platform != "linux", reason="the timer is Linux's")
def test_a_sampled_server_tells_where_its_time_went(tmp_path: Path) -> None:
    (tmp_path / "noop_backend.py").write_text(http_noop.NOOP)
    (tmp_path / "noop.toml").write_text(http_noop.PIPELINE)
    file = tmp_path / "measured.json"
    script = ROOT / "scripts" / "benchmark" / "sampled_server.py"
    command = [sys.executable, str(script), str(file), "serve", str(tmp_path / "noop.toml")]
    with servers.process(command, "/health/ready") as server, httpx.Client(timeout=60) as client:
        os.kill(server.pid, signal.SIGUSR2)
        for _ in range(300):
            assert client.post(server.url("/predict/noop"), content=b"abc").json() == {"result": 3}
        os.kill(server.pid, signal.SIGUSR2)
        while not file.exists():
            assert client.get(server.url("/health/live")).status_code == 200
    measured = json.loads(file.read_text())
    assert 0 < measured["loop"] <= measured["process"]
    assert sum(stages.by_stage(measured["stacks"]).values()) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_memory_of_a_process_is_read_in_megabytes() -> None:
    assert 5 < servers.pss(os.getpid()) < 5000
    with pytest.raises(RuntimeError, match="can't be read"):
        servers.pss(2**22 + 1)  # beyond the largest id of a process


def test_unknown_parts_are_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark"), "htpp"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown part 'htpp': expected in_process, graphs" in done.stderr
