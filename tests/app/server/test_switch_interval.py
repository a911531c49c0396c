"""How long a thread of `penstock serve` keeps the GIL, which depends on what is loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock import Pipeline
from penstock.app.server.switch_interval import SHORT_SECONDS, SwitchInterval
from penstock.backends.base import Backend
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item
from penstock.pipelines.config.load import load
from penstock.testing import Clock

CLOCK = Clock()
DECODE = {"a": {"backend": "DecodeMat"}}
HEADERS = {"Authorization": "Bearer t"}


@register_backend("SwitchingTakes")
class Takes(Backend):
    """Takes as many milliseconds as `data`, on the clock of the test."""

    max = 1

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            CLOCK.move(item["data"] / 1000)
            item["result"] = None


@pytest.fixture
def usual() -> Iterator[float]:
    usual = sys.getswitchinterval()
    yield usual
    sys.setswitchinterval(usual)


@pytest.mark.parametrize(
    ("tables", "short"),
    [
        ({"a": {"backend": "Python[builtins:len]"}}, False),
        ({"a": {"backend": "Python[builtins:len]", "executor": "loop"}}, False),
        (DECODE, True),
        ({"a": {"backend": "Python[builtins:len]", "next": "b"}, "b": DECODE["a"]}, True),
        ({"a": {"backend": "S[Identity,ResizeMat]", "resize_h": 2, "resize_w": 2}}, True),
        ({"a": {"backend": "DecodeMat", "executor": "process"}}, False),
    ],
)
async def test_it_is_short_while_threads_decode(
    usual: float, tables: dict[str, Any], short: bool
) -> None:
    interval = SwitchInterval()
    async with Pipeline.load("Identity") as other, Pipeline.load(tables) as pipeline:
        interval.choose([other, pipeline])
        assert sys.getswitchinterval() == (SHORT_SECONDS if short else usual)
        interval.choose([other])  # the pipeline is unloaded
        assert sys.getswitchinterval() == usual


async def test_it_is_short_while_a_backend_of_yours_takes_long(usual: float) -> None:
    interval = SwitchInterval()
    async with AsyncExitStack() as stack:
        pipeline = await stack.enter_async_context(Pipeline(load("SwitchingTakes"), clock=CLOCK))
        for milliseconds, expected in ((0.5, usual), (3.0, SHORT_SECONDS)):
            await pipeline({"data": milliseconds})
            interval.choose([pipeline])
            assert sys.getswitchinterval() == expected
        for _ in range(32):  # the last batches count
            await pipeline({"data": 0.1})
        interval.choose([pipeline])
        assert sys.getswitchinterval() == usual


def test_a_server_changes_it_with_what_is_loaded(tmp_path: Path, spawn: Callable[..., Any]) -> None:
    (tmp_path / "ask.py").write_text(
        "import sys\n\ndef interval(data):\n    return sys.getswitchinterval()\n"
    )
    (tmp_path / "ask.toml").write_text('[a]\nbackend = "Python[ask.py:interval]"\n')
    (tmp_path / "images.toml").write_text('[a]\nbackend = "DecodeMat"\n')
    options = ("--port", 0, "--allow-model-control")
    server = spawn("serve", tmp_path, *options, PENSTOCK_ADMIN_TOKEN="t")
    with server.listening() as client:
        server.wait_for("ready after")
        wait_for_interval(client, SHORT_SECONDS)
        assert client.post("/pipelines/images/unload", headers=HEADERS).status_code == 200
        wait_for_interval(client, 0.005)
        assert client.post("/pipelines/images/load", headers=HEADERS).status_code == 200
        wait_for_interval(client, SHORT_SECONDS)


def wait_for_interval(client: httpx.Client, seconds: float) -> None:
    """Ask until the answer is as expected: on a machine that stalls, a batch may take long."""
    for _ in range(2000):
        if client.post("/predict/ask", content=b"x").json()["result"] == seconds:
            return
    pytest.fail(f"the interval did not become {seconds}")
