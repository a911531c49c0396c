"""The suite of predict requests through both ways of answering: past ASGI (app/server/direct.py)
and by ASGI.

Each request goes to two servers. The suite's own assertions see the answers of the direct way, and
those of the other must be the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any

import httpx
import pytest

from penstock import create_app
from penstock.app.settings import Settings
from penstock.backends.expressions.registry import register_backend

from ..server.doors import open_door
from ..server.relay import Relay, relayed
from . import test_predict

SETTINGS = Settings(max_body=100_000, max_images=3)

LEFT_OUT = {
    "test_a_failure_is_logged_with_its_request_pipeline_and_node",  # two servers log it twice
}

globals().update(
    {
        name: value
        for name, value in vars(test_predict).items()
        if name.startswith("test_")
        and name not in LEFT_OUT
        and "client" in signature(value).parameters
    }
)
probe = test_predict.probe


@register_backend("UnseenProbe")
class PredictProbe(test_predict.PredictProbe):
    """Keeps no data, so that those of the other server stand alone."""

    def see(self, data: Any) -> None:
        pass


@pytest.fixture(scope="module")
def relay(running: Any) -> Iterator[tuple[Relay, httpx.Client]]:
    apps = [
        create_app(test_predict.config(backend), settings=SETTINGS)
        for backend in ("PredictProbe", "UnseenProbe")
    ]
    with (
        open_door(running, apps[0], SETTINGS, True) as direct,
        open_door(running, apps[1], SETTINGS, False) as asgi,
        relayed((direct, asgi)) as pair,
    ):
        yield pair


@pytest.fixture(scope="module")
def client(relay: tuple[Relay, httpx.Client]) -> httpx.Client:
    return relay[1]


@pytest.fixture(autouse=True)
def same_answers(relay: tuple[Relay, httpx.Client]) -> Iterator[None]:
    yield
    relay[0].check()
