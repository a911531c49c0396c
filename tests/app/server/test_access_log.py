"""The access log: a line for each request, with what it asked for and what it took."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from penstock.app.factory import create_app
from penstock.app.http.access import Access
from penstock.app.server.connections import Connections
from penstock.app.server.logs import JsonFormatter, TextFormatter
from penstock.app.settings import Settings
from penstock.backends.base import Backend
from penstock.pipelines.testing import Gate

from .doors import wait_until

GATE = Gate()


class Waits(Backend):
    def forward(self, batch: list[Any]) -> None:
        for item in batch:
            if item["data"] == b"wait":
                GATE.wait()
            item["result"] = len(item["data"])


def records(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "penstock.access"]


def test_a_line_when_the_request_has_ended(
    running: Any, leaving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from penstock import register_backend

    register_backend("Waits", Waits)
    caplog.set_level(logging.INFO, "penstock.access")
    connections = Connections(Settings())
    app = create_app({"pipeline": {"name": "waits"}, "a": {"backend": "Waits"}})
    with running(app, http=connections) as client:
        many = [("images", b"one"), ("images", b"three")]
        batch = client.post("/predict/waits/batch", files=many, headers={"x-request-id": "mine"})
        events = client.post(
            "/predict/waits", content=b"one", headers={"accept": "text/event-stream"}
        )
        assert client.head("/health/live").status_code in (200, 405)
        for headers in ({}, {"Penstock_Left": "asgi", "Content-Encoding": "identity"}):
            with leaving(client, "/predict/waits", b"wait", **headers):
                wait_until(lambda: app.state.penstock.get("waits").in_flight > 0)
            wait_until(lambda: app.state.penstock.get("waits").in_flight == 0)
        GATE.open()
    seen = records(caplog)
    assert [record.access["status"] for record in seen][:2] == [200, 200]
    assert [record.access["status"] for record in seen][3:] == [499, 499]
    assert [record.pipeline for record in seen] == ["waits", "waits", None, "waits", "waits"]
    assert seen[0].request_id == "mine"
    assert seen[0].access["bytes"] == len(batch.content)
    assert seen[1].access["bytes"] == len(events.content)
    assert seen[2].access["bytes"] == 0
    assert all({"queue_ms", "run_ms"} <= record.access.keys() for record in seen[:2])
    assert all(record.request_id for record in (*seen[:2], *seen[3:]))


def test_what_a_client_writes_stays_on_its_line_and_is_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "penstock.access")
    path = b'/predict/x" 200 \xff\x1b[31m%0a' + b"a" * 60_000
    Access(("1.2.3.4", 5), "POST", path, b"key=\r\n", "1.1").log(404, 7, "id", ("9" * 999, 0))
    (record,) = records(caplog)
    text = TextFormatter().format(record)
    line = json.loads(JsonFormatter().format(record))
    assert '"POST /predict/x%22%20200%20%FF%1B%5B31m%0aaaa' in text and len(text) < 1500
    assert text.endswith(f"request_id=id bytes=7 ms={line['ms']}") and "\n" not in text
    assert line["client"] == f"{'9' * 64}:0" and len(line["path"]) == 1025
    assert (line["status"], line["bytes"], line["method"]) == (404, 7, "POST")
    assert (line["logger"], line["request_id"]) == ("penstock.access", "id")
