"""Two kinds of event loop, registries that tests fill by themselves, and a check for threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop

from penstock.backends.expressions import filters, registry

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def debug_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, LoopFactory]:
    """Return the loops on which every asynchronous test of this folder runs.

    asyncio's own is in debug mode, where it also checks from which thread it is called. A module
    whose tests take long for what no loop changes names one loop as `LOOPS`.
    """
    factories: dict[str, LoopFactory] = {"debug": debug_loop, "uvloop": uvloop.new_event_loop}
    module = item.getparent(pytest.Module)
    names = getattr(module.obj, "LOOPS", factories) if module is not None else factories
    return {name: factories[name] for name in names}


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []


@pytest.fixture
def own_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_registered", {})
