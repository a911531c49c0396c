"""The protocol's suite through both ways of answering: past ASGI (app/server/direct.py), and by it.

Each request goes to two servers. The suite's own assertions see the answers of the direct way, and
those of the other must be the same bytes. test_schemathesis.py asks two servers by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from types import ModuleType
from typing import Any

import pytest

from penstock import create_app
from penstock.app.server.direct_infer import DirectInfer
from penstock.app.settings import Settings

from ..server.doors import open_door
from ..server.relay import Relay, relayed
from .conftest import Served
from .infer import test_handler, test_malformed

SETTINGS = Settings(max_body=8 << 20, max_inflated=1 << 20, max_chunks=1000)


def suite_of(module: ModuleType, *left_out: str) -> dict[str, Any]:
    """Return a module's tests of the server, but for some, and the fixture that all of them use."""
    return {
        name: value
        for name, value in vars(module).items()
        if name == "still_serves"
        or (
            name.startswith("test_")
            and name not in left_out
            and {"served", "client"} & signature(value).parameters.keys()
        )
    }


globals().update(suite_of(test_malformed))
# These answer addresses of memory, and which requests shared a batch.
globals().update(
    suite_of(test_handler, "test_tensors_are_views_of_the_body", "test_aio_clients_share_batches")
)


@pytest.fixture(scope="module")
def relay(sources: list[Any], running: Any) -> Iterator[tuple[Relay, Any]]:
    apps = [create_app(sources, settings=SETTINGS) for _ in range(2)]
    with (
        open_door(running, apps[0], SETTINGS, True) as direct,
        open_door(running, apps[1], SETTINGS, False) as asgi,
        relayed((direct, asgi)) as pair,
    ):
        yield pair


@pytest.fixture(scope="module")
def served(relay: tuple[Relay, Any]) -> Served:
    return Served(relay[1])


@pytest.fixture(autouse=True)
def same_answers(relay: tuple[Relay, Any]) -> Iterator[None]:
    yield
    relay[0].check()


def test_the_direct_way_was_taken(served: Served, monkeypatch: Any) -> None:
    started: list[Any] = []

    def begin(call: DirectInfer) -> None:
        started.append(call)
        begin_of(call)

    begin_of = DirectInfer._begin
    monkeypatch.setattr(DirectInfer, "_begin", begin)
    assert served.infer("simple", served.simple()).status_code == 200
    assert len(started) == 1  # of two servers
