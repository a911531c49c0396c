"""The log settings over HTTP: what they say, what they change, and who may change them."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import tritonclient.http
import tritonclient.http.aio
from pydantic import SecretStr
from tritonclient.utils import InferenceServerException

from penstock import create_app
from penstock.app.log_settings import log_settings
from penstock.app.server.logs import configure_logging
from penstock.app.settings import Settings

from ..logging_state import logging_restored

HEADERS = {"Authorization": "Bearer adm1n"}
ON: dict[str, Any] = {"admin_token": "adm1n", "api_key": "k3y", "allow_log_settings": True}
INITIAL = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


class Log:
    """A log that a test reads."""

    def __init__(self, level: str = "info") -> None:
        self._stream = io.StringIO()
        self._handler = configure_logging(level, stream=self._stream).handler

    def levels(self) -> list[str]:
        """Log a line of each level, and return the levels of those that were written."""
        logger = logging.getLogger("penstock.test")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(logger, level)("a line")
        logging.getLogger("penstock.access").info("a request")
        self._handler.flush()
        lines = self._stream.getvalue().splitlines()
        self._stream.truncate(0)
        self._stream.seek(0)
        assert any(" penstock.access " in line for line in lines), "it has a setting of its own"
        return [line.split()[1].lower() for line in lines if line.endswith("penstock.test a line")]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with logging_restored():
        yield Log


@pytest.fixture(scope="module")
def server(running: Any) -> Iterator[httpx.Client]:
    with running(create_app(settings=Settings(**ON)), http="penstock") as client:
        yield client


@pytest.fixture
def client(server: httpx.Client, log: Any) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(server.base_url.netloc.decode()) as client:
        yield client


def test_each_switch_is_what_is_logged(client: Any, log: Any) -> None:
    read = log()
    assert client.get_log_settings(headers=HEADERS) == INITIAL
    known = dict(INITIAL)
    for change, levels in (
        ({"log_verbose_level": 1}, ["debug", "info", "warning", "error", "critical"]),
        ({"log_info": False}, ["debug", "warning", "error", "critical"]),
        ({"log_error": False}, ["debug", "warning"]),
        ({"log_warning": False, "log_format": "ISO8601"}, ["debug"]),
        ({"log_verbose_level": 0}, []),
        ({"log_info": True}, ["info"]),
        ({"log_error": True, "log_info": None, "log_file": None}, ["info", "error", "critical"]),
    ):
        known |= {name: value for name, value in change.items() if value is not None}
        assert client.update_log_settings(change, headers=HEADERS) == known
        assert client.get_log_settings(headers=HEADERS) == known
        assert read.levels() == levels


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", {"log_verbose_level": 1}),
        ("info", {}),
        ("warning", {"log_info": False}),
        ("error", {"log_info": False, "log_warning": False}),
    ],
)
def test_the_settings_begin_with_log_level(client: Any, log: Any, level: str, told: Any) -> None:
    read = log(level)
    assert client.get_log_settings(headers=HEADERS) == {**INITIAL, **told}
    before = read.levels()
    client.update_log_settings({}, headers=HEADERS)
    assert read.levels() == before


async def test_the_asyncio_client(server: httpx.Client, log: Any) -> None:
    log()
    async with tritonclient.http.aio.InferenceServerClient(
        server.base_url.netloc.decode()
    ) as client:
        assert await client.get_log_settings(headers=HEADERS) == INITIAL
        changed = await client.update_log_settings({"log_verbose_level": 7}, headers=HEADERS)
        assert changed == {**INITIAL, "log_verbose_level": 7}


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"log_file": "x"}, 501, "log file location can not be updated through network protocol"),
        ({"log_info": 1}, 400, "expect bool for 'log_info', got a JSON number"),
        ({"log_error": "no"}, 400, "expect bool for 'log_error', got a JSON string"),
        ({"log_verbose_level": True}, 400, "expect int32 for 'log_verbose_level', got a JSON bool"),
        ({"log_verbose_level": -1}, 400, "from 0 to 2147483647, got -1"),
        ({"log_verbose_level": 2**31}, 400, "from 0 to 2147483647, got 2147483648"),
        ({"log_format": 3}, 400, "expect string for 'log_format', got a JSON number"),
        ({"log_format": "json"}, 400, "invalid argument for --log_format, got: json"),
        ({"log_warnings": True}, 400, "did you mean 'log_warning'?"),
        ([], 400, "the body is a JSON array, expected an object"),
    ],
)
def test_a_refused_change_changes_nothing(
    server: httpx.Client, log: Any, change: Any, status: int, text: str
) -> None:
    log()
    if isinstance(change, dict):
        change = {"log_info": False, **change}
    answer = server.post("/v2/logging", json=change, headers=HEADERS)
    assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
    assert server.get("/v2/logging", headers=HEADERS).json() == INITIAL


def test_only_the_admin_token_changes_them(server: httpx.Client, client: Any, log: Any) -> None:
    log()
    with pytest.raises(InferenceServerException, match=r"\[401\]"):
        client.update_log_settings({"log_info": False})
    with pytest.raises(InferenceServerException, match=r"\[403\] .*needs the admin token"):
        client.update_log_settings({"log_info": False}, headers={"Authorization": "Bearer k3y"})
    assert client.get_log_settings(headers={"Authorization": "Bearer k3y"})["log_info"]
    assert "logging" in server.get("/v2", headers=HEADERS).json()["extensions"]


@pytest.mark.parametrize("on", [{}, {"admin_token": "adm1n"}, {"allow_log_settings": True}])
async def test_changes_are_off_unless_the_operator_allows_them(on: Any) -> None:
    app = create_app(settings=Settings(**on))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/v2/logging", json={"log_info": False}, headers=HEADERS)
        assert answer.status_code == 501 and "--allow-log-settings" in answer.json()["error"]
        assert (await client.get("/v2/logging")).json().keys() == INITIAL.keys()


async def test_they_are_a_restricted_group() -> None:
    app = create_app(settings=Settings(restricted_api=SecretStr("logging:key=s3cret")))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for headers, status in (({}, 403), ({"key": "s3cret"}, 200)):
            assert (await client.get("/v2/logging", headers=headers)).status_code == status


@pytest.mark.usefixtures("kept_log_settings")
def test_in_a_host_they_rule_the_loggers_of_penstock_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_settings.update({"log_warning": False, "log_verbose_level": 2})
    caplog.clear()
    for name in ("penstock.test", "host"):
        logging.getLogger(name).warning("a warning")
        logging.getLogger(name).debug("for debugging")
    seen = [(record.name, record.levelname) for record in caplog.records]
    assert seen == [("penstock.test", "DEBUG"), ("host", "WARNING")]
