"""Set-up for every test: signals, time limits, and no deadline for single examples."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from .triton_server import TritonServer

# A busy machine isn't a bug. A test that hangs has a time limit.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

# `nohup` and background jobs start us with signals ignored. Children inherit that, and a test that
# interrupts one, or sends it a hang-up, would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # still nothing here, and the default in children

# Torch's threads spin while they wait for each other, for most of the time if other workers and
# children have the processors. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MARGIN_SECONDS = 20.0
"""How long before pytest's own limit a coroutine is cancelled."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what every test shares out of garbage collections.

    Torch and ten thousand tests are a million objects. Each full collection would visit them again:
    those while the tests are collected, and those in the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Limit coroutines from inside the loop as well.

    The signal of pytest's time limit never interrupts a uvloop that waits. And a coroutine that is
    cancelled fails with the line at which it waited, not with one of the loop.
    """
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            if marker is None:
                limit = config.getoption("timeout")
                limit = float(config.getini("timeout") if limit is None else limit)
            else:
                limit = float(marker.args[0] if marker.args else marker.kwargs["timeout"])
            if limit == 0:  # no limit: a debugger is at work
                continue
            item.obj = _limited(item.obj, max(limit - MARGIN_SECONDS, limit / 2))


def _limited(
    test: Callable[..., Awaitable[None]], seconds: float
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def limited(*arguments: Any, **fixtures: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*arguments, **fixtures)

    return limited


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A real Triton, one for each worker. `triton.add(folder)` loads models into it."""
    from .triton_server import triton_server

    with triton_server(tmp_path_factory.mktemp("triton")) as server:
        yield server
