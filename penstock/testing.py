"""Tools for tests of pipelines, backends and schedulers.

`Clock` stands still until the test moves it, `Gate` holds a backend, `FakeExecutor` runs nothing.
`Scheduler`, `Entry`, `Batch` and `DeviceGroup` are what a fake executor is tested with.
"""

from penstock.pipelines.testing import (
    Batch,
    Clock,
    DeviceGroup,
    Entry,
    FakeExecutor,
    Gate,
    Scheduler,
)

__all__ = ["Batch", "Clock", "DeviceGroup", "Entry", "FakeExecutor", "Gate", "Scheduler"]
