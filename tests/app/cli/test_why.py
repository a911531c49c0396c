"""`penstock why` as text. What it asks a server is tested with the routes (tests/app/history)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from penstock.app.cli.main import command_line
from penstock.app.cli.waterfall import describe_list, describe_request


def visit(node: str, queued: float, started: float | None, ended: float, **more: Any) -> Any:
    began = ended if started is None else started
    return {
        "node": node, "item": 0, "part_of": None, "queued_at_ms": queued,
        "started_at_ms": started, "ended_at_ms": None if started is None else ended,
        "waited_ms": began - queued, "ran_ms": ended - began, "batch": None, **more,
    }  # fmt: skip


def document(*visits: Any, **more: Any) -> Any:
    return {
        "id": "photo-1", "pipeline": "ocr", "version": "1", "door": "predict", "status": 200,
        "outcome": "ok", "time": "2026-11-30T10:00:00.123Z", "ms": 31.2, "slow": True,
        "usual_ms": 8.1, "summary": ["Waited 11.2 ms at node net for its only instance."],
        "spans": [
            {"name": "receive", "start_ms": 0, "end_ms": 1.4},
            {"name": "answer", "start_ms": 20.8, "end_ms": 31.2},
        ],
        "nodes": list(visits), **more,
    }  # fmt: skip


def test_a_waterfall() -> None:
    batch = {"mates": ["photo-0", "photo-2"], "more_mates": 5}
    told = document(visit("net", 1.4, 12.6, 20.8, batch=batch))
    assert "\n".join(describe_request(told)) == (
        """\
photo-1: ok, status 200, in 31.2 ms (slow: usually 8.1 ms), pipeline ocr,
  version 1
2026-11-30T10:00:00.123Z, at /predict

                 0                          31.2 ms
(body)           ▒▒                                 1.4 ms
net               ░░░░░░░░░░░░██████████            waited 11.2 ms, ran 8.2 ms
(answer)                               ▒▒▒▒▒▒▒▒▒▒▒▒ 10.4 ms
                 ░ waits  █ runs  ▒ reads or writes

Waited 11.2 ms at node net for its only instance.
In its batch at net: photo-0, photo-2 and 5 more."""
    )


def test_parts_items_and_what_never_ran() -> None:
    told = document(
        visit("each", 1, 1, 30),
        visit("recognise-a-line-of-text", 2, 3, 9, item=1, part_of=0),
        visit("net", 30, None, 31.2, item=2),
    )
    lines = list(describe_request(told))
    assert any(line.startswith("  recognise-a-l…") for line in lines)
    (left,) = [line for line in lines if line.startswith("net 3")]
    assert left.endswith("waited 1.2 ms")


def test_letters_and_colours() -> None:
    told = document(visit("net", 1.4, 12.6, 20.8))
    assert "\n".join(describe_request(told, blocks=False)).isascii()
    coloured = list(describe_request(told, styled=True))
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in coloured]
    assert plain == list(describe_request(told)) != coloured


def test_many_visits_are_cut_and_steering_characters_escaped() -> None:
    told = document(*(visit(f"n{number}", 0, 1, 2) for number in range(100)), id="a\x1b[2J")
    lines = list(describe_request(told))
    assert "and 60 more: --json has all of them" in lines
    assert not any("\x1b" in line for line in lines)


def test_a_list() -> None:
    assert list(describe_list({"requests": [], "remembered": 1})) == [
        "No request was slow or failed. 1 request is remembered."
    ]
    listed = {"requests": [document(), document(summary=[])], "remembered": 7}
    assert list(describe_list(listed)) == [
        "2026-11-30T10:00:00.123Z  200   31.2 ms  ocr  photo-1",
        "    Waited 11.2 ms at node net for its only instance.",
        "2026-11-30T10:00:00.123Z  200   31.2 ms  ocr  photo-1",
        "",
        "penstock why ID tells more of one. 7 requests are remembered.",
    ]


times = st.floats(0, 1e7)


@settings(max_examples=30)
@given(ms=times, spans=st.lists(st.tuples(st.text(max_size=30), times, times, times), max_size=5))
def test_any_waterfall_fits_80_columns(
    ms: float, spans: list[tuple[str, float, float, float]]
) -> None:
    visits = [visit(name, *sorted(three)) for name, *three in spans]
    for line in describe_request(document(*visits, ms=ms)):
        assert len(line) <= 80, line


class Odd(BaseHTTPRequestHandler):
    """A server that is not Penstock's: the path says what it answers."""

    def do_GET(self) -> None:
        name, _, _ = self.path[1:].partition("/")
        body = {"text": b"hello", "list": b"[1]", "object": b'{"a": 1}'}[name]
        if name == "object" and self.headers["Authorization"] != "Bearer key":
            body = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  its name


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Odd)
    Thread(target=server.serve_forever, args=[0.01]).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def why(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["why", *arguments])


@pytest.mark.parametrize("name", ["text", "list", "object"])
@pytest.mark.parametrize("request_id", [[], ["x"]])
def test_a_server_of_another_kind(odd: str, name: str, request_id: list[str]) -> None:
    failed = why(*request_id, "--url", f"{odd}/{name}")
    assert failed.exit_code == 1
    assert failed.stderr.startswith(f"{odd}/{name} ") and "Traceback" not in failed.output


def test_the_key_is_sent(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "--url", f"{odd}/object", "--json"
    assert why(*asked, "--token", "key").stdout.split() == ["{", '"a":', "1", "}"]
    monkeypatch.setenv("PENSTOCK_API_KEY", "key")
    assert '"a"' in why(*asked).stdout
    monkeypatch.delenv("PENSTOCK_API_KEY")
    assert '"a"' in why(*asked, "--header", "Authorization: Bearer key").stdout
    assert why(*asked).stdout == "{}\n"
    assert why(*asked, "--token-file", "/nowhere").exit_code == 1
