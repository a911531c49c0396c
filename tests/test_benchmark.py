"""The logic of scripts/bench: what it reads from wrk, and the tables that it writes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts" / "benchmark"))  # its modules import each other so

import figures  # noqa: E402
import http_noop  # noqa: E402
import servers  # noqa: E402
import wrk  # noqa: E402
from figures import Figure  # noqa: E402

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
    return wrk.Run(rate, p50=1.0, p99=3.0, processor=20.0)


def test_the_output_of_wrk_is_read_in_milliseconds() -> None:
    run = wrk.read_output(OUTPUT, "http://…", 0.35631)
    assert tuple(run) == pytest.approx((16951.88, 0.89, 1020.0, 10.0))


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


def test_peers_have_a_table_of_their_own() -> None:
    some = [
        Figure("HTTP", "ours", 1234.5, "requests/s", column="1 connection"),
        Figure("HTTP", "other", 5.0, "requests/s", column="1 connection"),
        Figure("HTTP", "ours", 99.0, "requests/s", column="64 connections"),
        Figure("HTTP", "ratio", 1.5),
    ]
    peers = figures.peers_table(some, ENVIRONMENT, quick=False)
    assert peers.splitlines()[2:] == [
        "| | 1 connection | 64 connections |",
        "|---|---|---|",
        "| ours | 1,234 | 99 |",
        "| other | 5 |  |",
    ]
    assert "ratio" in figures.table(some, ENVIRONMENT, quick=False)
    assert "1,234" not in figures.table(some, ENVIRONMENT, quick=False)
    assert figures.peers_table(some[3:], ENVIRONMENT, quick=False) == ""


def test_the_page_has_both_sections_and_only_they_are_replaced() -> None:
    page = figures.PAGE.read_text()
    for section in (figures.PEERS, figures.FIGURES):
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
