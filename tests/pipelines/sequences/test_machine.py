"""Random events against the reference model of `scripts/soak sequences`, in short."""

from __future__ import annotations

import logging

import pytest
from random_sequences import Driver

LOOPS = ["uvloop"]

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")


@pytest.mark.parametrize(
    ("executor", "max_sequences", "strategy", "chain"),
    [
        ("thread", 1000, "oldest", True),
        ("thread", 1000, "oldest", False),
        ("thread", 10, "oldest", True),
        ("thread", 1000, "direct", True),
        ("loop", 1000, "oldest", True),
    ],
)
async def test_random_events(
    executor: str, max_sequences: int, strategy: str, chain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "penstock")  # many steps fail on purpose
    driver = Driver(
        7, executor=executor, max_sequences=max_sequences, strategy=strategy, chain=chain
    )
    await driver.run(4_000)
    assert driver.errors == []
    counts = driver.model.counts
    if (
        max_sequences == 1000 and strategy == "oldest"
    ):  # how often each of them happens depends on the threads
        assert counts["answered"]
        assert counts["ended: end"]
        assert counts["ended: departure"]
    else:
        assert counts["refused"]
